"""Collecting from a real local site over real HTTP: nothing lost, nothing twice, nobody bothered, nobody named."""

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.review_site import ITEM, LAYOUT, ReviewSite, made_up_reviews, made_up_text
from tests.training.collecting import COMMAND, ROOT, collected, crawl, ids, readable_folder, start_crawl
from training.config import DatasetConfig
from training.data import open_dataset

ALL_NUMBERED = {"kind": "number", "next": None, "newest_first": True}


def wait_for(condition, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def newer(reviews, count: int, seed: int):
    """So many reviews written after those, newest first."""
    day = datetime.fromisoformat(reviews[0].written_at) + timedelta(days=1)
    return made_up_reviews(count, seed=seed, newest=day.date().isoformat())


def test_a_crawl_brings_every_review_and_the_next_one_what_is_new_or_edited(tmp_path):
    reviews = made_up_reviews(3000)
    output = tmp_path / "out"
    with ReviewSite(list(reviews), page_size=50) as site:
        yaml = site.describe(tmp_path / "local.yaml")
        first = crawl(yaml, output)
        assert (first.code, first.said["new"], first.said["pages"]) == (0, 3000, 60), first.stderr
        assert ids(output) == sorted(review.review_id for review in reviews)
        assert {asked.headers["user-agent"] for asked in site.asked} == {"NunchiCollector/0.1 (+tests@example.org)"}
        assert site.asked[0].path == "/robots.txt"

        site.reviews[3].text = "다시 보니 처음과 달리 배우의 연기가 눈에 들어와서 별을 고쳐요"
        site.reviews[3].stars = 5
        fresh = newer(reviews, 30, seed=2)
        site.reviews = fresh + site.reviews
        second = crawl(yaml, output)
    said = second.said
    assert (second.code, said["new"], said["edited"], said["rejected"], said["alarm"]) == (0, 30, 1, {}, None)
    assert said["pages"] < 10  # it stopped where it knew everything
    assert said["folder"] == str(output)
    assert ids(output) == sorted(review.review_id for review in [*reviews, *fresh])
    rows = {row["review_id"]: row for row in collected(output)}
    assert rows[reviews[3].review_id]["document"] == reviews[3].text
    assert rows[reviews[3].review_id]["rating"] == 10
    assert all(row["day"] == row["written_at"].strftime("%Y-%m-%d") for row in rows.values())
    assert readable_folder(output) == 3030

    dataset = open_dataset(DatasetConfig(kind="collected", folder=output), cache=tmp_path)
    assert len(dataset.train()) + len(dataset.test()) == sum(row["label"] != "neutral" for row in rows.values())


def test_a_crawl_that_is_killed_at_any_moment_loses_no_review_and_takes_none_twice(tmp_path):
    reviews = made_up_reviews(2000, seed=3)
    output = tmp_path / "out"
    with ReviewSite(list(reviews), page_size=20, each_page=0.005) as site:
        yaml = site.describe(tmp_path / "local.yaml")
        for pages in (7, 31, 64):
            process = start_crawl(yaml, output)
            wait_for(lambda pages=pages: len(set(site.pages_asked)) >= pages, "so many pages were never asked")
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        assert len(ids(output)) < 2000
        last = crawl(yaml, output)
        assert "goes on" in last.stderr
        # Each run asks again for the page it was killed in and the one before; nothing else is asked twice.
        assert len(site.pages_asked) <= 100 + 3 * 2
        assert last.code == 0
        assert crawl(yaml, output).said["new"] == 0
    assert ids(output) == sorted(review.review_id for review in reviews)
    assert readable_folder(output) == 2000
    assert not list(output.rglob("*.part"))


def test_a_review_that_is_removed_while_a_crawl_was_dead_pushes_no_other_one_out(tmp_path):
    reviews = made_up_reviews(400, seed=4)
    with ReviewSite(list(reviews), each_page=0.02) as site:
        yaml = site.describe(tmp_path / "local.yaml")
        process = start_crawl(yaml, tmp_path / "out")
        wait_for(lambda: len(site.pages_asked) >= 9, "so many pages were never asked")
        process.kill()
        process.communicate()
        del site.reviews[5]
        assert crawl(yaml, tmp_path / "out").code == 0
    assert set(ids(tmp_path / "out")) >= {review.review_id for review in site.reviews}


def test_429_503_timeouts_and_cut_answers_are_tried_again_after_the_pause_that_was_asked_for(tmp_path):
    reviews = made_up_reviews(100, seed=5)
    with ReviewSite(list(reviews), retry_after="1") as site:
        yaml = site.describe(tmp_path / "local.yaml", limits={"timeout": 5, "tries": 6})
        site.faults["/reviews?page=2"] = ["503", "429"]
        site.faults["/reviews?page=3"] = ["hang", "cut"]
        site.faults["/reviews?page=4"] = ["500"]
        run = crawl(yaml, tmp_path / "out")
        moments = [asked.moment for asked in site.asked if asked.path == "/reviews?page=2"]
    assert (run.code, run.said["new"], run.said["broken_pages"]) == (0, 100, 0), run.stderr
    assert len(moments) == 3
    assert all(after - before >= 1 for before, after in pairwise(moments))
    assert ids(tmp_path / "out") == sorted(review.review_id for review in reviews)


def test_a_site_that_asks_for_a_long_rest_gets_it_and_the_next_run_goes_on(tmp_path):
    with ReviewSite(made_up_reviews(100, seed=6), retry_after="3600") as site:
        yaml = site.describe(tmp_path / "local.yaml")
        site.faults["/reviews?page=3"] = ["429"]
        refused = crawl(yaml, tmp_path / "out")
        assert (refused.code, refused.said["new"]) == (2, 40)
        assert "error: the site asks to be left alone for 3,600 s" in refused.stderr
        assert site.pages_asked[-1] == "/reviews?page=3"
        assert len(ids(tmp_path / "out")) == 40
        site.faults["/reviews?page=4"] = ["503"] * 5
        site.retry_after = None
        ill = crawl(yaml, tmp_path / "out", "--since", "2020-01-01")
        assert (ill.code, ill.said["duplicates"], ill.said["new"]) == (2, 40, 20)
        assert "answers HTTP 503 after 5 tries; what was collected stays" in ill.stderr
        whole = crawl(yaml, tmp_path / "out").said
    assert (whole["new"], whole["pages"]) == (40 + 40, 2 + 1 + 3)  # of the crawl that goes on; 20 had come meanwhile
    assert len(ids(tmp_path / "out")) == 100


@pytest.mark.parametrize(
    ("robots", "path", "asked"),
    [
        ((200, "User-agent: NunchiCollector\nDisallow: /private/\n"), "/private/reviews", []),
        ((503, ""), "/reviews", []),
        ((404, "Disallow: /"), "/reviews", ["/reviews"]),
    ],
    ids=["forbids", "cannot be had", "is not there"],
)
def test_robots_txt_is_obeyed(tmp_path, robots, path, asked):
    with ReviewSite(made_up_reviews(20), robots=robots) as site:
        run = crawl(site.describe(tmp_path / "local.yaml", start_urls=[site.url + path]), tmp_path / "out")
        assert site.pages_asked == asked
    assert run.code == (0 if asked else 2)
    assert asked or "robots.txt forbids it, or cannot be had" in run.stderr


def test_the_pause_of_the_site_s_own_robots_txt_is_kept(tmp_path):
    with ReviewSite(made_up_reviews(60), robots=(200, "User-agent: *\nCrawl-delay: 1\n")) as site:
        run = crawl(site.describe(tmp_path / "local.yaml", delays={"most": 0.1}), tmp_path / "out")
        moments = [asked.moment for asked in site.asked if asked.path != "/robots.txt"]
    assert run.said["new"] == 60
    assert moments[-1] - moments[0] >= 1.5  # two pauses; a busy machine may hear of the first page late


def test_a_site_that_was_slow_is_asked_more_slowly_for_a_while(tmp_path):
    with ReviewSite(made_up_reviews(60)) as site:
        site.faults["/reviews"] = ["slow"]
        run = crawl(site.describe(tmp_path / "local.yaml"), tmp_path / "out")
        moments = {asked.path: asked.moment for asked in site.asked}
    assert run.said["new"] == 60
    # AutoThrottle went to the 3 s that page 1 took, and half of the way back when page 2 came at once.
    assert moments["/reviews?page=3"] - moments["/reviews?page=2"] >= 0.75


def test_two_sites_are_collected_into_one_folder_at_one_time(tmp_path):
    reviews = made_up_reviews(200, seed=21)
    with ReviewSite(reviews[:100]) as first, ReviewSite(reviews[100:]) as second:
        yamls = [site.describe(tmp_path / f"{name}.yaml", name=name) for name, site in (("a", first), ("b", second))]
        processes = [start_crawl(yaml, tmp_path / "out") for yaml in yamls]
        said = [(process.communicate(timeout=300), process.returncode) for process in processes]
    assert [code for _, code in said] == [0, 0], said
    assert ids(tmp_path / "out") == sorted(review.review_id for review in reviews)
    assert {row["site"] for row in collected(tmp_path / "out")} == {"a", "b"}


def test_a_redirect_is_followed_on_the_site_and_not_away_from_it(tmp_path):
    reviews = made_up_reviews(20, seed=20)
    with ReviewSite(reviews) as site, ReviewSite(reviews) as foreign:
        moved = site.describe(tmp_path / "moved.yaml", start_urls=[f"{site.url}/to?{site.url}/reviews"])
        assert crawl(moved, tmp_path / "out").said["new"] == 20
        elsewhere = foreign.url.replace("127.0.0.1", "localhost")
        away = site.describe(tmp_path / "away.yaml", name="away", start_urls=[f"{site.url}/to?{elsewhere}/reviews"])
        run = crawl(away, tmp_path / "out")
        assert (run.code, foreign.asked) == (2, [])
    assert "is not read: " in run.stderr
    assert "robots" not in run.stderr


def test_pages_in_cp949_are_read_whether_they_do_not_say_so_or_say_otherwise(tmp_path):
    reviews = made_up_reviews(60, seed=7)
    reviews[0].text = "똠방각하 펲시콜라 같은 글자도 있는 재밌어요 영화"
    with ReviewSite(reviews) as site:
        for path, encoding in (("old", None), ("lying", "cp949")):
            yaml = site.describe(tmp_path / "local.yaml", start_urls=[f"{site.url}/{path}"], encoding=encoding)
            assert crawl(yaml, tmp_path / path).said["new"] == 60
            assert site.asked[-1].path == f"/{path}?page=3"
            documents = {row["review_id"]: row["document"] for row in collected(tmp_path / path)}
            assert documents[reviews[0].review_id] == reviews[0].text


def test_broken_pages_are_counted_and_kept_for_a_look_and_broken_reviews_have_their_reason(tmp_path):
    reviews = made_up_reviews(300, seed=8)
    reviews[5].stars = "없음"
    reviews[6].stars = 7
    reviews[7].text = "so boring that I fell asleep"
    reviews[8].text = "ㅋ"
    reviews[9].written_at = "어제"
    reviews[10].text = "문의는 010-1234-5678 또는 kim@example.com 정말 재밌어요"
    with ReviewSite(reviews, broken={4}) as site:
        start = f"{site.url}/reviews?page={{page}}"
        yaml = site.describe(tmp_path / "local.yaml", start_urls=[start], paging=ALL_NUMBERED)
        run = crawl(yaml, tmp_path / "out")
        asked = site.pages_asked
    assert run.code == 0, run.stderr
    assert (run.said["new"], run.said["broken_pages"]) == (300 - 20 - 5, 1)
    assert run.said["rejected"] == {
        "another language": 1,
        "no date in the site's format": 1,
        "no rating": 1,
        "stars outside the site's scale": 1,
        "too short": 1,
    }
    assert asked.count("/reviews?page=4") == 2  # it may have been an accident
    (kept,) = (tmp_path / "out" / "_broken" / "local").iterdir()
    assert gzip.decompress(kept.read_bytes()).decode() == '<html><body><xx xxxxx="xxxxx<xx <p>가 가가가가 <b>가가'
    documents = {row["review_id"]: row["document"] for row in collected(tmp_path / "out")}
    assert documents[reviews[10].review_id] == "문의는 또는 정말 재밌어요"


def test_a_changed_layout_raises_the_alarm_instead_of_an_empty_success(tmp_path):
    reviews = made_up_reviews(60, seed=9)
    changes = {
        "selectors.list": {"layout": LAYOUT.replace('class="reviews"', 'class="comments"')},
        "selectors.review": {"item": '<div data-id="{review_id}">{text}</div>'},
        "selectors.text": {"item": '<li data-id="{review_id}"><time datetime="{written_at}"></time>{text}</li>'},
    }
    with ReviewSite(list(reviews)) as site:
        yaml = site.describe(tmp_path / "local.yaml")
        assert crawl(yaml, tmp_path / "out").code == 0
        site.reviews = newer(reviews, 20, seed=10) + site.reviews
        for alarm, change in changes.items():
            site.layout, site.item = change.get("layout", LAYOUT), change.get("item", ITEM)
            changed = crawl(yaml, tmp_path / "out")
            assert changed.code == 3, changed.stderr
            assert alarm in changed.said["alarm"]
            assert f"alarm: {changed.said['alarm']}" in changed.stderr
            assert changed.said["new"] == 0
            assert len(ids(tmp_path / "out")) == 60
        site.layout, site.item = LAYOUT, ITEM
        assert crawl(yaml, tmp_path / "out").said["new"] == 20  # once it is mended


def test_a_list_that_is_honestly_empty_is_no_alarm(tmp_path):
    with ReviewSite([]) as site:
        run = crawl(site.describe(tmp_path / "local.yaml"), tmp_path / "out")
    assert (run.code, run.said["alarm"], run.said["new"]) == (0, None, 0)


def test_endless_pages_are_bounded_by_their_limit_and_circles_by_what_was_met_before(tmp_path):
    reviews = made_up_reviews(60, seed=11)
    with ReviewSite(reviews) as site:
        endless = site.describe(
            tmp_path / "endless.yaml", name="endless", start_urls=[f"{site.url}/endless"], limits={"pages": 25}
        )
        run = crawl(endless, tmp_path / "out")
        assert (run.code, run.said["pages"], len(site.pages_asked)) == (0, 25, 25)
        assert "limits.pages (25) is reached" in run.stderr
        site.asked.clear()
        circle = site.describe(tmp_path / "circle.yaml", name="circle", start_urls=[f"{site.url}/circle"])
        run = crawl(circle, tmp_path / "out")
        assert (run.code, run.said["new"], run.said["pages"]) == (0, 60, 6)
        assert "this list ends" in run.stderr


def test_the_same_text_posted_again_is_one_review_and_short_texts_of_many_people_stay(tmp_path):
    reviews = made_up_reviews(40, seed=12)
    long = max(reviews, key=lambda review: len(review.text))
    again, short, shorter = made_up_reviews(3, seed=13)
    again.text = f"{long.text.rstrip('!~ㅋㅠ ')}!!!! ㅋㅋㅋㅋㅋ"
    short.text = shorter.text = "정말 재밌어요"
    with ReviewSite([*reviews, again, short, shorter]) as site:
        run = crawl(site.describe(tmp_path / "local.yaml"), tmp_path / "out")
    assert (run.said["new"], run.said["near_duplicates"]) == (42, 1)
    assert again.review_id not in ids(tmp_path / "out")


def test_an_interval_holds_the_reviews_written_on_its_days_however_often_it_is_crawled(tmp_path):
    reviews = made_up_reviews(400, seed=14, newest="2026-11-29", per_day=100)
    output = tmp_path / "out"
    of_28 = sorted(review.review_id for review in reviews if review.written_at.startswith("2026-11-28"))
    with ReviewSite(list(reviews)) as site:
        yaml = site.describe(tmp_path / "local.yaml")
        for new in (100, 0):
            run = crawl(yaml, output, "--since", "2026-11-28", "--until", "2026-11-29")
            assert (run.code, run.said["new"], run.said["rejected"]) == (0, new, {})
            assert ids(output) == of_28
            assert [folder.name for folder in (output / "site=local").iterdir()] == ["day=2026-11-28"]
        assert run.said["pages"] <= 11  # two days and a page; not the older ones
        # What an interval brought in does not hide what is older from a crawl of everything.
        assert crawl(yaml, output).said["new"] == 300
    assert ids(output) == sorted(review.review_id for review in reviews)


def test_nobody_is_named_anywhere_in_a_collection(tmp_path):
    reviews = made_up_reviews(60, seed=15)
    for review, author in zip(reviews, ["남궁민수", "제갈공명", "남궁민수", *["독고영재"] * 57], strict=True):
        review.author = author
    output = tmp_path / "out"
    with ReviewSite(reviews) as site:
        dropping = site.describe(tmp_path / "dropping.yaml")
        assert crawl(dropping, output).said["new"] == 60
        assert {row["author"] for row in collected(output)} == {None}
        hashing = site.describe(
            tmp_path / "hashing.yaml", name="hashing", authors="hash", filters={"near_duplicate": 1}
        )
        run = crawl(hashing, tmp_path / "hashed")
        # And a page that is kept because it is broken names nobody either.
        site.item = site.item.replace("별점", "평점")
        assert crawl(dropping, output).code == 3
    assert run.said["new"] == 60
    authors = {row["review_id"]: row["author"] for row in collected(tmp_path / "hashed")}
    first, second, third = (authors[review.review_id] for review in reviews[:3])
    assert first == third != second
    assert len(first) == 16
    assert list((output / "_broken" / "local").iterdir())
    for file in [*output.rglob("*"), *(tmp_path / "hashed").rglob("*")]:
        if file.is_file():
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            assert not any(name.encode() in content for name in ("남궁민수", "제갈공명", "독고영재")), file
    assert (output / "_state" / "salt").stat().st_mode & 0o077 == 0


@contextmanager
def busy_processors(count: int):
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def test_pages_that_scripts_make_are_read_in_chromium_while_the_machine_is_busy(tmp_path):
    reviews = made_up_reviews(50, seed=16)
    with ReviewSite(list(reviews)) as site, busy_processors(os.cpu_count() or 1):
        start = f"{site.url}/script?page={{page}}"
        yaml = site.describe(
            tmp_path / "local.yaml", start_urls=[start], paging=ALL_NUMBERED, javascript=True, limits={"timeout": 120}
        )
        site.faults["/script?page=2"] = ["503"]
        run = crawl(yaml, tmp_path / "out")
        agents = {asked.headers["user-agent"] for asked in site.asked}
    assert run.code == 0, run.stderr
    assert (run.said["new"], run.said["broken_pages"]) == (50, 0)
    assert ids(tmp_path / "out") == sorted(review.review_id for review in reviews)
    assert agents == {"NunchiCollector/0.1 (+tests@example.org)"}  # of the scripts' own requests too


def test_one_crawl_of_a_site_runs_at_a_time_and_opens_no_port(tmp_path):
    with ReviewSite(made_up_reviews(2000), each_page=0.05) as site:
        yaml = site.describe(tmp_path / "local.yaml")
        process = start_crawl(yaml, tmp_path / "out")
        try:
            wait_for(lambda: site.pages_asked, "the first crawl never began")
            second = crawl(yaml, tmp_path / "out")
            ports = psutil.Process(process.pid).net_connections("tcp")
        finally:
            process.kill()
            process.communicate()
    assert (second.code, second.said) == (2, {})
    assert "error: another crawl of local" in second.stderr
    assert not [port for port in ports if port.status == psutil.CONN_LISTEN]


def test_a_crawl_that_is_told_to_end_does_so_in_order_and_the_next_one_goes_on(tmp_path):
    with ReviewSite(made_up_reviews(300, seed=17), each_page=0.05) as site:
        yaml = site.describe(tmp_path / "local.yaml")
        process = start_crawl(yaml, tmp_path / "out")
        wait_for(lambda: len(site.pages_asked) >= 3, "the crawl never began")
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2, errors
        assert "was stopped before its end" in errors
        assert 0 < len(ids(tmp_path / "out")) < 300  # what came is in the files already
        site.each_page = 0
        assert (run := crawl(yaml, tmp_path / "out")).code == 0
    assert (run.said["new"], run.said["alarm"]) == (300, None)  # of the whole crawl, not of its last part
    assert len(ids(tmp_path / "out")) == 300


def test_the_card_shows_what_was_kept_and_what_was_not_and_needs_nothing_from_outside(tmp_path):
    reviews = made_up_reviews(120, seed=18)
    reviews[0].stars = "없음"
    output = tmp_path / "out"
    with ReviewSite(reviews) as site:
        crawl(site.describe(tmp_path / "local.yaml"), output)
    by_crawl = (output / "_card.html").read_text(encoding="utf-8")
    (output / "_card.html").unlink()
    shown = subprocess.run([*COMMAND, "card", "--output", output], cwd=ROOT, capture_output=True, text=True, check=True)
    card = Path(shown.stdout.strip()).read_text(encoding="utf-8")
    for page in (by_crawl, card):
        assert "119 reviews of 1 sites" in page
        assert "<td>no rating</td><td>1</td>" in page
        assert page.count("<svg") == page.count("</svg>") == 7
        assert 'src="' not in page
        assert "<script" not in page


def test_every_text_of_the_local_site_is_its_own():
    """What the tests count rests on it."""
    dice = random.Random(1)
    texts = [made_up_text(dice, 5) for _ in range(2000)]
    assert len(set(texts)) == 2000
