"""의견: "틀렸어요" under an answer, with the form it opens, and the tab that lists what this visit has sent.

Nothing is stored before "보내기". What is stored, and for what, stands in the form (`consent`).
"""

import asyncio
import logging
from typing import Any

import gradio as gr
from gradio.context import get_render_context

from ui.errors import GatewayError
from ui.opinions import LISTED, MAX_NAME, Opinion, Opinions, StoreFailed, now, plain_name
from ui.page import EVENT, Page, explain, notice

log = logging.getLogger(__name__)

WORDS = {
    "wrong": ("틀렸어요", "This is wrong"),
    "text": ("이 글의 답을 고쳐요", "Correct the answer for this text"),
    "label": ("실제로는 어떤 느낌인가요?", "How does it really feel?"),
    "name": ("이름이나 별명 (적지 않아도 돼요)", "Name or nickname (optional)"),
    "consent": (
        "**보내기**를 누르면 이 글, 모델의 답과 버전, 고른 느낌, 적은 이름, 지금 시각, 이번 방문의 임의 번호를 "
        "이 서버에 저장해요. 모델을 다시 학습하고 사람들의 의견이 얼마나 같은지 볼 때만 쓰고, 이번 방문 동안에는 "
        "‘의견’ 탭에서 지울 수 있어요. 개인 정보가 들어 있는 글이라면 보내지 마세요.",
        "With **Send**, this text, the model's answer and version, your choice, your name if you gave one, the time "
        "and a random number of this visit are stored on this server. They are used only to retrain the model and to "
        "see how far people agree; during this visit you can delete them in the tab “Opinions”. Do not send text that "
        "holds personal data.",
    ),
    "send": ("보내기", "Send"),
    "cancel": ("그만두기", "Cancel"),
    "choose": ("느낌을 하나 고른 다음 보내 주세요.", "Choose one first, then send."),
    "stored": ("고마워요. 의견을 저장했어요.", "Thank you. Your opinion is stored."),
    "not_stored": (
        "의견을 저장하지 못했어요. 잠시 뒤에 다시 보내 주세요. 계속되면 운영자에게 알려 주세요.",
        "Your opinion could not be stored. Send it again in a moment; if it stays, tell whoever runs this page.",
    ),
    "about": (
        "이번 방문에 보낸 의견이에요. 답 아래의 ‘틀렸어요’를 눌러서 보내면 여기에 쌓여요. "
        "페이지를 새로 열면 목록은 비지만, 저장된 의견은 남아요.",
        "The opinions of this visit. They come from “This is wrong” under an answer. When the page is loaded anew the "
        "list starts empty, while what was stored stays.",
    ),
    "list": ("보낸 의견", "Opinions sent"),
    "column_at": ("보낸 시각 (UTC)", "Sent (UTC)"),
    "column_text": ("글", "Text"),
    "column_answer": ("모델의 답", "Model's answer"),
    "column_label": ("내 답", "My answer"),
    "column_version": ("버전", "Version"),
    "column_name": ("이름", "Name"),
    "none": ("이번 방문에는 아직 보낸 의견이 없어요.", "No opinion was sent in this visit yet."),
    "some": ("의견 {count}개를 보냈어요.", "Opinions sent: {count}."),
    "many": ("최근 의견 {count}개예요.", "The latest {count} opinions."),
    "withdraw": ("이번 방문의 의견 모두 지우기", "Delete all opinions of this visit"),
    "withdrawn": ("의견 {count}개를 지웠어요.", "Opinions deleted: {count}."),
    "not_read": (
        "의견을 읽거나 지우지 못했어요. 잠시 뒤에 다시 해 보세요. 계속되면 운영자에게 알려 주세요.",
        "The opinions could not be read or deleted. Try again in a moment; if it stays, tell whoever runs this page.",
    ),
    "negative": ("부정", "negative"),
    "neutral": ("중립", "neutral"),
    "positive": ("긍정", "positive"),
}
COLUMNS = ("column_at", "column_text", "column_answer", "column_label", "column_version", "column_name")


