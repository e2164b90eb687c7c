"""Which rows the gate compares on, and that their labels mean the same as the model's."""

import pytest

from export.errors import DataError
from export.manifest import Label
from export.reviews import load_reviews
from tests.export.checkpoints import labelled_reviews, write_reviews
from training.config import KOREAN


def labels(*names: str) -> tuple[Label, ...]:
    return tuple(Label(name=name, korean=KOREAN.get(name, name)) for name in names)


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (("negative", "positive"), 2, {0: 0, 1: 1}),
        (("positive", "negative"), 2, {0: 1, 1: 0}),
        (("negative", "neutral", "positive"), 2, {0: 0, 1: 2}),
        (("negative", "neutral", "positive"), 3, {0: 0, 1: 1, 2: 2}),
        (("positive", "neutral", "negative"), 3, {0: 2, 1: 1, 2: 0}),
        (("Negative", "Neutral", "Positive"), 2, {0: 0, 1: 2}),
        (("부정", "중립", "긍정"), 2, {0: 0, 1: 2}),
        (("ham", "spam"), 2, {0: 0, 1: 1}),
        (("one", "two", "three"), 3, {0: 0, 1: 1, 2: 2}),
    ],
)
def test_labels_are_matched_by_name(tmp_path, names, classes, expected):
    rows = [(text, number % classes) for number, (text, _) in enumerate(labelled_reviews())]
    reviews = load_reviews(write_reviews(tmp_path / "reviews.tsv", rows), labels(*names), 5000)
    assert dict(zip([label for _, label in rows], reviews.labels, strict=True)) == expected
    assert reviews.labels == [expected[label] for _, label in rows]


def test_a_file_with_more_labels_than_the_model_is_refused(tmp_path):
    rows = [(text, number % 3) for number, (text, _) in enumerate(labelled_reviews())]
    with pytest.raises(DataError, match="label is '2'"):
        load_reviews(write_reviews(tmp_path / "reviews.tsv", rows), labels("negative", "positive"), 5000)


def test_the_sample_is_the_same_each_time(tmp_path):
    file = write_reviews(tmp_path / "reviews.tsv", labelled_reviews())
    first, second = (load_reviews(file, labels("negative", "positive"), 1000) for _ in range(2))
    assert first == second
    assert (len(first.texts), first.found) == (1000, 1200)
