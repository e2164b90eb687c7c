"""What every tab is built from, and the one sentence that says what to do when the gateway does not answer."""

import html
from dataclasses import dataclass
from typing import Any, Literal

from ui.errors import Busy, GatewayAway, GatewayError, NotAllowed, TextRefused
from ui.gateway import Gateway
from ui.settings import Settings
from ui.words import Words

WORDS = {
    "away": (
        "게이트웨이에 연결할 수 없어요. `make up`으로 켜져 있는지 확인하고, 잠시 뒤에 다시 해 보세요. ({url})",
        "The gateway cannot be reached. Check that it runs (`make up`), and try again in a moment. ({url})",
    ),
    "overloaded": (
        "지금 요청이 많아 밀려 있어요. {seconds}초 뒤에 다시 해 보세요.",
        "The gateway is overloaded right now. Try again in {seconds} s.",
    ),
    "not_ready": (
        "모델이 아직 준비되지 않았어요. {seconds}초 뒤에 다시 해 보세요.",
        "The model is not ready yet. Try again in {seconds} s.",
    ),
    "unauthorized": (
        "게이트웨이가 이 페이지의 API 키를 받아 주지 않았어요. 운영자에게 NUNCHI_API_KEY를 확인해 달라고 해 주세요.",
        "The gateway did not accept the page's API key. Ask whoever runs it to check NUNCHI_API_KEY.",
    ),
    "not_allowed": (
        "권한이 없어요. 관리자 키(NUNCHI_ADMIN_KEY)를 확인해 주세요. ({detail})",
        "You are not allowed to do this. Check the admin key (NUNCHI_ADMIN_KEY). ({detail})",
    ),
    "too_long": (
        "글이 너무 길어요. 줄여서 다시 해 보세요. ({detail})",
        "The text is too long. Shorten it and try again. ({detail})",
    ),
    "empty": (
        "읽을 글이 없어요. 글자나 숫자를 한 자 이상 적어 주세요.",
        "There is nothing to read. Write at least one letter or digit.",
    ),
    "refused": (
        "게이트웨이가 이 글을 읽지 못했어요. 고쳐서 다시 해 보세요. ({detail})",
        "The gateway could not read this text. Change it and try again. ({detail})",
    ),
    "failed": (
        "게이트웨이에 문제가 생겼어요. 또 그러면 운영자에게 이 번호를 알려 주세요: {request_id} ({detail})",
        "The gateway had a problem. Try again, or tell whoever runs it this number: {request_id} ({detail})",
    ),
}

EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
"""What most events have in common: the page's alone, of many visitors at one time, and no veil over what is shown."""


@dataclass(frozen=True)
class Page:
    """One language of the page. ``words`` reads the table of ui/app.py; a tab takes `page.words.of(WORDS)`."""

    settings: Settings
    gateway: Gateway
    words: Words


def explain(page_words: Words, error: GatewayError) -> str:
    """What happened and what to do about it, as one plain sentence or two; not Markdown, not HTML.

    The gateway's own sentence (English) is added where it holds figures that a person needs.
    """
    words = page_words.of(WORDS)
    match error:
        case GatewayAway():
            return words("away", url=error.detail.split()[0])
        case Busy():
            key = "not_ready" if error.code == "model_unavailable" else "overloaded"
            return words(key, seconds=max(1, round(error.retry_after)))
        case NotAllowed(code="unauthorized"):
            return words("unauthorized")
        case NotAllowed():
            return words("not_allowed", detail=error.detail)
        case TextRefused(code="payload_too_large"):
            return words("too_long", detail=error.detail)
        case TextRefused(code="empty_text"):
            return words("empty")
        case TextRefused():
            return words("refused", detail=error.detail)
        case _:
            return words("failed", request_id=error.request_id or "-", detail=error.detail)


def notice(sentence: str, kind: Literal["status", "alert"] = "status") -> str:
    """A sentence as the value of a gr.HTML: read aloud when it comes, an `alert` at once; "" where there is none."""
    return f'<p class="notice {kind}" role="{kind}">{html.escape(sentence)}</p>' if sentence else ""