def attach(page: Page, state: gr.State, *, place: str) -> None:
    """The button under an answer and its form; ``place`` begins their elem_ids.

    ``state`` holds the answer that is shown (text, version, prediction, label, confidence), or None. The form is about
    the answer that stood there when it was opened, whatever comes after.
    """
    words = page.words.of(WORDS)
    opinions = Opinions(page.settings.opinions_file)
    about = gr.State(None)
    wrong = gr.Button(words("wrong"), size="sm", visible=False, elem_id=f"{place}-wrong")
    with gr.Column(visible=False, elem_id=f"{place}-opinion") as form:
        text = gr.Textbox(label=words("text"), interactive=False, lines=1, max_lines=4, elem_id=f"{place}-opinion-text")
        label = gr.Radio(label=words("label"), elem_id=f"{place}-opinion-label")
        name = gr.Textbox(label=words("name"), max_length=MAX_NAME, max_lines=1, elem_id=f"{place}-opinion-name")
        gr.Markdown(words("consent"), padding=True)
        with gr.Row():
            cancel = gr.Button(words("cancel"), elem_id=f"{place}-opinion-cancel")
            send = gr.Button(words("send"), variant="primary", elem_id=f"{place}-opinion-send")
    status = gr.HTML(notice(""), elem_id=f"{place}-opinion-notice")

    async def open_form(answer: dict[str, Any] | None) -> dict[Any, Any]:
        if answer is None:  # the text changed under the click
            return {status: gr.skip()}
        try:
            labels = (await page.gateway.model())["labels"]
        except GatewayError as error:
            return {status: notice(explain(page.words, error))}
        choices = [(shown_label(page, each["name"], each["korean"]), each["name"]) for each in labels]
        others = [each["name"] for each in labels if each["name"] != answer["prediction"]]
        return {
            about: answer,
            form: gr.Column(visible=True),
            text: answer["text"],
            label: gr.Radio(choices=choices, value=others[0] if len(others) == 1 else None),
            status: notice(""),
        }

    async def store(answer: dict[str, Any] | None, chosen: str | None, called: str, request: gr.Request) -> dict:
        if answer is None:  # a second click came before the form was gone
            return {status: gr.skip()}
        if chosen is None:
            return {status: notice(words("choose"))}
        opinion = Opinion(
            text=answer["text"],
            answer=answer["prediction"],
            confidence=answer["confidence"],
            version=answer["version"],
            label=chosen,
            name=plain_name(called),
            language=page.words.language,
            visit=request.session_hash or "",
            at=now(),
        )
        try:
            await asyncio.to_thread(opinions.add, opinion)
        except StoreFailed:
            log.exception("an opinion was not stored")
            return {status: notice(words("not_stored"))}
        return {about: None, form: gr.Column(visible=False), status: notice(words("stored"))}

    def close_form() -> tuple[None, gr.Column, str]:
        return None, gr.Column(visible=False), notice("")

    state.change(lambda answer: gr.Button(visible=answer is not None), state, wrong, **EVENT)
    wrong.click(open_form, state, [about, form, text, label, status], **EVENT)
    send.click(store, [about, label, name], [about, form, status], **EVENT)
    cancel.click(close_form, None, [about, form, status], **EVENT)


def build(page: Page) -> None:
    """The tab: this visit's opinions, read again whenever the tab is opened, and their deletion."""
    words = page.words.of(WORDS)
    opinions = Opinions(page.settings.opinions_file)
    gr.Markdown(words("about"))
    status = gr.HTML(notice(words("none")), elem_id="feedback-notice")
    table = gr.Dataframe(
        label=words("list"),
        headers=[words(column) for column in COLUMNS],
        datatype="str",
        interactive=False,
        wrap=True,
        visible=False,
        elem_id="feedback-list",
    )
    withdraw = gr.Button(words("withdraw"), size="sm", visible=False, elem_id="feedback-withdraw")

    async def read(request: gr.Request) -> dict[Any, Any]:
        try:
            own = await asyncio.to_thread(opinions.of_visit, request.session_hash or "")
        except StoreFailed:
            log.exception("opinions were not read")
            return {status: notice(words("not_read"))}
        key = "many" if len(own) == LISTED else "some" if own else "none"
        return {
            status: notice(words(key, count=len(own))),
            table: gr.Dataframe(value=[_row(page, opinion) for opinion in own], visible=bool(own)),
            withdraw: gr.Button(visible=bool(own)),
        }

    async def delete(request: gr.Request) -> dict[Any, Any]:
        try:
            count = await asyncio.to_thread(opinions.withdraw, request.session_hash or "")
        except StoreFailed:
            log.exception("opinions were not deleted")
            return {status: notice(words("not_read"))}
        return {
            status: notice(words("withdrawn", count=count)),
            table: gr.Dataframe(value=[], visible=False),
            withdraw: gr.Button(visible=False),
        }

    shown = [status, table, withdraw]
    get_render_context().select(read, None, shown, **EVENT)  # the tab that ui/app.py opened for this
    withdraw.click(delete, None, shown, **EVENT)


def shown_label(page: Page, name: str, korean: str) -> str:
    """A label as this page's language has it."""
    return korean if page.words.language == "ko" else name


def _row(page: Page, opinion: Opinion) -> list[str]:
    words = page.words.of(WORDS)
    said = [words(each) if each in WORDS else each for each in (opinion.answer, opinion.label)]
    return [opinion.at[:19].replace("T", " "), opinion.text, *said, opinion.version, opinion.name]
