"""Champion against Candidate on the same sentences, the ones they disagree about first; a part of 모델."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from ui.errors import Busy, GatewayError, TextRefused
from ui.gateway import Answer, Prediction
from ui.page import EVENT, Page, explain, notice
from ui.words import Words

MAX_LINES = 500
TRIES = 4  # of asking a busy gateway

EXAMPLES = """\
다시 보고 싶은 영화예요
기대했는데 별로였음... 시간이 아깝다 ㅠㅠ
배송은 느린데 물건은 진짜 좋네요 ㅋㅋㅋ
그냥 그래요, 나쁘진 않은데 또 사진 않을 듯
안 좋다고 해서 걱정했는데 좋기만 하네요
재미없다는 말이 왜 나오는지 모르겠네요"""

WORDS = {
    "title": ("나란히 비교", "Side by side"),
    "no_candidate": (
        "지금은 시험 중인 후보가 없어요. 관리자가 후보를 띄우면 여기서 같은 문장으로 비교해 볼 수 있어요.",
        "No candidate is on trial now. Once an admin has started one, both can be asked the same sentences here.",
    ),
    "about": (
        "지금 답하는 버전({live})과 후보(버전 {candidate})에 같은 문장을 물어봐요.",
        "Versions {live} (answers now) and {candidate} (candidate) are asked the same sentences.",
    ),
    "texts": ("비교할 문장 (한 줄에 하나)", "Sentences to compare (one per line)"),
    "compare": ("비교하기", "Compare"),
    "differing": ("답이 다른 것만 보기", "Only where the answers differ"),
    "result": ("비교 결과", "Comparison"),
    "column_text": ("글", "Text"),
    "column_answer": ("버전 {version}의 답", "Version {version}"),
    "column_confidence": ("버전 {version}의 확신 (%)", "Confidence of {version} (%)"),
    "column_shift": ("확률 차이 (%p)", "Shift (points)"),
    "column_differs": ("다른가요?", "Differs?"),
    "differs": ("달라요", "differs"),
    "same": ("같아요", "same"),
    "nothing": ("비교할 문장을 한 줄에 하나씩 적어 주세요.", "Write the sentences to compare, one per line."),
    "too_many": (
        "한 번에 {limit}줄까지 비교해요. 지금은 {count}줄이니 줄여 주세요.",
        "Up to {limit} lines are compared at one time; these are {count}. Remove some.",
    ),
    "line": ("{line}번째 문장: {reason}", "Sentence {line}: {reason}"),
    "waiting": (
        "지금 요청이 많아 밀려 있어요. {seconds}초 뒤에 저절로 다시 물어볼게요.",
        "The gateway is overloaded. Asking again by itself in {seconds} s.",
    ),
    "gone": (
        "그사이에 답하는 버전이 바뀌었어요. ‘새로 고침’을 누른 다음 다시 비교해 주세요.",
        "The versions have changed meanwhile. Press “Refresh”, then compare again.",
    ),
    "summary": (
        "{count}문장 가운데 {differing}문장에서 답이 달라요. 확률은 많게는 {shift:.1f}%p 달라요.",
        "The answers differ on {differing} of {count} sentences, a probability by up to {shift:.1f} points.",
    ),
}


def build(page: Page, standing: gr.State) -> None:
    """``standing`` says who is who (`ui.models.stand`), or holds None before it was read."""
    words = page.words.of(WORDS)
    found = gr.State(None)
    gr.Markdown(f"### {words('title')}")
    about = gr.HTML(notice(words("no_candidate")), elem_id="compare-about")
    with gr.Column(visible=False, elem_id="compare") as panel:
        texts = gr.Textbox(
            EXAMPLES, label=words("texts"), lines=6, max_lines=12, interactive=True, elem_id="compare-texts"
        )
        ask = gr.Button(words("compare"), variant="primary", elem_id="compare-ask")
        status = gr.HTML(elem_id="compare-status")
        differing = gr.Checkbox(label=words("differing"), visible=False, elem_id="compare-differing")
        table = gr.Dataframe(
            label=words("result"), interactive=False, wrap=True, visible=False, elem_id="compare-result"
        )

    async def compare(written: str, stand: dict[str, str], only: bool) -> AsyncIterator[dict[Any, Any]]:
        lines = [line.strip() for line in written.splitlines() if line.strip()]
        if not lines or len(lines) > MAX_LINES:
            key = "too_many" if lines else "nothing"
            yield {status: notice(words(key, limit=MAX_LINES, count=len(lines)), "alert")}
            return
        async for step in _ask_both(page, words, lines, stand["live"], stand["answering"]):
            if isinstance(step, str):
                yield {status: step}
            else:
                rows = compared(words, lines, *step)
                versions = [answer.version for answer in step]
                yield {
                    status: notice(_summary(words, rows)),
                    found: (versions, rows),
                    differing: gr.Checkbox(visible=True),
                    table: _table(words, versions, rows, only),
                }

    def filtered(found: tuple[list[str], list[list]], only: bool) -> gr.Dataframe:
        return _table(words, *found, only)

    def show(stand: dict[str, str | None]) -> tuple[str, gr.Column]:
        return _about(words, stand), gr.Column(visible=stand["answering"] is not None)

    standing.change(show, standing, [about, panel], **EVENT)
    ask.click(compare, [texts, standing, differing], [status, found, differing, table], **EVENT)
    differing.change(filtered, [found, differing], table, **EVENT)


def compared(words: Words, texts: list[str], live: Answer, candidate: Answer) -> list[list]:
    """A row per text: text, answer and confidence (%) of both, shift (%p), whether they differ; what differs first."""
    rows = []
    for text, one, other in zip(texts, live.predictions, candidate.predictions, strict=True):
        differs = words("differs" if one.prediction != other.prediction else "same")
        shift = 100 * _shift(one, other)
        rows.append([text, *_shown(words, one), *_shown(words, other), round(shift, 1), differs])
    return sorted(rows, key=lambda row: (row[-1] != words("differs"), -row[-2]))


async def _ask_both(
    page: Page, words: Words, texts: list[str], live: str, candidate: str
) -> AsyncIterator[str | tuple[Answer, Answer]]:
    """Notices while it has to wait; then both answers, or the notice why there are none."""
    for attempt in range(1, TRIES + 1):
        try:
            yield tuple(
                await asyncio.gather(*(page.gateway.predict_batch(texts, version=v) for v in (live, candidate)))
            )
            return
        except Busy as busy:
            if attempt == TRIES:
                yield notice(explain(page.words, busy), "alert")
                return
            for seconds in range(max(1, math.ceil(busy.retry_after)), 0, -1):
                yield notice(words("waiting", seconds=seconds))
                await asyncio.sleep(1)
        except GatewayError as error:
            yield notice(_reason(page, words, error), "alert")
            return


def _reason(page: Page, words: Words, error: GatewayError) -> str:
    if error.code == "version_not_loaded":
        return words("gone")
    reason = explain(page.words, error)
    if isinstance(error, TextRefused) and error.row is not None:
        return words("line", line=error.row + 1, reason=reason)
    return reason


def _about(words: Words, stand: dict[str, str | None]) -> str:
    if stand["answering"] is None:
        return notice(words("no_candidate"))
    return notice(words("about", live=stand["live"], candidate=stand["answering"]))


def _summary(words: Words, rows: list[list]) -> str:
    differing = sum(row[-1] == words("differs") for row in rows)
    return words("summary", count=len(rows), differing=differing, shift=max(row[-2] for row in rows))


def _table(words: Words, versions: list[str], rows: list[list], only_differing: bool) -> gr.Dataframe:
    headers = [words("column_text")]
    for version in versions:
        headers += [words(column, version=version) for column in ("column_answer", "column_confidence")]
    headers += [words("column_shift"), words("column_differs")]
    shown = [row for row in rows if not only_differing or row[-1] == words("differs")]
    return gr.Dataframe(
        value={"headers": headers, "data": shown},
        datatype=["str", "str", "number", "str", "number", "number", "str"],
        visible=True,
    )


def _shown(words: Words, prediction: Prediction) -> tuple[str, float]:
    label = prediction.label if words.language == "ko" else prediction.prediction
    return label, round(100 * prediction.confidence, 1)


def _shift(one: Prediction, other: Prediction) -> float:
    """The largest difference of a label's probability."""
    labels = {*one.probabilities, *other.probabilities}
    return max(abs(one.probabilities.get(label, 0.0) - other.probabilities.get(label, 0.0)) for label in labels)
