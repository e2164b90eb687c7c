"""The page put together: Korean at `/`, English at `/en/`, and `/healthz` for whoever watches it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from ui import batch, feedback, models, single
from ui.gateway import Gateway
from ui.page import Page
from ui.settings import Settings
from ui.table import MAX_BYTES
from ui.words import Words

STYLE = Path(__file__).with_name("static") / "page.css"
ADDRESSES = {"en": "/en", "ko": "/"}  # the root is mounted last, or it would take every address
TABS = {"single": single, "batch": batch, "models": models, "feedback": feedback}
CLEAN_SECONDS = 600  # between two looks for files that visitors left behind
KEEP_SECONDS = 3600  # a download stays so long

WORDS = {
    "title": ("눈치 · 한국어 감정 분석", "Nunchi · Korean sentiment"),
    "heading": ("눈치", "Nunchi"),
    "about": (
        "한국어 글에 담긴 감정을 읽어 드려요. ㅋㅋㅋ도, 오타도, 신조어도요.",
        "Reads the feeling of Korean text: slang, typos, ㅋㅋㅋ and all.",
    ),
    "switch": ("English", "한국어"),
    "single": ("한 문장", "One sentence"),
    "batch": ("여러 문장", "Many sentences"),
    "models": ("모델", "Models"),
    "feedback": ("의견", "Opinions"),
}


def create_app(settings: Settings) -> FastAPI:
    """One application with both languages; its gateway connections close with it."""
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway:
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/en")
    async def english() -> RedirectResponse:
        return RedirectResponse("en/")  # relative, so that it holds behind a proxy's path too

    for language, address in ADDRESSES.items():
        page = Page(settings, gateway, Words(language, WORDS))
        gr.mount_gradio_app(
            app,
            build(page),
            path=address,
            theme=theme(),
            css_paths=STYLE,
            head=f'<script>document.documentElement.lang = "{language}";</script>',
            max_file_size=MAX_BYTES,
            footer_links=[],
            run_history=False,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
        )
    return app


def build(page: Page) -> gr.Blocks:
    words = page.words
    clock = (CLEAN_SECONDS, KEEP_SECONDS)
    with gr.Blocks(title=words("title"), analytics_enabled=False, delete_cache=clock) as blocks:
        gr.HTML(heading(words), elem_id="heading")
        with gr.Tabs(elem_id="tabs"):
            for name, tab in TABS.items():
                with gr.Tab(words(name), id=name, elem_id=f"tab-{name}"):
                    tab.build(page)
    return blocks


def heading(words: Words) -> str:
    other, address = ("en", "en/") if words.language == "ko" else ("ko", "../")
    return (
        f'<header class="heading"><h1>{words("heading")}</h1><p>{words("about")}</p>'
        f'<a id="switch" href="{address}" lang="{other}" hreflang="{other}">{words("switch")}</a></header>'
    )


def theme() -> gr.themes.Base:
    """Fonts of the visitor's system, so that none is fetched; blues that are readable on light and on dark."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        secondary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=[gr.themes.Font(name) for name in ("system-ui", "Noto Sans CJK KR", "sans-serif")],
        font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "monospace")],
    ).set(
        color_accent="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_cancel_background_fill=gr.themes.colors.red.c600,
        button_cancel_background_fill_hover=gr.themes.colors.red.c700,
    )
