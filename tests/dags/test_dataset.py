"""The reviews of a retraining are fixed before it begins."""

import os

import pytest

from dags.dataset import freeze

CONFIG = "training/configs/nano.yaml"


@pytest.fixture
def collected(tmp_path):
    folder = tmp_path / "collected"
    for day in ("2026-11-28", "2026-11-29"):
        write(folder / "site=a" / f"day={day}" / "reviews.parquet", day)
    (folder / "site=a" / ".store.sqlite3").write_text("the collector's own")
    return folder


def write(file, text: str) -> None:
    """As the collector does: the new file in place of the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(".part")
    part.write_text(text)
    os.replace(part, file)


def test_it_holds_what_was_there_and_is_named_for_its_last_day(collected, tmp_path):
    found = freeze(collected, tmp_path / "sets", CONFIG)
    assert found["name"].startswith("reviews-2026-11-29-")
    assert found["folder"] == str(tmp_path / "sets" / found["name"])
    files = {str(file.relative_to(found["folder"])) for file in (tmp_path / "sets").rglob("*") if file.is_file()}
    assert files == {f"site=a/day=2026-11-{day}/reviews.parquet" for day in (28, 29)}


def test_what_is_collected_afterwards_does_not_change_it(collected, tmp_path):
    first = freeze(collected, tmp_path / "sets", CONFIG)
    write(collected / "site=a" / "day=2026-11-29" / "reviews.parquet", "edited")
    kept = tmp_path / "sets" / first["name"] / "site=a" / "day=2026-11-29" / "reviews.parquet"
    assert kept.read_text() == "2026-11-29"
    second = freeze(collected, tmp_path / "sets", CONFIG)
    assert second["name"] != first["name"]
    assert sorted(path.name for path in (tmp_path / "sets").iterdir()) == sorted([first["name"], second["name"]])


def test_the_same_reviews_and_the_same_configuration_are_the_same_set(collected, tmp_path):
    first = freeze(collected, tmp_path / "sets", CONFIG)
    assert freeze(collected, tmp_path / "sets", CONFIG) == first
    assert freeze(collected, tmp_path / "sets", "training/configs/demo.yaml") != first


def test_nothing_collected_is_one_sentence_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"collected holds no site=…/day=…/\*\.parquet; run the DAG collect_re"):
        freeze(tmp_path / "collected", tmp_path / "sets", CONFIG)
