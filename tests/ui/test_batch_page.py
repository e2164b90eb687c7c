"""The tab 여러 문장 in a browser: lines and files in, a run that is paused, cut off and cancelled, results out."""

import csv
import io
import time
from pathlib import Path

import pytest
from openpyxl import load_workbook
from playwright.async_api import Locator, Page, expect

from tests.ui.conftest import dated_reviews
from tests.ui.mortal_gateway import mortal_gateway
from tests.ui.served_page import served_page

pytestmark = pytest.mark.anyio

WORDS = ["좋다", "싫다", "재미", "지루"]
TAB = {"ko": "여러 문장", "en": "Many sentences"}
LONG = 40_000  # rows: seconds of work, time enough to interfere


def texts_of(count: int) -> list[str]:
    return [f"{WORDS[place % len(WORDS)]} {place}" for place in range(count)]


def file_of(folder: Path, count: int, name: str = "reviews.txt") -> Path:
    (folder / name).write_text("\n".join(texts_of(count)), encoding="utf-8")
    return folder / name


async def open_tab(page: Page, language: str = "ko") -> None:
    await page.get_by_role("tab", name=TAB[language], exact=True).click()
    await page.locator("#batch-start").wait_for()


async def upload(page: Page, file: Path) -> None:
    await page.locator("#batch-source input[value=file]").check()
    await page.locator("#batch-file input[type=file]").set_input_files(file)


async def read_all(page: Page) -> None:
    await page.locator("#batch-start").click()
    await expect(page.locator("#batch-results")).to_be_visible()


async def column(page: Page, place: int) -> list[str]:
    """The cells of a column of the table, as far down as it is drawn."""
    return [each.strip() for each in await page.locator(f"#batch-rows [data-col='{place}']").all_inner_texts()]


async def downloaded(page: Page, button: str) -> tuple[str, bytes]:
    async with page.expect_download() as waiting:
        await page.locator(button).click()
    download = await waiting.value
    return download.suggested_filename, Path(await download.path()).read_bytes()


async def rows_of_csv(page: Page) -> list[dict[str, str]]:
    _, content = await downloaded(page, "#batch-csv")
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def assert_nothing_lost_or_doubled(rows: list[dict[str, str]], count: int) -> None:
    assert [row["A"] for row in rows] == texts_of(count)
    assert [row["느낌"] for row in rows] == [("긍정", "부정")[place % 2] for place in range(count)]


def status(page: Page) -> Locator:
    return page.locator("#batch-status")


@pytest.mark.parametrize(("language", "labels"), [("ko", ["긍정", "부정"]), ("en", ["positive", "negative"])])
async def test_pasted_lines_are_read_and_shown(page_of, serious_findings, language: str, labels: list[str]) -> None:
    page = await page_of(language)
    await open_tab(page, language)
    assert await serious_findings(page) == []
    await page.locator("#batch-lines textarea").fill("좋다 최고\n\n싫다 <b>최악</b>\n\u200b")
    await read_all(page)
    await expect(page.locator("#batch-rows [data-col='0']")).to_have_count(3)
    assert await column(page, 0) == ["1", "3", "4"]
    assert await column(page, 1) == [*labels, ""]
    assert (await column(page, 3))[1] == "싫다 <b>최악</b>"  # shown, not rendered
    await expect(status(page)).to_contain_text("4")
    assert await serious_findings(page) == []


async def test_a_file_is_uploaded_its_columns_chosen_and_deleted(page_of, tmp_path: Path) -> None:
    content = (
        '날짜,메모,리뷰\n2026-01-01,좋다,싫다\n2026-01-02,"닫지 않은,재미\n2026-01-03,좋다,지루\n2026-01-04,좋다,\n'
    )
    file = tmp_path / "리뷰 파일.csv"
    file.write_bytes(content.encode("cp949"))
    page = await page_of("ko")
    await open_tab(page)
    await upload(page, file)
    await expect(status(page)).to_contain_text("CP949")
    await expect(status(page)).to_contain_text("따로 두었어요: 3")
    await expect(page.locator("#batch-text-column input")).to_have_value("리뷰")
    await expect(page.locator("#batch-date-column input")).to_have_value("날짜")
    address = await page.locator("#batch-file a").first.get_attribute("href")
    assert (await page.request.get(address)).status in (403, 404)  # the upload is gone
    await read_all(page)
    await expect(page.locator("#batch-over-time")).to_be_visible()
    assert await column(page, 1) == ["부정", "", "부정", ""]
    assert await column(page, 4) == ["", '큰따옴표(")의 짝이 맞지 않아요', "", "글이 비어 있어요"]
    await page.locator("#batch-text-column input").click()
    await page.get_by_role("option", name="메모").click()
    await page.locator("#batch-start").click()
    await expect(page.locator("#batch-rows [data-col='1']").first).to_have_text("긍정")


async def test_a_file_that_is_not_read_says_what_to_do(page_of, tmp_path: Path) -> None:
    page = await page_of("ko")
    await open_tab(page)
    (tmp_path / "reviews.csv").write_bytes("좋다\n싫다".encode("utf-16"))
    await upload(page, tmp_path / "reviews.csv")
    await expect(status(page).get_by_role("alert")).to_contain_text("UTF-8")
    await page.locator("#batch-source input[value=lines]").check()
    await page.locator("#batch-start").click()
    await expect(status(page).get_by_role("alert")).to_contain_text("읽을 줄이 없어요")


