"""The parts of training/collection: the YAML of a site, the judging of one review, near-identical texts, the store."""

import math
import random
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import yaml

from tests.review_site import ReviewSite, made_up_text
from training.cleaning import cleaning_normalizer, words
from training.collection.__main__ import main
from training.collection.files import write_changed
from training.collection.near import bands, likeness
from training.collection.page import RawReview, skeleton
from training.collection.polite import seconds_asked
from training.collection.review import Review, judge, measure_language
from training.collection.site import Rating, Site, read_site
from training.collection.store import Interval, Store, Waiting
from training.errors import SiteRefused

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
CLEAN = cleaning_normalizer("keep")


def describe(tmp_path, **changes):
    with ReviewSite([]) as site:
        return site.describe(tmp_path / "local.yaml", **changes)


@pytest.fixture
def site(tmp_path) -> Site:
    return read_site(str(describe(tmp_path)))


def judged(
    site, text="정말 재밌어요", stars="5", written_at="2026-11-29T10:00:00+09:00", review_id="r1", author="홍길동"
):
    return judge(RawReview(review_id, text, stars, written_at, author), "http://site/1", site, CLEAN, b"salt", NOW)


def test_the_example_site_is_a_valid_one_and_shows_every_key():
    example = read_site("example")

    def keys(model, prefix=""):
        for name, field in type(model).model_fields.items():
            yield prefix + name
            value = getattr(model, name)
            if name in ("selectors", "paging", "rating", "dates", "filters", "delays", "limits"):
                yield from keys(value, f"{name}.")
            assert field is not None

    from training.collection.site import SITES

    text = (SITES / "example.yaml").read_text(encoding="utf-8")
    assert {key for key in keys(example) if f"{key.split('.')[-1]}:" not in text} == set()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start_url": []}, r"start_url: Extra inputs are not permitted"),
        ({"name": "Mein Ort"}, r"name: String should match pattern"),
        ({"contact": "me"}, r"contact: 'me' is neither an address nor an e-mail"),
        ({"start_urls": ["ftp://x.org"]}, r"start_urls.0: 'ftp://x.org' is no http:// or https:// address"),
        ({"start_urls": ["http://x.org/{page}"]}, r"\{page\} stands in start_urls where paging.kind is number"),
        ({"selectors": {"review": "li["}}, r"selectors.review: 'li\[' is no CSS selector"),
        ({"selectors": {"rating": {"css": "b", "pattern": "별점"}}}, r"'별점' has 0 groups; put \( \) around"),
        ({"rating": {"lowest": 5, "highest": 1}}, r"rating: the scale runs 5"),
        ({"rating": {"positive_from": 2, "negative_up_to": 3}}, r"each must be above the one before"),
        ({"dates": {"timezone": "Asia/Seul"}}, r"'Asia/Seul' is no time zone"),
        ({"encoding": "klingon"}, r"Python knows no encoding of Korean by the name 'klingon'; try cp949"),
        ({"paging": {"next": None}}, r"paging.next belongs to kind link, which needs it"),
        ({"selectors": {"author": None}, "authors": "hash"}, r"authors is hash, but selectors.author names none"),
        ({"limits": {"concurrent": 100}}, r"limits.concurrent: Input should be less than or equal to 8"),
    ],
)
def test_a_wrong_description_of_a_site_is_refused_by_its_key(tmp_path, capsys, changes, said):
    file = describe(tmp_path, **changes)
    with pytest.raises(SiteRefused, match=said):
        read_site(str(file))
    assert main(["crawl", "--site", str(file), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {file}")
    assert not (tmp_path / "out").exists()


def test_a_site_that_is_not_there_or_no_yaml_is_refused(tmp_path):
    with pytest.raises(SiteRefused, match=r"name a YAML file, or one of example"):
        read_site("nowhere")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(SiteRefused, match=r"cannot be read as YAML"):
        read_site(str(tmp_path / "bad.yaml"))
    (tmp_path / "bad.yaml").write_text("- a", encoding="utf-8")
    with pytest.raises(SiteRefused, match=r"holds no mapping"):
        read_site(str(tmp_path / "bad.yaml"))


def test_days_in_the_wrong_order_or_an_empty_folder_are_refused(tmp_path, capsys):
    file = str(describe(tmp_path))
    assert main(["crawl", "--site", file, "--since", "2026-11-30", "--until", "2026-11-30"]) == 2
    assert "error: --since 2026-11-30 is not before --until" in capsys.readouterr().err
    assert main(["card", "--output", str(tmp_path / "nothing")]) == 2
    assert "holds no collection; crawl a site first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scale", "stars", "rating", "label"),
    [
        ({"lowest": 1, "highest": 10}, range(1, 11), range(1, 11), "nnnn....pp"),  # NSMC's own scale stays as it is
        ({"lowest": 1, "highest": 5}, [1, 2, 3, 4, 5], [1, 3, 6, 8, 10], "nn..p"),
        ({"lowest": 1, "highest": 5, "positive_from": 4}, [1, 2, 2.5, 3, 4, 5], [1, 3, 5, 6, 9, 10], "nn..pp"),
        (
            {"lowest": 0, "highest": 100, "negative_up_to": 40, "positive_from": 80},
            [0, 40, 60, 80, 100],
            [1, 4, 6, 9, 10],
            "nn.pp",
        ),
        ({"lowest": 0, "highest": 1, "negative_up_to": 0, "positive_from": 1}, [0, 1], [1, 10], "np"),
    ],
)
def test_stars_become_labels_by_the_site_s_scale_and_ratings_that_training_cuts_alike(scale, stars, rating, label):
    from training.config import STARS
    from training.reviews import stars_to_labels

    names = {"n": "negative", ".": "neutral", "p": "positive"}
    scale = Rating(**scale)
    assert [scale.label(value) for value in stars] == [names[letter] for letter in label]
    assert [scale.on_ten(value) for value in stars] == list(rating)
    import pandas as pd

    for value in [stars[0] + (stars[-1] - stars[0]) * step / 60 for step in range(61)]:
        (cut,) = stars_to_labels(pd.Series([str(scale.on_ten(value))]), STARS)
        assert STARS[cut] == scale.label(value)


