"""한 문장 in a real browser: what is said about one text, while it is typed and after."""

import asyncio
import csv
import re

import pytest
from playwright.async_api import expect

from tests.ui.test_shell import ask
from ui.gateway import Gateway
from ui.occlusion import pieces, weigh
from ui.page import notice
from ui.settings import Settings

pytestmark = pytest.mark.anyio
MARKUP = "<img src=x onerror=alert(1)> <b>영화</b> 좋다"


def asked_alone(app) -> float:
    return app.metric('nunchi_gateway_requests_total{code="ok",route="/v1/predict",status="200",version="1"}')


async def test_an_answer_has_label_shares_version_tokens_and_times(page_of, shared_app):
    expected = shared_app.predict("영화 정말 좋다").json()
    page = await page_of("ko")
    await expect(page.locator("#single-status")).to_have_text("글을 적으면 여기에 답이 나와요.")
    await ask(page, "영화 정말 좋다")
    label = page.locator("#single-label")
    await expect(label.locator("h2")).to_have_text("긍정")
    await expect(label).to_contain_text(f"{round(100 * expected['confidence'])}%")
    await expect(label).to_contain_text("부정")
    facts = page.locator("#single-facts")
    await expect(facts).to_contain_text("답한 모델: 버전 1")
    await expect(facts).to_contain_text(f"토큰 {expected['input_tokens']}개, 끝까지 읽었어요")
    await expect(facts).to_contain_text("ms 걸렸어요 (토큰 나누기")


async def test_a_text_longer_than_the_model_reads_is_said_to_be_cut(page_of):
    page = await page_of("en")
    await ask(page, "영화 " * 100)
    await expect(page.locator("#single-facts")).to_contain_text("only its first 32 tokens were read")
    await expect(page.locator("#single-label h2")).to_have_text("negative")


async def test_the_words_show_what_they_weigh(page_of):
    page = await page_of("ko")
    await ask(page, "영화 정말 좋다 좋다 지루")
    weighed = re.compile(r"정말\s*[+-]\d+\s*좋다\s*\+\d+\s*좋다\s*\+\d+\s*지루\s*-\d+")
    await expect(page.locator("#single-weights")).to_contain_text(weighed)
    await page.locator("#single-more button").first.click()
    await expect(page.locator("#single-figures tbody tr").first).to_contain_text("좋다")  # the heaviest one
    await ask(page, "좋다")
    await expect(page.locator("#single-weights-status")).to_contain_text("낱말이 하나뿐이라")
    await ask(page, "좋다 " * 201 + "가" * 400)
    await expect(page.locator("#single-weights-status")).to_contain_text("1,000자까지만 재요. 지금은 1,003자")


async def test_typing_asks_once_it_rests_and_the_answer_is_of_the_last_text(page_of, shared_app):
    page = await page_of("ko")
    shared_app.predict("영화")  # so that there is something to count from
    before = asked_alone(shared_app)
    await page.locator("#single-text textarea").press_sequentially(
        "영화 정말 싫다 지루 최악 그래도 결국은 좋다", delay=20
    )
    await expect(page.locator("#single-weights")).to_contain_text(re.compile(r"결국은.*좋다"))
    await expect(page.locator("#single-label h2")).to_have_text("부정")
    assert asked_alone(shared_app) - before <= 5  # of 24 changes
    await page.locator("#single-past button").first.click()
    await expect(page.locator("#single-history")).to_contain_text("결국은 좋다")
    await expect(page.locator("#single-history")).not_to_contain_text(re.compile("결국은$"))
    await page.locator("#single-text textarea").fill("")
    await expect(page.locator("#single-status")).to_have_text("글을 적으면 여기에 답이 나와요.")
    await expect(page.locator("#single-label h2")).to_have_count(0)


async def test_a_text_that_arrives_late_does_not_take_the_place_of_a_newer_one(page_of, shared_app):
    page = await page_of("ko")
    shared_app.predict("영화")  # so that there is something to count from
    newer_is_there = asyncio.Event()
    late = []

    async def delayed(route):
        if "지루" in (route.request.post_data or ""):
            await newer_is_there.wait()
            late.append(route)
        await route.continue_()

    await page.route("**/queue/join*", delayed)
    text = page.locator("#single-text textarea")
    await text.fill("영화 지루")
    await text.fill("영화 좋다")
    await expect(page.locator("#single-label h2")).to_have_text("긍정")
    await expect(page.locator("#single-weights")).to_contain_text("+")
    before = asked_alone(shared_app)
    newer_is_there.set()
    await page.wait_for_timeout(1500)
    assert late
    assert asked_alone(shared_app) == before
    await expect(page.locator("#single-label h2")).to_have_text("긍정")