async def test_results_are_filtered_sorted_and_turned_over(page_of, tmp_path: Path) -> None:
    page = await page_of("ko")
    await open_tab(page)
    await upload(page, file_of(tmp_path, 1000))
    await read_all(page)
    await expect(page.locator("#batch-found")).to_contain_text("1,000줄 가운데 1-100줄 (10쪽)")
    await page.locator("#batch-page input").fill("10")
    await expect(page.locator("#batch-found")).to_contain_text("901-1,000줄")
    await page.locator("#batch-filter-label").get_by_label("긍정").uncheck()
    await expect(page.locator("#batch-found")).to_contain_text("500줄 가운데 1-100줄")
    await page.locator("#batch-filter-text input").fill("지루 99")
    await page.keyboard.press("Enter")
    await expect(page.locator("#batch-found")).to_contain_text("4줄 가운데 1-4줄")  # 99, 991, 995 and 999
    await page.locator("#batch-filter-text input").fill("")
    await page.keyboard.press("Enter")
    await expect(page.locator("#batch-found")).to_contain_text("500줄 가운데")
    await page.locator("#batch-sort input").click()
    await page.get_by_role("option", name="확신이 낮은 것부터").click()
    await expect(page.locator("#batch-rows [data-col='3']").first).to_have_text("지루 3")
    await page.locator("#batch-filter-confidence input").fill("10")
    await expect(page.locator("#batch-found")).to_contain_text("조건에 맞는 줄이 없어요")


async def test_the_download_is_complete_and_harmless(page_of) -> None:
    texts = ["=1+1 좋다", "싫다, 정말", "재미 👍"]
    page = await page_of("ko")
    await open_tab(page)
    await page.locator("#batch-lines textarea").fill("\n".join(texts))
    await read_all(page)
    rows = await rows_of_csv(page)
    assert [row["A"] for row in rows] == ["'=1+1 좋다", *texts[1:]]
    assert [row["느낌"] for row in rows] == ["긍정", "부정", "긍정"]
    assert all(float(row["확률 positive"]) + float(row["확률 negative"]) == pytest.approx(1, abs=1e-5) for row in rows)
    assert {row["버전"] for row in rows} == {"1"}
    name, content = await downloaded(page, "#batch-xlsx")
    assert name == "눈치-결과.xlsx"
    sheet = load_workbook(io.BytesIO(content)).active
    assert [row[1].value for row in sheet.iter_rows(min_row=2)] == texts
    assert {row[1].data_type for row in sheet.rows} == {"s"}


async def test_a_selected_row_can_be_called_wrong(page_of) -> None:
    page = await page_of("ko")
    await open_tab(page)
    await page.locator("#batch-lines textarea").fill("좋다 최고\n싫다 최악")
    await read_all(page)
    await expect(page.locator("#batch-wrong")).to_be_hidden()
    await page.locator("#batch-rows [data-row='1'][data-col='3']").click()
    await expect(page.locator("#batch-selected")).to_contain_text("2번 줄: 부정")
    await expect(page.locator("#batch-wrong")).to_be_visible()


async def test_a_gateway_killed_in_the_middle_pauses_the_run_and_it_goes_on(
    page_of, shared_repository, shared_triton, tmp_path: Path
) -> None:
    with (
        mortal_gateway(shared_repository, shared_triton.grpc_port) as gateway,
        served_page(gateway.url, tmp_path) as url,
    ):
        page = await page_of("ko", url=url)
        await open_tab(page)
        await upload(page, file_of(tmp_path, LONG))
        await page.locator("#batch-start").click()
        await expect(status(page)).to_contain_text("남았어요")
        gateway.kill()
        await expect(status(page)).to_contain_text("게이트웨이와 연결이 끊겨")
        await expect(page.locator("#batch-results")).to_be_hidden()
        gateway.start()
        await expect(status(page)).to_contain_text("다 읽었어요", timeout=60_000)
        assert_nothing_lost_or_doubled(await rows_of_csv(page), LONG)


async def test_a_run_is_paused_cancelled_and_taken_up_again(page_of, tmp_path: Path) -> None:
    page = await page_of("ko")
    await open_tab(page)
    await upload(page, file_of(tmp_path, LONG))
    await page.locator("#batch-start").click()
    await page.locator("#batch-pause").click()
    await expect(status(page)).to_contain_text("잠시 멈췄어요")
    await page.locator("#batch-go-on").click()
    await page.locator("#batch-stop").click()
    await expect(status(page)).to_contain_text("그만뒀어요")
    rows = await rows_of_csv(page)
    assert len(rows) == LONG
    assert 0 < sum(row["느낌"] == "" for row in rows) < LONG
    await page.locator("#batch-go-on").click()
    await expect(status(page)).to_contain_text("다 읽었어요", timeout=60_000)
    assert_nothing_lost_or_doubled(await rows_of_csv(page), LONG)


async def test_works_by_keyboard_and_on_a_phone(page_of) -> None:
    page = await page_of("ko", width=320)
    await page.get_by_role("tab", name="한 문장").focus()
    await open_tab(page)
    await page.locator("#batch-lines textarea").focus()
    await page.keyboard.insert_text("좋다\n싫다")
    await page.keyboard.press("Tab")
    await expect(page.locator("#batch-start")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#batch-results")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.full
async def test_ten_thousand_reviews_are_read_in_a_moment(page_of, shipped_page, tmp_path: Path, capsys) -> None:
    page = await page_of("ko", url=shipped_page)
    await open_tab(page)
    await upload(page, dated_reviews(tmp_path, rows=10_000))
    await expect(page.locator("#batch-columns")).to_be_visible()
    began = time.monotonic()
    await page.locator("#batch-start").click()
    await expect(status(page)).to_contain_text("다 읽었어요", timeout=600_000)
    seconds = time.monotonic() - began
    assert len(await rows_of_csv(page)) == 10_000
    with capsys.disabled():
        print(f"\n10,000 reviews through the page, from the click to the last answer: {seconds:.1f} s")
