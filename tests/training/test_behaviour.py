"""The behaviour suite: its sentences, and how a model's answers to them are judged."""

from collections import Counter

import numpy as np
import pytest

from training.behaviour import Case, count_by_kind, read_cases, run_cases
from training.data import SAMPLE, read_reviews
from training.errors import RegistryError


class Lexicon:
    """Leans by the words of the text: each 좋 counts for, each 싫 against, 안 turns it round."""

    def __init__(self, labels=("negative", "positive")):
        self.labels = labels

    def probabilities(self, texts):
        answers = np.full((len(texts), len(self.labels)), 0.1, np.float32)
        for row, text in zip(answers, texts, strict=True):
            leaning = (text.count("좋") - text.count("싫")) * (-1 if "안" in text else 1)
            row[self.labels.index("positive")] += max(leaning, 0)
            row[self.labels.index("negative")] += max(-leaning, 0)
        return answers / answers.sum(1, keepdims=True)


CASES = [
    Case("plain", "좋다", "positive", ""),
    Case("plain", "싫다", "negative", ""),
    Case("plain", "싫다", "positive", ""),
    Case("negation", "안 좋다", "negative", ""),
    Case("intensifiers", "좋고 좋다", "more", "좋다"),
    Case("intensifiers", "좋다", "more", "좋다"),
    Case("typos", "좋다", "same", "좋타"),
    Case("typos", "좋다", "same", "조타"),
]


@pytest.mark.parametrize(
    "labels", [("negative", "positive"), ("positive", "negative"), ("negative", "neutral", "positive")]
)
def test_each_expectation_is_judged_whatever_the_labels_and_their_order(labels):
    assert run_cases(CASES, Lexicon(labels)).tolist() == [True, True, False, True, True, False, True, False]


def test_a_sure_model_is_still_told_apart():
    """Both answers are 1.0 in FP32: 'more' looks at what is left to the other label."""

    class Sure:
        labels = ("negative", "positive")

        def probabilities(self, texts):
            left = np.array([1e-9 if "정말" in text else 1e-8 for text in texts], np.float32)
            return np.stack([left, 1 - left], axis=1)

    assert run_cases([Case("intensifiers", "정말 좋다", "more", "좋다")], Sure()).tolist() == [True]


def test_counts_by_kind():
    passed = np.array([True, True, False, True, True, False, True, False])
    assert count_by_kind(CASES, passed) == {
        "plain": (2, 3),
        "negation": (1, 1),
        "intensifiers": (1, 2),
        "typos": (1, 2),
    }


def test_a_model_with_other_labels_is_refused():
    class Stars:
        labels = ("one", "five")

    with pytest.raises(RegistryError, match="the model answers one, five; the behaviour suite asks for negative and"):
        run_cases(CASES, Stars())


def test_the_suite_is_large_balanced_and_well_formed():
    cases = read_cases()
    kinds = Counter(case.kind for case in cases)
    assert len(cases) >= 180
    assert len({(case.text, case.other) for case in cases}) == len(cases)
    assert set(kinds) == {
        "plain", "negation", "typos", "spacing", "irony", "intensifiers", "emoticons", "contrast", "slang",
    }  # fmt: skip
    assert min(kinds.values()) >= 20
    assert {case.expected for case in cases} == {"positive", "negative", "more", "same"}
    for case in cases:
        assert bool(case.other) == (case.expected in ("more", "same")), case
        assert case.text == case.text.strip() != case.other, case
    expected = Counter(case.expected for case in cases)
    assert 0.7 < expected["positive"] / expected["negative"] < 1.4


def test_no_sentence_of_the_suite_is_among_the_reviews_that_are_trained_on():
    sentences = {text for case in read_cases() for text in (case.text, case.other) if len(text) > 4}
    assert not sentences & set(read_reviews(SAMPLE).document)
