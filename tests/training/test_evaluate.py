"""Figures of a classifier, against values worked out by hand."""

import math

import numpy as np
import pytest

from training.errors import CollapsedModel
from training.evaluate import mcnemar, measure, refuse_collapsed


def test_accuracy_f1_and_confusion_of_a_small_table():
    metrics = measure("table", np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0]), classes=2)
    assert metrics.accuracy == 0.6
    assert metrics.confusion == [[2, 1], [1, 1]]
    assert metrics.f1 == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-5)


def test_the_interval_is_wilsons():
    labels = np.zeros(100, int)
    predicted = np.array([0] * 80 + [1] * 20)
    low, high = measure("table", labels, predicted, classes=2).accuracy_interval
    assert (low, high) == (pytest.approx(0.7112, abs=1e-4), pytest.approx(0.8666, abs=1e-4))  # R: prop.test(correct=F)


def test_a_class_that_never_occurs_still_counts_in_macro_f1():
    metrics = measure("table", np.array([0, 1]), np.array([0, 1]), classes=3)
    assert metrics.f1 == pytest.approx(2 / 3, abs=1e-5)


def test_a_majority_class_model_is_refused_with_both_shares():
    labels = np.array([0, 1] * 50)
    with pytest.raises(CollapsedModel, match=r"class 1 for 100.0% of the reviews \(true share 50.0%\)"):
        refuse_collapsed(np.ones(100, int), labels)
    refuse_collapsed(labels, labels)


def test_a_truly_lopsided_set_is_no_collapse():
    refuse_collapsed(np.ones(100, int), np.ones(100, int))


def answers(*, both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([1] * both + [1] * only_first + [0] * only_second + [0] * neither, bool)
    second = np.array([1] * both + [0] * only_first + [1] * only_second + [0] * neither, bool)
    return first, second


def test_mcnemar_is_the_exact_binomial_of_the_rows_where_one_is_right_alone():
    """By hand: 9 of 10 one way is (1 + 10) / 2**10 on each side."""
    comparison = mcnemar(*answers(both=80, only_first=9, only_second=1, neither=10))
    assert comparison.p_value == pytest.approx(2 * 11 / 1024)
    assert (comparison.rows, comparison.only_first, comparison.only_second) == (100, 9, 1)
    assert comparison.difference == pytest.approx(0.08)


def test_swapping_the_models_turns_the_sign_and_keeps_the_p_value():
    first, second = answers(both=700, only_first=60, only_second=35, neither=205)
    one, other = mcnemar(first, second), mcnemar(second, first)
    tail = 2 * sum(math.comb(95, right) for right in range(36)) / 2**95
    assert one.p_value == other.p_value == pytest.approx(tail)
    assert (one.difference, one.interval) == (-other.difference, (-other.interval[1], -other.interval[0]))


def test_models_that_never_differ_are_equal_but_not_beyond_doubt():
    comparison = mcnemar(*answers(both=90, only_first=0, only_second=0, neither=10))
    assert (comparison.p_value, comparison.difference) == (1.0, 0.0)
    low, high = comparison.interval  # Agresti and Min: 1.96 * sqrt(1 / 102 / 102)
    assert (low, high) == (pytest.approx(-0.019215, abs=1e-5), pytest.approx(0.019215, abs=1e-5))


def test_the_interval_of_the_difference_is_agresti_and_mins():
    """By hand for 200 rows, 30 against 15: (15 / 202) -+ 1.96 * sqrt((46 / 202 - (15 / 202)**2) / 202)."""
    comparison = mcnemar(*answers(both=100, only_first=30, only_second=15, neither=55))
    assert comparison.interval == (pytest.approx(0.00926, abs=1e-4), pytest.approx(0.13926, abs=1e-4))
