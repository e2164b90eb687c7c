"""한 문장: one text, read while it is typed, with what the answer hangs on and what was asked before."""

from typing import Any

import gradio as gr

from ui import feedback
from ui.page import Page, notice
from ui.reading import HISTORY_COLUMNS, Parts, Reader, Visit, weight_colors
from ui.words import Words

EXAMPLES = [
    "다시 보고 싶은 영화예요",
    "기대했는데 별로였음... 시간이 아깝다 ㅠㅠ",
    "배송은 느린데 물건은 진짜 좋네요 ㅋㅋㅋ",
    "이 가격에 이 정도면 대박",
    "안 좋다고 해서 걱정했는데 좋기만 하네요",
]

# Run by the browser when a question leaves: says when that is.
STAMP = "(text, visit, at, ...others) => [text, visit, performance.now(), ...others]"

WORDS = {
    "text": ("글", "Text"),
    "placeholder": ("여기에 글을 적거나 붙여 넣어 보세요", "Write or paste Korean text here"),
    "ask": ("읽어 보기", "Read it"),
    "live": ("적는 동안 바로 읽기", "Read while I type"),
    "examples": ("예문", "Examples"),
    "answer": ("답", "Answer"),
    "empty": ("글을 적으면 여기에 답이 나와요.", "The answer appears here once there is a text."),
    "waiting": (
        "지금 요청이 많아 밀려 있어요. {seconds}초 뒤에 저절로 다시 물어볼게요.",
        "The gateway is overloaded. Asking again by itself in {seconds} s.",
    ),
    "version": ("답한 모델: 버전 {version}", "Answered by version {version}"),
    "read_all": ("토큰 {tokens}개, 끝까지 읽었어요", "{tokens} tokens, read to the end"),
    "truncated": (
        "**글이 길어서 앞부분 토큰 {tokens}개만 읽었어요.** 뒷부분은 답에 들어가지 않았어요",
        "**The text is long: only its first {tokens} tokens were read.** The rest has no part in the answer",
    ),
    "time": (
        "{total:.1f} ms 걸렸어요 (토큰 나누기 {tokenization:.1f} · 차례 기다리기 {queue:.1f} · 추론 {inference:.1f})",
        "Took {total:.1f} ms (tokenization {tokenization:.1f} · queue {queue:.1f} · inference {inference:.1f})",
    ),
    "weights": ("낱말의 무게", "What the answer hangs on"),
    "weights_about": (
        "낱말을 하나씩 빼고 다시 물어본 결과예요. +는 답을 뒷받침하는 낱말, −는 답을 거스르는 낱말이에요.",
        "The text is asked again without each word. + supports the answer, − speaks against it.",
    ),
    "one_word": (
        "낱말이 하나뿐이라 견줄 것이 없어요.",
        "There is only one word, so there is nothing to compare it with.",
    ),
    "too_long_to_weigh": (
        "낱말의 무게는 {limit:,}자까지만 재요. 지금은 {characters:,}자예요.",
        "Words are weighed in texts of up to {limit:,} characters; this one has {characters:,}.",
    ),
    "not_weighed": ("낱말의 무게는 재지 못했어요. {reason}", "The words could not be weighed. {reason}"),
    "figures": ("무게를 숫자로 보기", "The weights as figures"),
    "word": ("낱말", "Word"),
    "weight": ("무게 (%p)", "Weight (points)"),
    "history": ("이번 방문의 기록", "History of this visit"),
    "history_about": (
        "이 기록은 어디에도 저장되지 않고, 창을 닫으면 사라져요.",
        "It is stored nowhere and is gone when you close the page.",
    ),
    "at": ("시각", "Time"),
    "label": ("답", "Answer"),
    "confidence": ("확신 (%)", "Confidence (%)"),
    "answered_by": ("버전", "Version"),
    "download": ("기록 내려받기 (CSV)", "Download the history (CSV)"),
}


def build(page: Page) -> None:
    words = page.words.of(WORDS)
    visit, at = gr.State(Visit()), gr.Number(visible=False)
    with gr.Row():
        with gr.Column(min_width=240):
            text, live, ask, examples = _question(words)
        with gr.Column(min_width=240):
            answer = _answer(page, words)
    parts = Parts(**answer, **_history(words))
    reader = Reader(page, words, parts)
    asked = {
        "outputs": list(vars(parts).values()),
        "trigger_mode": "multiple",  # a newer question does not wait for an older one
        "concurrency_limit": None,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    gr.on([ask.click, text.submit], reader.read, [text, visit, at], js=STAMP, **asked)
    examples.load_input_event.then(reader.read, [text, visit, at], js=STAMP, **asked)
    # Not `input`: Gradio dispatches that by key presses, and Korean comes from an input method, which makes none.
    text.change(reader.read_typed, [text, visit, at, live], js=STAMP, **asked)


def _question(words: Words) -> tuple[gr.Textbox, gr.Checkbox, gr.Button, gr.Examples]:
    text = gr.Textbox(
        label=words("text"),
        placeholder=words("placeholder"),
        lines=1,  # so that Enter asks, and Shift+Enter begins a line
        max_lines=10,
        elem_id="single-text",
    )
    with gr.Row():
        live = gr.Checkbox(True, label=words("live"), container=False, min_width=140, elem_id="single-live")
        ask = gr.Button(words("ask"), variant="primary", min_width=100, elem_id="single-ask")
    examples = gr.Examples(EXAMPLES, text, label=words("examples"), cache_examples=False, elem_id="single-examples")
    return text, live, ask, examples


def _answer(page: Page, words: Words) -> dict[str, Any]:
    parts = {
        "status": gr.HTML(notice(words("empty")), elem_id="single-status"),
        "label": gr.Label(label=words("answer"), visible=False, elem_id="single-label"),
        "facts": gr.Markdown(elem_id="single-facts"),
        "shown": gr.State(None),
    }
    feedback.attach(page, parts["shown"], place="single")
    parts["weights"] = gr.HighlightedText(
        label=words("weights"), color_map=weight_colors(), visible=False, elem_id="single-weights"
    )
    parts["weights_status"] = gr.HTML(elem_id="single-weights-status")
    with gr.Accordion(words("figures"), open=False, elem_id="single-more"):
        parts["figures"] = gr.Dataframe(
            headers=[words("word"), words("weight")],
            datatype=["str", "number"],
            interactive=False,
            elem_id="single-figures",
        )
    return parts


def _history(words: Words) -> dict[str, Any]:
    with gr.Accordion(words("history"), open=False, elem_id="single-past"):
        gr.Markdown(words("history_about"))
        history = gr.Dataframe(
            headers=[words(key) for key in HISTORY_COLUMNS],
            datatype=["str", "str", "str", "number", "str"],
            interactive=False,
            wrap=True,
            elem_id="single-history",
        )
        download = gr.DownloadButton(words("download"), interactive=False, elem_id="single-download")
    return {"history": history, "download": download}
