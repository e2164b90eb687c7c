"""Real parts for the tests of ui/: a gateway over a real Triton, the page, and Debian's Chromium looking at it.

A browser test is `async` and marked `pytest.mark.anyio`:

    async def test_…(page_of):
        page = await page_of("ko")                          # or page_of("en", url=…, width=320, color_scheme="dark")
        await page.locator("#single-text textarea").fill("영화가 좋다")

When it ends, the browser must have asked no host but this machine, and no script of the page may have failed.
"""

import csv
import itertools
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.bundles import write_bundle
from tests.gateway.served_app import ServedApp, served_app
from tests.triton_process import TritonProcess, running_triton
from tests.ui.served_page import served_page

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ("127.0.0.1", "localhost", "")  # the last one is of data: and blob: addresses
PATHS = {"ko": "/", "en": "/en/"}
SECONDS = 15  # for one step in the browser: generous, the machine may be busy

expect.set_options(timeout=SECONDS * 1000)
PageOf = Callable[..., Awaitable[Page]]


def pytest_configure(config: pytest.Config) -> None:
    # Gradio's queue, counting its own waiting times with pandas 3; nothing of ours.
    for message in (".future.no_silent_downcasting.", "The copy keyword is deprecated"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:Warning")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One event loop for the session, so that one browser serves all tests."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _no_variables_of_the_developer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        for name in list(os.environ):
            if name.startswith("NUNCHI_"):
                environment.delenv(name)
        yield


@pytest.fixture(scope="session")
def shared_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 serves; it knows the words of tests/bundles.py."""
    repository = tmp_path_factory.mktemp("shared") / "model_repository"
    write_bundle(repository)
    return repository


@pytest.fixture(scope="session")
def shipped_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the repository ships."""
    return Path(shutil.copytree(ROOT / "model_repository", tmp_path_factory.mktemp("shipped") / "model_repository"))


@pytest.fixture(scope="session")
def shared_triton(shared_repository: Path) -> Iterator[TritonProcess]:
    """A Triton nobody may break."""
    with running_triton(shared_repository, shared_repository.parent / "var") as triton:
        yield triton


@pytest.fixture(scope="session")
def shared_app(shared_repository: Path, shared_triton: TritonProcess) -> Iterator[ServedApp]:
    """A gateway nobody may break."""
    with served_app(shared_repository, shared_triton.grpc_port) as app:
        yield app


@pytest.fixture(scope="session")
def shared_page(shared_app: ServedApp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's address, asking `shared_app`."""
    with served_page(shared_app.url, tmp_path_factory.mktemp("page")) as url:
        yield url


@pytest.fixture(scope="session")
def shipped_page(shipped_repository, tmp_path_factory):
    """The page over the model that the repository ships."""
    with (
        running_triton(shipped_repository, shipped_repository.parent / "var") as triton,
        served_app(shipped_repository, triton.grpc_port) as app,
        served_page(app.url, tmp_path_factory.mktemp("page")) as url,
    ):
        yield url


def dated_reviews(folder: Path, rows: int) -> Path:
    """A CSV with ``rows`` of the bundled reviews, one after the other over again, and a date for each."""
    with (ROOT / "training" / "sample_reviews.tsv").open(encoding="utf-8", newline="") as stream:
        bundled = [row["document"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
    file = folder / "reviews.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["날짜", "리뷰"])
        for place, text in zip(range(rows), itertools.cycle(bundled), strict=False):
            writer.writerow([date(2026, 11, 1) + timedelta(days=place * 28 // rows), text])
    return file


@pytest.fixture(scope="session")
async def chromium(anyio_backend: str) -> AsyncIterator[Browser]:
    path = subprocess.run([ROOT / "deploy" / "chromium.sh"], capture_output=True, text=True, check=True).stdout.strip()
    async with async_playwright() as playwright:
        # The sandbox refuses root, which CI containers are; nothing but our own page is ever opened.
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def page_of(chromium: Browser, request: pytest.FixtureRequest) -> AsyncIterator[PageOf]:
    """`await page_of(language, url=None, width=1280, height=900, color_scheme="light")`: a new visitor, page loaded."""
    contexts, foreign, failures = [], [], []

    async def open_page(
        language: str, *, url: str | None = None, width: int = 1280, height: int = 900, color_scheme: str = "light"
    ) -> Page:
        context = await chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=color_scheme,
            locale={"ko": "ko-KR", "en": "en-US"}[language],
            accept_downloads=True,
        )
        contexts.append(context)
        context.set_default_timeout(SECONDS * 1000)
        context.on("request", lambda asked: is_foreign(asked.url) and foreign.append(asked.url))
        page = await context.new_page()
        page.on("pageerror", lambda error: failures.append(error))
        await page.goto((url or request.getfixturevalue("shared_page")) + PATHS[language])
        await page.locator("#tabs").wait_for()
        return page

    yield open_page
    for context in contexts:
        await context.close()
    assert foreign == []
    assert failures == []


def is_foreign(address: str) -> bool:
    return (urlsplit(address).hostname or "") not in HERE


@pytest.fixture
def serious_findings() -> Callable[[Page], Awaitable[list[str]]]:
    """`await serious_findings(page)`: what axe calls serious or critical, a line each; empty when all is well."""

    async def findings(page: Page) -> list[str]:
        results = await Axe().run(page)
        return [
            f"{violation['id']}: {node['failureSummary']}: {node['html'][:200]}"
            for violation in results.response["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]

    return findings
