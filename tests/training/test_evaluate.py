"""Figures of a classifier, against values worked out by hand."""

import numpy as np
import pytest

from training.errors import CollapsedModel
from training.evaluate import measure, refuse_collapsed


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
