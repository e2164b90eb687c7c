"""의견 in the browser: what a click stores, that nothing is stored without it, and whose opinions one sees."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.bundles import write_bundle
from tests.gateway.served_app import served_app
from tests.triton_process import running_triton
from tests.ui.served_page import served_page
from tests.ui.shown_table import shown_rows

pytestmark = pytest.mark.anyio

GOOD = "영화가 좋다"  # tests/bundles.py finds it positive


@pytest.fixture
def var(tmp_path: Path) -> Path:
    return tmp_path / "var"


@pytest.fixture
async def url(shared_app, var):  # in the tests' event loop: Gradio would make one of its own and not close it
    with served_page(shared_app.url, var) as url:
        yield url


async def ask(page, text):
    await page.locator("#single-text textarea").fill(text)
    await page.locator("#single-ask").click()
    await expect(page.locator("#single-wrong")).to_be_visible()


async def send(page, text, label, name=""):
    await ask(page, text)
    await page.locator("#single-wrong").click()
    await page.locator("#single-opinion-label").get_by_label(label, exact=True).check()
    await page.locator("#single-opinion-name input, #single-opinion-name textarea").fill(name)
    await page.locator("#single-opinion-send").click()
    await expect(page.locator("#single-opinion-send")).to_have_count(0)


async def own_opinions(page, count, tab="의견"):
    """The texts that the tab lists, from top to bottom."""
    await page.get_by_role("tab", name=tab).click()
    return [row[1] for row in await shown_rows(page.locator("#feedback-list"), count)]


def stored(var):
    with closing(sqlite3.connect(var / "feedback.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM opinions ORDER BY id")]


async def test_a_click_stores_the_answer_and_what_the_person_says_and_nothing_is_stored_before(page_of, url, var):
    page = await page_of("ko", url=url)
    await expect(page.locator("#single-wrong")).to_have_count(0)
    await ask(page, GOOD)
    await page.locator("#single-wrong").click()
    await expect(page.locator("#single-opinion")).to_contain_text("이 서버에 저장해요")
    await expect(page.locator("#single-opinion-text textarea")).to_have_value(GOOD)
    await expect(page.locator("#single-opinion-label").get_by_label("부정")).to_be_checked()  # the only other one
    await page.locator("#single-opinion-name").get_by_role("textbox").fill(" 김\t민지 ")
    assert not var.exists() or list(var.iterdir()) == []
    await page.locator("#single-opinion-send").click()
    await expect(page.locator("#single-opinion-notice")).to_have_text("고마워요. 의견을 저장했어요.")
    await expect(page.locator("#single-opinion-send")).to_have_count(0)
    (row,) = stored(var)
    assert 0.5 < row.pop("confidence") <= 1
    assert len(row.pop("visit")) > 5
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(row.pop("at")) < timedelta(minutes=1)
    assert row == {
        "id": 1, "text": GOOD, "answer": "positive", "version": "1", "label": "negative",
        "name": "김 민지", "language": "ko",
    }  # fmt: skip


async def test_whoever_stops_stores_nothing(page_of, url, var):
    page = await page_of("ko", url=url)
    await ask(page, GOOD)
    await page.locator("#single-wrong").click()
    await page.locator("#single-opinion-cancel").click()
    await expect(page.locator("#single-opinion-send")).to_have_count(0)
    assert not var.exists() or list(var.iterdir()) == []


async def test_the_form_stays_with_the_answer_it_was_opened_for(page_of, url, var):
    page = await page_of("en", url=url)
    await ask(page, GOOD)
    await page.locator("#single-wrong").click()
    await expect(page.locator("#single-opinion-label").get_by_label("negative")).to_be_checked()
    await ask(page, "정말 별로")
    await page.locator("#single-opinion-send").click()
    await expect(page.locator("#single-opinion-notice")).to_have_text("Thank you. Your opinion is stored.")
    (row,) = stored(var)
    assert (row["text"], row["answer"], row["label"], row["language"]) == (GOOD, "positive", "negative", "en")


async def test_each_visit_sees_its_own_opinions_as_plain_text_and_can_delete_them(page_of, url, var):
    evil = '<img src="x" onerror="document.title=1"> **좋다**'
    one, other = await page_of("ko", url=url), await page_of("en", url=url)
    await send(one, GOOD, "부정", "민지")
    await send(one, evil, "부정", "<b>민지</b>")
    await send(other, "정말 별로", "positive", "민지")
    assert await own_opinions(one, 2) == [evil, GOOD]
    assert await own_opinions(other, 1, "Opinions") == ["정말 별로"]
    assert await one.locator("#feedback-list img, #feedback-list b").count() == 0
    await expect(one.locator("#feedback-notice")).to_have_text("의견 2개를 보냈어요.")

    await one.locator("#feedback-withdraw").click()
    await expect(one.locator("#feedback-notice")).to_have_text("의견 2개를 지웠어요.")
    await expect(one.locator("#feedback-list")).to_have_count(0)
    assert [row["text"] for row in stored(var)] == ["정말 별로"]


async def test_an_opinion_that_cannot_be_stored_is_not_called_stored_and_can_be_sent_again(page_of, url, var):
    (var / "feedback.sqlite3").mkdir(parents=True)
    page = await page_of("ko", url=url)
    await ask(page, GOOD)
    await page.locator("#single-wrong").click()
    await page.locator("#single-opinion-send").click()
    await expect(page.locator("#single-opinion-notice")).to_contain_text("저장하지 못했어요")
    await page.get_by_role("tab", name="의견").click()
    await expect(page.locator("#feedback-notice")).to_contain_text("읽거나 지우지 못했어요")

    (var / "feedback.sqlite3").rmdir()
    await page.get_by_role("tab", name="한 문장").click()
    await page.locator("#single-opinion-send").click()
    await expect(page.locator("#single-opinion-notice")).to_have_text("고마워요. 의견을 저장했어요.")
    assert len(stored(var)) == 1


async def test_of_three_labels_the_person_has_to_choose_one(page_of, tmp_path, var):
    write_bundle(tmp_path / "model_repository", labels=3)
    with (
        running_triton(tmp_path / "model_repository", tmp_path) as triton,
        served_app(tmp_path / "model_repository", triton.grpc_port) as app,
        served_page(app.url, var) as url,
    ):
        page = await page_of("ko", url=url)
        await ask(page, GOOD)
        await page.locator("#single-wrong").click()
        await page.locator("#single-opinion-send").click()
        await expect(page.locator("#single-opinion-notice")).to_have_text("느낌을 하나 고른 다음 보내 주세요.")
        await page.locator("#single-opinion-label").get_by_label("중립").check()
        await page.locator("#single-opinion-send").click()
        await expect(page.locator("#single-opinion-notice")).to_have_text("고마워요. 의견을 저장했어요.")
        assert [(row["answer"], row["label"]) for row in stored(var)] == [("positive", "neutral")]


@pytest.mark.parametrize(("language", "wrong", "tab"), [("ko", "부정", "의견"), ("en", "negative", "Opinions")])
async def test_the_form_and_the_list_are_accessible_and_fit_a_phone(
    page_of, url, serious_findings, language, wrong, tab
):
    page = await page_of(language, url=url)
    await send(page, GOOD, wrong)
    await page.locator("#single-wrong").click()
    await expect(page.locator("#single-opinion-send")).to_be_visible()
    for shown in ("the form", "the list"):
        if shown == "the list":
            assert await own_opinions(page, 1, tab) == [GOOD]
        assert await serious_findings(page) == [], shown
        await page.set_viewport_size({"width": 320, "height": 640})
        assert await page.evaluate("document.documentElement.scrollWidth") <= 320, shown
        await page.set_viewport_size({"width": 1280, "height": 900})