def test_a_review_is_cleaned_by_the_project_s_own_normalizer_and_measured(site):
    review = judged(
        site, "<p class='comment'>연기가 <b>정말</b> 좋다<br>추천!!!!!! ㅋㅋㅋㅋㅋㅋ</p>", stars="4.5점"
    ).review
    assert review.document == "연기가 정말 좋다 추천!! ㅋㅋ"
    assert (review.stars, review.rating, review.label, review.language) == (4.5, 8, "neutral", "ko")
    assert (review.hangul_share, review.day, review.author) == (1.0, "2026-11-29", None)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"review_id": None}, "no id"),
        ({"text": None}, "no text"),
        ({"text": "<br><br>"}, "no text"),
        ({"stars": "좋아요"}, "no rating"),
        ({"stars": "6"}, "stars outside the site's scale"),
        ({"stars": "0"}, "stars outside the site's scale"),
        ({"written_at": "3일 전"}, "no date in the site's format"),
        ({"written_at": "2027-11-29T10:00:00+09:00"}, "written in the future"),
        ({"text": "굿"}, "too short"),
        ({"text": "정말 좋았다 " * 400}, "too long"),
        ({"text": "what a waste of time"}, "another language"),
        ({"text": "とても面白い映画でした"}, "another language"),
        ({"text": "这部电影非常好看"}, "another language"),
        ({"text": "1234567"}, "another language"),
        ({"text": "좋은영화 abc 別無"}, "too little Hangul"),
        ({"review_id": "a b"}, "review_id is not valid"),
    ],
)
def test_a_review_that_cannot_be_used_is_rejected_with_its_reason(site, what, reason):
    verdict = judged(site, **what)
    assert (verdict.review, verdict.reason) == (None, reason)


def test_the_language_is_told_by_the_letters():
    assert measure_language("ㅋㅋㅋ 굿") == ("ko", 1.0)
    assert measure_language("OST가 good") == ("latin", 1 / 8)
    assert measure_language("!! 100") == ("other", 0.0)
    assert measure_language("日本語です")[0] == "ja"
    assert measure_language("хорошо")[0] == "other"


@pytest.mark.parametrize(
    "secret",
    ["010-1234-5678", "01012345678", "+82 10 1234 5678", "02-123-4567", "kim.min@mail.example.com", "900101-1234567"],
)
def test_a_number_or_address_of_a_person_is_blanked_in_the_text(site, secret):
    review = judged(site, f"사장님 {secret} 로 연락주세요 정말 친절해요").review
    assert review.document.split() == ["사장님", "로", "연락주세요", "정말", "친절해요"]


def test_numbers_that_lead_to_nobody_stay(site):
    text = "2026-11-29 에 1,200,000 명이 본 영화, 별점 4.5 / 5, 러닝타임 120-130분"
    assert judged(site, text).review.document == text