async def test_what_arrives_in_one_burst_is_shown_whole(page_of):
    """A busy browser takes only the last of several changes: every change must hold all that was said before."""
    page = await page_of("ko")
    await page.locator("#single-past button").first.click()
    await page.locator("#single-live input").uncheck()

    async def held_back(route):
        await route.fulfill(response=await route.fetch())  # which waits for the end of the stream

    await page.route("**/queue/data*", held_back)
    await ask(page, "영화 정말 좋다")
    await expect(page.locator("#single-label h2")).to_have_text("긍정")
    await expect(page.locator("#single-weights")).to_contain_text("+")
    await expect(page.locator("#single-history")).to_contain_text("영화 정말 좋다")
    await expect(page.locator("#single-download")).to_be_enabled()


async def test_without_live_reading_only_the_button_asks(page_of, shared_app):
    page = await page_of("ko")
    await ask(page, "영화 좋다")
    await expect(page.locator("#single-weights")).to_contain_text("+")
    await page.locator("#single-live input").uncheck()
    before = asked_alone(shared_app)
    await page.locator("#single-text textarea").fill("영화 지루")
    await page.wait_for_timeout(800)
    assert asked_alone(shared_app) == before
    await expect(page.locator("#single-label h2")).to_have_text("긍정")  # of the text before, still there
    await page.locator("#single-ask").click()
    await expect(page.locator("#single-label h2")).to_have_text("부정")


async def test_an_example_is_read_when_it_is_picked(page_of):
    page = await page_of("ko")
    await page.locator("#single-examples button").nth(3).click()
    await expect(page.locator("#single-text textarea")).to_have_value("이 가격에 이 정도면 대박")
    await expect(page.locator("#single-label h2")).to_be_visible()


async def test_the_history_of_the_visit_can_be_taken_along_and_is_safe_in_a_spreadsheet(page_of, shared_app, tmp_path):
    page = await page_of("ko")
    await page.locator("#single-past button").first.click()
    await expect(page.locator("#single-download")).to_be_disabled()
    for text in ("영화 좋다", "=1+1 지루"):
        await ask(page, text)
        await expect(page.locator("#single-history tbody tr").first).to_contain_text(text)
    await expect(page.locator("#single-history")).to_contain_text("영화 좋다")
    asked = asked_alone(shared_app)
    await page.locator("#single-ask").click()  # the same text once more: no row more
    while asked_alone(shared_app) == asked:
        await page.wait_for_timeout(100)
    await page.wait_for_timeout(500)
    async with page.expect_download() as download:
        await page.locator("#single-download").click()
    file = tmp_path / (await download.value).suggested_filename
    await (await download.value).save_as(file)
    assert file.name == "nunchi-history.csv"
    titles, latest, first = csv.reader(file.read_text(encoding="utf-8-sig").splitlines())
    assert titles == ["시각", "글", "답", "확신 (%)", "버전"]
    assert latest[1:3] == ["'=1+1 지루", "부정"]
    assert first[1:3] == ["영화 좋다", "긍정"]
    await page.reload()
    await page.locator("#single-past button").first.click()
    await expect(page.locator("#single-past")).not_to_contain_text("영화 좋다")


async def test_markup_in_a_text_is_shown_and_never_rendered(page_of):
    page = await page_of("ko")
    await page.locator("#single-past button").first.click()
    await page.locator("#single-more button").first.click()
    await ask(page, MARKUP)
    await expect(page.locator("#single-weights")).to_contain_text("<b>영화</b>")
    await expect(page.locator("#single-history")).to_contain_text("onerror")
    await expect(page.locator("#single-figures")).to_contain_text("<b>영화</b>")
    assert await page.locator("#tab-single img, #tab-single b").count() == 0


def test_a_notice_is_text_whatever_is_in_it():
    assert notice("<b>&", "alert") == '<p class="notice alert" role="alert">&lt;b&gt;&amp;</p>'
    assert notice("") == ""


@pytest.fixture
async def gateway(shared_app):
    async with Gateway(Settings(gateway_url=shared_app.url)) as gateway:
        yield gateway


@pytest.mark.parametrize("text", ["영화 좋다", "  영화\n\n좋다 ", "한낱말", "가 " * 500, ""])
def test_the_pieces_of_a_text_are_the_text(text):
    assert "".join(pieces(text)) == text
    assert len(pieces(text)) <= 40


async def test_a_weight_is_what_the_answer_loses_without_the_word(gateway, shared_app):
    whole, without = (shared_app.predict(text, return_probs=True).json() for text in ("영화 좋다 재미", "영화 재미"))
    weighted = dict(await weigh(gateway, "영화 좋다 재미", "positive"))
    loss = whole["probs"]["positive"] - without["probs"]["positive"]
    assert weighted["좋다 "] == pytest.approx(loss, abs=1e-3)
    assert dict(await weigh(gateway, "영화 좋다 재미", "negative"))["좋다 "] == pytest.approx(-loss, abs=1e-3)


async def test_a_word_without_which_nothing_is_left_to_read_has_no_weight(gateway):
    assert await weigh(gateway, "좋다 <br>", "positive") == [("좋다 ", None), ("<br>", pytest.approx(0, abs=1e-3))]
