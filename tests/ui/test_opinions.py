"""The file of opinions: written by many at once, read meanwhile, deletable, and nobody else's business."""

import sqlite3
import stat
import threading
from contextlib import closing

import pytest

from ui.opinions import MAX_NAME, Opinion, Opinions, StoreFailed, now, plain_name


def opinion(text="영화가 좋다", visit="a", name=""):
    return Opinion(text, "negative", 0.6, "3", "positive", name, "ko", visit, now())


def test_what_was_said_comes_back_for_its_own_visit_only_newest_first(tmp_path):
    opinions = Opinions(tmp_path / "feedback.sqlite3")
    first, second = opinion("'); DROP TABLE opinions; --"), opinion("줄\n바꿈")
    for each in (first, opinion(visit="b"), second):
        opinions.add(each)
    assert opinions.of_visit("a") == [second, first]


def test_there_is_no_file_before_the_first_click_and_then_only_its_owner_reads_it(tmp_path):
    opinions = Opinions(tmp_path / "var" / "feedback.sqlite3")
    assert opinions.of_visit("a") == []
    assert opinions.withdraw("a") == 0
    assert list(tmp_path.iterdir()) == []
    opinions.add(opinion())
    assert stat.S_IMODE(opinions.file.stat().st_mode) == 0o600


def test_clicks_of_many_people_at_once_are_all_stored(tmp_path):
    opinions = Opinions(tmp_path / "feedback.sqlite3")

    def click(visit):
        for count in range(10):
            opinions.add(opinion(f"글 {count}", visit))

    people = [threading.Thread(target=click, args=(str(person),)) for person in range(8)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert [len(opinions.of_visit(str(person))) for person in range(8)] == [10] * 8


def test_a_training_that_reads_does_not_keep_a_click_from_being_stored(tmp_path):
    opinions = Opinions(tmp_path / "feedback.sqlite3")
    opinions.add(opinion("하나"))
    with closing(sqlite3.connect(f"{opinions.file.as_uri()}?mode=ro", uri=True)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM opinions").fetchone()
        opinions.add(opinion("둘"))
    assert len(opinions.of_visit("a")) == 2


def test_a_visit_takes_back_what_it_said_and_nothing_else_and_no_byte_of_it_is_left(tmp_path):
    opinions = Opinions(tmp_path / "feedback.sqlite3")
    opinions.add(opinion("지워 주세요"))
    opinions.add(opinion("남겨 주세요", visit="b"))
    assert opinions.withdraw("a") == 1
    assert (opinions.of_visit("a"), len(opinions.of_visit("b"))) == ([], 1)
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert "남겨 주세요".encode() in left
    assert "지워 주세요".encode() not in left


@pytest.mark.parametrize("what", ["no database", "a folder in the way"])
def test_a_file_that_cannot_be_used_fails_with_its_name(tmp_path, what):
    file = tmp_path / "feedback.sqlite3"
    if what == "no database":
        file.write_bytes(b"something else " * 100)
    else:
        file.mkdir()
    for attempt in (lambda: Opinions(file).add(opinion()), lambda: Opinions(file).of_visit("a")):
        with pytest.raises(StoreFailed, match=str(file)):
            attempt()


def test_a_name_is_one_short_line_of_what_can_be_seen():
    assert plain_name("  김\n민지\u202e \x00(\ud800)  ") == "김 민지 ( )"
    assert plain_name("가" * 100) == "가" * MAX_NAME
