"""The page as a whole, in a real browser: languages, keyboard, phone, light and dark, and what it says in trouble."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from playwright.async_api import expect

from tests.gateway.gateway_process import wait_until
from tests.gateway.served_app import served_app
from tests.gateway.triton_parts import stopped_triton
from tests.triton_process import free_ports
from tests.ui.conftest import dated_reviews, is_foreign
from tests.ui.served_page import served_page

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parent.parent.parent
TABS = ("single", "batch", "models", "feedback")
KEY = "k" * 16


async def ask(page, text: str) -> None:
    await page.locator("#single-text textarea").fill(text)
    await page.locator("#single-ask").click()


async def open_tab(page, name: str) -> None:
    await page.locator(f"#tab-{name}-button").click()
    await expect(page.locator(f"#tab-{name}")).to_be_visible()


@pytest.mark.parametrize(
    ("language", "title", "tab", "other"),
    [("ko", "눈치 · 한국어 감정 분석", "여러 문장", "en"), ("en", "Nunchi · Korean sentiment", "Many sentences", "ko")],
)
async def test_both_languages_are_there_and_lead_to_each_other(page_of, language, title, tab, other):
    page = await page_of(language)
    await expect(page).to_have_title(title)
    await expect(page.locator("html")).to_have_attribute("lang", language)
    await expect(page.get_by_role("tab", name=tab)).to_be_visible()
    await page.locator("#switch").click()
    await expect(page.locator("html")).to_have_attribute("lang", other)
    await page.locator("#switch").click()
    await expect(page).to_have_title(title)


async def test_the_english_page_also_answers_without_the_slash(shared_page):
    assert httpx.get(f"{shared_page}/en", follow_redirects=True).status_code == 200


@pytest.mark.parametrize(("language", "color_scheme"), [("ko", "light"), ("en", "dark")])
async def test_axe_finds_nothing_serious_on_any_tab(page_of, serious_findings, language, color_scheme):
    page = await page_of(language, color_scheme=color_scheme)
    dark = await page.evaluate("document.body.classList.contains('dark')")
    assert dark == (color_scheme == "dark")
    assert await serious_findings(page) == [], "empty"
    await ask(page, "영화 정말 좋다 지루")
    await expect(page.locator("#single-weights")).to_contain_text("+")
    await page.locator("#single-more button").first.click()
    await page.locator("#single-past button").first.click()
    for name in TABS:
        await open_tab(page, name)
        assert await serious_findings(page) == [], name


@pytest.mark.parametrize("language", ["ko", "en"])
async def test_a_phone_shows_every_tab_without_scrolling_sideways(page_of, language):
    page = await page_of(language, width=320, height=640)
    await ask(page, "영화 정말 좋다 지루 " + "가나다라마바사아자차카타파하" * 10)
    await expect(page.locator("#single-weights")).to_contain_text("+")
    for name in TABS:
        button = page.locator(f"#tab-{name}-button")
        if not await button.is_visible():  # Gradio puts the tabs that do not fit into a menu
            await page.locator(".overflow-menu > button").click()
            button = page.locator(".overflow-dropdown button").nth(-(len(TABS) - TABS.index(name)))
        await button.click()
        await expect(page.locator(f"#tab-{name}")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 320, name
    await page.locator("#tab-single-button").click()
    question, answer = [await page.locator(part).bounding_box() for part in ("#single-text", "#single-label")]
    assert min(question["width"], answer["width"]) > 240 and answer["y"] > question["y"] + question["height"]


async def test_the_keyboard_alone_is_enough(page_of):
    page = await page_of("ko")

    async def tab_to(selector: str) -> None:
        for _ in range(40):
            await page.keyboard.press("Tab")
            if await page.evaluate("s => !!document.activeElement.closest(s)", selector):
                return
        raise AssertionError(f"{selector} is not reached with the Tab key")

    await tab_to("#single-text")
    await page.keyboard.type("영화 정말 좋다")
    await page.keyboard.press("Enter")
    await expect(page.locator("#single-label")).to_contain_text("긍정")
    await tab_to("#single-live")
    await page.keyboard.press("Space")
    await expect(page.locator("#single-live input")).not_to_be_checked()
    await tab_to("#single-examples")
    await page.keyboard.press("Enter")
    await expect(page.locator("#single-text textarea")).to_have_value("다시 보고 싶은 영화예요")
    await page.locator("#tab-single-button").focus()
    await tab_to("#tab-models-button")
    await page.keyboard.press("Enter")
    await expect(page.locator("#tab-models")).to_be_visible()


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("ko", "게이트웨이에 연결할 수 없어요. `make up`으로"),
        ("en", "The gateway cannot be reached. Check that it runs"),
    ],
)
async def test_a_gateway_that_is_down_is_said_and_what_to_do(page_of, tmp_path, language, sentence):
    (nobody,) = free_ports(1)
    with served_page(f"http://127.0.0.1:{nobody}", tmp_path) as url:
        page = await page_of(language, url=url)
        await ask(page, "영화 좋다")
        alert = page.locator("#single-status [role=alert]")
        await expect(alert).to_contain_text(sentence)
        await expect(alert).to_contain_text(f":{nobody}")


async def test_an_overloaded_gateway_is_waited_for_and_answers_by_itself(
    page_of, shared_repository, shared_triton, tmp_path
):
    with (
        served_app(shared_repository, shared_triton.grpc_port, max_in_flight=2, max_texts=2) as app,
        served_page(app.url, tmp_path) as url,
    ):
        page = await page_of("ko", url=url)
        async with httpx.AsyncClient(base_url=app.url, timeout=30) as client:
            with stopped_triton(shared_triton):
                filling = asyncio.create_task(client.post("/v1/predict/batch", json={"texts": ["영화"] * 2}))
                full = "nunchi_gateway_in_flight_texts"
                await asyncio.to_thread(wait_until, lambda: app.metric(full) == 2, 5, "the gateway is full")
                await ask(page, "영화 정말 좋다")
                await expect(page.locator("#single-status [role=status]")).to_contain_text("1초 뒤에 저절로 다시")
            assert (await filling).status_code == 200
        await expect(page.locator("#single-label")).to_contain_text("긍정")
        await expect(page.locator("#single-status")).to_have_text("")


async def test_a_model_that_stays_away_is_not_waited_for_without_end(page_of, shared_repository, tmp_path):
    (nobody,) = free_ports(1)
    with (
        served_app(shared_repository, nobody, wait_for_triton=False) as app,
        served_page(app.url, tmp_path) as url,
    ):
        page = await page_of("en", url=url)
        await ask(page, "영화 좋다")
        await expect(page.locator("#single-status [role=alert]")).to_contain_text(
            "The model is not ready yet. Try again"
        )


async def test_a_text_beyond_the_limit_is_said_with_the_limit(page_of, shared_repository, shared_triton, tmp_path):
    with (
        served_app(shared_repository, shared_triton.grpc_port, max_text_characters=20) as app,
        served_page(app.url, tmp_path) as url,
    ):
        page = await page_of("ko", url=url)
        await ask(page, "영화 " * 10)
        alert = page.locator("#single-status [role=alert]")
        await expect(alert).to_contain_text("글이 너무 길어요. 줄여서")
        await expect(alert).to_contain_text("30 characters, the limit is 20")


async def test_without_the_gateways_key_the_page_says_which_setting_and_with_it_all_is_well(
    page_of, shared_repository, shared_triton, tmp_path
):
    with served_app(shared_repository, shared_triton.grpc_port, wait_for_triton=False, api_key=KEY) as app:
        with served_page(app.url, tmp_path) as url:
            page = await page_of("ko", url=url)
            await ask(page, "영화 좋다")
            await expect(page.locator("#single-status [role=alert]")).to_contain_text("NUNCHI_API_KEY를 확인")
        with served_page(app.url, tmp_path, api_key=KEY) as url:
            page = await page_of("ko", url=url)
            await ask(page, "영화 좋다")
            await expect(page.locator("#single-label")).to_contain_text("긍정")


async def test_the_guard_of_these_tests_knows_foreign_hosts():
    assert is_foreign("https://fonts.googleapis.com/css2") and is_foreign("http://10.0.0.1/")
    assert not any(map(is_foreign, ("http://127.0.0.1:7860/", "data:text/css,x", "blob:http://127.0.0.1:7860/1")))


def run_page(tmp_path: Path, **settings: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ui"],
        cwd=ROOT,
        env=dict(os.environ) | {"TMPDIR": str(tmp_path)} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_program_listens_and_leaves_nothing_behind(tmp_path):
    (port,) = free_ports(1)
    page = run_page(tmp_path, NUNCHI_UI_PORT=str(port))
    try:
        assert page.stdout.readline() == f"the page listens on http://127.0.0.1:{port}\n"
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/healthz").is_success, 30, "the page is alive")
        assert list(tmp_path.glob("nunchi-page-*"))
        second = run_page(tmp_path, NUNCHI_UI_PORT=str(port))
        said = second.communicate(timeout=30)[0]
        assert second.returncode == 2
        assert said.startswith(f"error: the page cannot listen on 127.0.0.1:{port} (Address already in use)")
        page.send_signal(signal.SIGTERM)
        assert page.wait(20) == 0
        assert list(tmp_path.iterdir()) == []
    finally:
        page.kill()
        page.communicate()


def test_a_wrong_setting_is_one_sentence_that_names_it(tmp_path):
    page = run_page(tmp_path, NUNCHI_UI_PORT="99999")
    said = page.communicate(timeout=30)[0]
    assert page.returncode == 2
    assert said.startswith("error: NUNCHI_UI_PORT is '99999': ") and said.count("\n") == 1


@pytest.mark.screenshots
async def test_the_screenshots_of_the_readme(page_of, shipped_page, tmp_path):
    pictures = ROOT / "docs" / "screenshots"
    pictures.mkdir(parents=True, exist_ok=True)
    page = await page_of("ko", url=shipped_page, height=960)
    await ask(page, "안 좋다고 해서 걱정했는데 배우들 연기도 좋고 정말 재밌네요 ㅋㅋㅋ")
    await expect(page.locator("#single-weights")).to_contain_text("+")

    async def picture(name: str) -> None:
        await open_tab(page, name)
        await page.mouse.move(0, 0)
        await page.wait_for_timeout(1000)  # the tab asks the gateway when it opens, and charts draw themselves
        await page.screenshot(path=pictures / f"{name}.png", full_page=True, animations="disabled")

    await picture("single")
    await page.locator("#single-wrong").click()
    await page.locator("#single-opinion-label input").last.check()
    await page.locator("#single-opinion-name input, #single-opinion-name textarea").fill("눈치 검수단")
    await page.locator("#single-opinion-send").click()
    await expect(page.locator("#single-opinion-notice")).to_contain_text("저장했어요")
    await open_tab(page, "batch")
    await page.locator("#batch-source input[value=file]").check()
    await page.locator("#batch-file input[type=file]").set_input_files(dated_reviews(tmp_path, rows=1600))
    await page.locator("#batch-start").click()
    await expect(page.locator("#batch-status")).to_contain_text("다 읽었어요", timeout=60_000)
    for name in TABS[1:]:
        await picture(name)