def test_near_identical_texts_meet_in_a_band_and_others_do_not():
    dice = random.Random(7)
    found = 0
    for _ in range(300):
        text = words(" ".join(made_up_text(dice, 5) for _ in range(4)))
        edited = text[: len(text) // 2] + "가" + text[len(text) // 2 + 1 :]  # one letter of many
        assert likeness(text, edited) > 0.8
        found += bool(set(bands(text)) & set(bands(edited)))
        assert likeness(text, words(made_up_text(dice, 5))) < 0.8
    assert found >= 290
    assert bands(words("같은 말이에요!!")) == bands(words("같은말이에요 ㅡㅡ"))
    assert all(-(2**63) <= band < 2**63 for band in bands("짧다"))


def test_a_skeleton_shows_the_markup_and_no_word_of_anybody():
    page = (
        '<html><head><title>접근 제한</title></head><li class="item new" data-author="홍길동" onclick=hide(7)>'
        '<a href="/user/kim77">Kim 홍길동</a>010-1234<script>var user = "kim";</script></li>'
    )
    assert skeleton(page) == (
        '<html><head><title>접근 제한</title></head><li class="item new" data-author="가가가" onclick=xxxx(0)>'
        '<a href="/xxxx/xxx00">xxx 가가가</a>000-0000<script>xxx xxxx = "xxx";</script></li>'
    )


def test_retry_after_is_read_as_seconds_or_as_a_date():
    assert seconds_asked("120") == 120
    assert seconds_asked("soon") is None
    moment = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    assert math.isclose(seconds_asked(moment), 300, abs_tol=60)


def take(store, site, crawl, verdicts, url="http://site/1"):
    with store.page(crawl, Waiting(url, url, 1)) as writer:
        return writer.take(verdicts, site, Interval(), may_stop=False)


def test_a_day_that_no_file_shows_yet_is_written_by_the_next_run(tmp_path, site):
    """As after a kill between the transaction of a page and the writing of its days."""
    with closing(Store(tmp_path / "out")) as store:
        crawl, _ = store.begin(site, Interval())
        take(store, site, crawl, [judged(site)])
    with closing(Store(tmp_path / "out")) as store:
        assert store.begin(site, Interval()) == (crawl, True)
        assert write_changed(store, "local", "Asia/Seoul") == 1
        assert write_changed(store, "local", "Asia/Seoul") == 0
    assert (tmp_path / "out" / "site=local" / "day=2026-11-29" / "reviews.parquet").is_file()


def test_a_page_is_taken_whole_or_not_at_all(tmp_path, site):
    with closing(Store(tmp_path)) as store:
        crawl, _ = store.begin(site, Interval())
        (first,) = store.waiting(crawl)
        with pytest.raises(KeyboardInterrupt), store.page(crawl, first) as writer:
            writer.follow(Waiting("http://site/2", first.start_url, 2))
            writer.take([judged(site)], site, Interval(), may_stop=False)
            raise KeyboardInterrupt
        assert store.waiting(crawl) == [first]
        assert store.every_kept() == []


def test_a_review_that_is_edited_moves_with_its_day_and_a_rejected_one_keeps_no_text(tmp_path, site):
    with closing(Store(tmp_path)) as store:
        crawl, _ = store.begin(site, Interval())
        take(store, site, crawl, [judged(site)])
        write_changed(store, "local", "Asia/Seoul")
        moved = take(store, site, crawl, [judged(site, written_at="2026-11-28T10:00:00+09:00")])
        assert (moved.edited, moved.new, moved.duplicates) == (1, 0, 0)
        write_changed(store, "local", "Asia/Seoul")
        assert [file.parent.name for file in tmp_path.glob("site=local/day=*/*.parquet")] == ["day=2026-11-28"]
        spoilt = take(store, site, crawl, [judged(site, text="now in English")])
        assert (spoilt.edited, dict(spoilt.rejected)) == (1, {"another language": 1})
        write_changed(store, "local", "Asia/Seoul")
        assert list(tmp_path.glob("site=local/day=*/*.parquet")) == []
        assert store.rejected() == {"local": {"another language": 1}}
        assert store._db.execute("SELECT document, url FROM reviews").fetchone()[:] == (None, None)


def test_other_filters_judge_what_was_rejected_anew(tmp_path, site):
    wider = Site.model_validate({**site.model_dump(), "filters": {"languages": ["ko", "latin"], "min_hangul_share": 0}})
    with closing(Store(tmp_path)) as store:
        crawl, _ = store.begin(site, Interval())
        assert dict(take(store, site, crawl, [judged(site, text="so boring")]).rejected) == {"another language": 1}
        store.end(crawl, "whole")
        assert store.may_stop(site, Interval())
        assert not store.may_stop(wider, Interval())  # walked whole once more
        crawl, _ = store.begin(wider, Interval())
        assert take(store, wider, crawl, [judged(wider, text="so boring")]).new == 1


def test_every_field_of_a_review_is_a_column_of_the_files():
    from training.collection.files import schema

    assert set(Review.model_fields) | {"site", "provenance"} == set(schema("UTC").names)


def test_the_yaml_that_the_local_site_writes_for_itself_is_one(tmp_path):
    assert yaml.safe_load(describe(tmp_path).read_text())["name"] == "local"
