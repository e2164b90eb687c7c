"""모델 in the browser: what is known of each version, Champion against Candidate, and what an admin may do."""

import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from export.publish import open_stage
from export.release import load_beside
from gateway.versions import Versions
from tests.export.live import House, lay, running_house
from tests.gateway.served_app import ServedApp, served_app
from tests.ui.mortal_gateway import mortal_gateway
from tests.ui.served_page import served_page
from tests.ui.shown_table import shown_rows
from ui.models import WORDS, facts_table, versions_table
from ui.words import Words

pytestmark = pytest.mark.anyio

ADMIN_KEY = "an-admin-key-of-the-tests"
SHIPPED = Path(__file__).resolve().parent.parent.parent / "model_repository"
GOOD, BAD = "영화가 좋다 최고", "정말 별로 최악"
IN_DOUBT = "별로 영화 배우 연기 이 정말 다시 보고 싶은 는 가"  # version 2 says negative, version 3 positive
OPERATION_SECONDS = 60


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Versions 1 and 2 are loaded, 2 serves."""
    with running_house(tmp_path_factory.mktemp("models")) as house:
        house.release()
        yield house


@pytest.fixture
def app(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedApp]:
    monkeypatch.setenv("NUNCHI_VAR", str(house.triton.var_dir))
    with served_app(house.repository, house.triton.grpc_port, admin_key=ADMIN_KEY) as app:
        yield app


@pytest.fixture
async def url(app: ServedApp, tmp_path: Path) -> AsyncIterator[str]:
    with served_page(app.url, tmp_path) as url:
        yield url


@pytest.fixture
def candidate(house: House) -> str:
    """The version on trial; started unless there is one."""
    if not house.serving.get("candidate"):
        with open_stage(house.repository) as stage:
            lay(stage.version_folder, stage.version)
            load_beside(stage, house.settings, "shadow", 0.5)
    return str(house.serving["candidate"]["version"])


async def open_models(page: Page, name: str = "모델") -> None:
    await page.get_by_role("tab", name=name, exact=True).click()


async def unlock(page: Page, key: str = ADMIN_KEY) -> None:
    await page.locator("#operations-key input").fill(key)
    await page.locator("#operations-open").click()


async def operate(page: Page, what: str) -> None:
    await page.locator(f"#operations-{what}").click()
    await page.locator("#operations-yes").click()


async def test_the_figures_of_the_shipped_model_are_those_of_its_manifest():
    (folder,) = (SHIPPED / "sentiment").glob("[0-9]*")
    listed = await Versions(SHIPPED).listed("sentiment", folder.name, None)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    model = {"version": folder.name, "since": "2026-11-22T18:02:45.550+00:00", "candidate": None}
    table = facts_table(Words("ko", WORDS), model, listed)
    assert table["headers"] == ["항목", f"버전 {folder.name} · 지금 답해요"]
    facts = dict(table["data"])
    assert facts["언제부터"] == "2026-11-22 18:02 UTC"
    assert facts["정확도 (95% 구간)"].startswith(f"{manifest['metrics']['accuracy']:.2%} (")
    assert facts["내보내기 전과 답이 같은 비율"] == f"{manifest['parity']['label_agreement']:.2%}"
    assert facts["확률이 가장 많이 달라진 폭"] == f"{100 * manifest['parity']['max_probability_shift']:.2f} %p"
    assert facts["답의 종류"] == "부정, 긍정"


async def test_a_broken_version_is_listed_with_what_is_wrong(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "repository")
    (folder,) = (tmp_path / "repository" / "sentiment").glob("[0-9]*")
    (folder / "model.onnx").unlink()
    listed = await Versions(tmp_path / "repository").listed("sentiment", "9", None)
    table = versions_table(Words("en", WORDS), listed)
    (row,) = table["data"]
    assert row[0] == folder.name
    assert re.match(r"broken: .*model\.onnx is not there", row[1])


@pytest.mark.parametrize(
    ("language", "tab", "now", "states"),
    [
        ("ko", "모델", "버전 2 · 지금 답해요", ["지금 답해요", "되돌리면 이 버전"]),
        ("en", "Models", "Version 2 · answers now", ["answers now", "a rollback goes here"]),
    ],
)
async def test_the_tab_says_what_answers_and_what_there_is(page_of, url, language, tab, now, states):
    page = await page_of(language, url=url)
    await open_models(page, tab)
    await expect(page.locator("#models-now")).to_contain_text(now)
    await expect(page.locator("#models-now")).to_contain_text("tiny")
    rows = await shown_rows(page.locator("#models-versions"), 2)
    assert [row[:2] for row in rows] == [["2", states[0]], ["1", states[1]]]
    await expect(page.locator("#compare-ask")).to_have_count(0)  # nobody is on trial


async def test_without_a_key_the_controls_are_not_there_and_no_wrong_key_opens_them(page_of, url):
    page = await page_of("ko", url=url)
    await open_models(page)
    for key, sentence in (
        ("", "관리자 키를 적어 주세요."),
        ("눈치눈치눈치눈치눈치눈치눈치눈치", "빈칸 없는 영문자"),
        ("a-wrong-key-of-the-tests", "권한이 없어요. 관리자 키(NUNCHI_ADMIN_KEY)를 확인해 주세요."),
    ):
        await unlock(page, key)
        await expect(page.locator("#operations-status")).to_contain_text(sentence)
        for what in ("promote", "rollback", "candidate-start", "candidate-end"):
            await expect(page.locator(f"#operations-{what}")).to_have_count(0)


async def test_a_gateway_without_an_admin_key_lets_nobody_in_and_names_the_setting(page_of):
    page = await page_of("en")
    await open_models(page, "Models")
    await unlock(page)
    await expect(page.locator("#operations-status")).to_contain_text("NUNCHI_ADMIN_KEY")
    await expect(page.locator("#operations-promote")).to_have_count(0)


async def test_a_rollback_is_confirmed_and_shown_and_one_who_says_no_has_done_nothing(page_of, app, url, house, caplog):
    caplog.set_level("INFO", logger="ui.operations")
    page = await page_of("ko", url=url)
    await open_models(page)
    await unlock(page)
    await expect(page.locator("#operations-promote")).to_be_disabled()  # there is no candidate
    await expect(page.locator("#operations-key")).to_have_count(0)
    before = house.serving

    await page.locator("#operations-rollback").click()
    await expect(page.locator("#operations-question")).to_contain_text(
        f"버전 {before['version']} 대신 이전 버전({before['previous']})에게 모든 요청을 다시 맡겨요."
    )
    await page.locator("#operations-no").click()
    await expect(page.locator("#operations-yes")).to_have_count(0)
    assert house.serving == before

    await operate(page, "rollback")
    await expect(page.locator("#operations-status")).to_have_text(
        "‘이전 버전으로 되돌리기’ 작업이 끝났어요.", timeout=OPERATION_SECONDS * 1000
    )
    await expect(page.locator("#models-now")).to_contain_text(f"버전 {before['previous']} · 지금 답해요")
    await expect(page.locator("#operations-record textarea")).to_have_value(re.compile("the gateway answers with it"))
    (row,) = await shown_rows(page.locator("#operations-history"), 1)
    assert row[:2] == ["이전 버전으로 되돌리기", "끝남"]
    assert app.predict(GOOD).json()["model_version"] == str(before["previous"])
    assert re.search(r"rollback \{\} begins as \w+, asked for by visit \w+ of 127\.0\.0\.1", caplog.text)
    assert ADMIN_KEY not in caplog.text

    await operate(page, "rollback")  # as before
    await expect(page.locator("#models-now")).to_contain_text(
        f"버전 {before['version']} · 지금 답해요", timeout=OPERATION_SECONDS * 1000
    )


async def test_a_command_that_fails_shows_why(page_of, url):
    page = await page_of("ko", url=url)
    await open_models(page)
    await unlock(page)
    await page.locator("#operations-mode").get_by_label("카나리아").check()
    await page.locator("#operations-candidate-start").click()
    await expect(page.locator("#operations-question")).to_contain_text(
        "방식: 카나리아 (요청의 일부에 실제로 답하기), 요청의 20%."
    )
    await page.locator("#operations-yes").click()
    await expect(page.locator("#operations-status")).to_contain_text("실패했어요", timeout=OPERATION_SECONDS * 1000)
    await expect(page.locator("#operations-record textarea")).to_have_value(re.compile("has no Candidate"))


async def test_champion_and_candidate_answer_the_same_sentences_and_differ_where_they_do(
    page_of, app, url, house, candidate, serious_findings
):
    live = str(house.serving["version"])
    page = await page_of("ko", url=url)
    await open_models(page)
    await expect(page.locator("#models-now")).to_contain_text(f"버전 {candidate} · 후보")
    await expect(page.locator("#models-now")).to_contain_text("그림자: 요청의 50%를 따라 읽어요")
    await page.locator("#compare-texts textarea").fill(f"{GOOD}\n\n  {IN_DOUBT}\n{BAD}\n")
    await page.locator("#compare-ask").click()
    await expect(page.locator("#compare-status")).to_contain_text("3문장 가운데 1문장에서 답이 달라요.")
    rows = await shown_rows(page.locator("#compare-result"), 3)
    assert rows[0][0] == IN_DOUBT
    assert {row[0] for row in rows[1:]} == {GOOD, BAD}
    assert [rows[0][place] for place in (1, 3, 6)] == ["부정", "긍정", "달라요"]
    for row in rows:
        for place, version in ((1, live), (3, candidate)):
            answer = app.client.post("/v1/predict", json={"text": row[0]}, headers={"x-ask-version": version}).json()
            assert (row[place], float(row[place + 1])) == (answer["label"], round(100 * answer["confidence"], 1))

    await page.locator("#compare-differing").get_by_role("checkbox").check()
    assert [row[0] for row in await shown_rows(page.locator("#compare-result"), 1)] == [IN_DOUBT]

    await unlock(page)
    await expect(page.locator("#operations-promote")).to_be_enabled()
    await page.locator("#operations-promote").click()
    await expect(page.locator("#operations-yes")).to_be_visible()
    assert await serious_findings(page) == []
    await page.set_viewport_size({"width": 320, "height": 800})
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320


async def test_what_cannot_be_compared_says_which_sentence_and_why(page_of, url, candidate):
    page = await page_of("ko", url=url)
    await open_models(page)
    for written, sentence in (
        (" \n ", "한 줄에 하나씩 적어 주세요."),
        (f"{GOOD}\n\u200b", "2번째 문장: 읽을 글이 없어요."),
        ("좋다\n" * 501, "한 번에 500줄까지 비교해요. 지금은 501줄"),
    ):
        await page.locator("#compare-texts textarea").fill(written)
        await page.locator("#compare-ask").click()
        await expect(page.locator("#compare-status")).to_contain_text(sentence)


async def test_an_admin_ends_a_trial(page_of, app, url, house, candidate):
    page = await page_of("en", url=url)
    await open_models(page, "Models")
    await unlock(page)
    await operate(page, "candidate-end")
    await expect(page.locator("#operations-status")).to_contain_text(
        "Done: End the trial", timeout=OPERATION_SECONDS * 1000
    )
    await expect(page.locator("#compare-ask")).to_have_count(0)
    await expect(page.locator("#operations-candidate-end")).to_be_disabled()
    assert house.serving.get("candidate") is None


async def test_a_gateway_that_went_away_is_said_and_found_again(page_of, house, tmp_path):
    with (
        mortal_gateway(house.repository, house.triton.grpc_port) as gateway,
        served_page(gateway.url, tmp_path) as url,
    ):
        page = await page_of("ko", url=url)
        gateway.kill()
        await open_models(page)
        await expect(page.locator("#models-status")).to_contain_text("게이트웨이에 연결할 수 없어요")
        gateway.start()
        await page.locator("#models-refresh").click()
        await expect(page.locator("#models-now")).to_contain_text("지금 답해요")
