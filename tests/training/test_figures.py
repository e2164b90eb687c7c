"""Pictures are read back from matplotlib's own objects: what is drawn, not how it looks."""

import numpy as np
import pandas as pd
import pytest

from training import figures
from training.search import Trial

NAMES = ["negative", "positive"]


def trial(name: str, dev_f1: list[float]) -> Trial:
    epochs = [
        {"epoch": number, "train_loss": 0.7 / number, "dev_loss": 0.6 / number, "dev_f1": f1, "dev_accuracy": f1 / 2}
        for number, f1 in enumerate(dev_f1, 1)
    ]
    return Trial(name, {}, epochs=epochs)


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def lines(axes) -> dict[str, list]:
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_one_trial_shows_train_and_dev_over_its_epochs():
    losses, scores = figures.learning_curves([trial("only", [0.7, 0.8])]).axes
    assert lines(losses) == {"train": [[1, 0.7], [2, 0.35]], "dev": [[1, 0.6], [2, 0.3]]}
    assert lines(scores)["macro F1"] == [[1, 0.7], [2, 0.8]]
    assert lines(scores)["accuracy"] == [[1, 0.35], [2, 0.4]]
    assert (losses.get_xlabel(), losses.get_ylabel()) == ("epoch", "cross-entropy (nats)")


def test_of_many_trials_the_best_are_named_and_starred_at_their_best_epoch():
    trials = [trial(f"trial-{number}", [0.5 + number / 100, 0.4]) for number in range(9)]
    _, scores = figures.learning_curves(trials).axes
    assert legend(scores)[:2] == ["trial-8: F1 0.5800", "trial-7: F1 0.5700"]
    assert len([name for name in legend(scores) if name.startswith("trial-")]) == len(figures.COLOURS)
    assert len([line for line in scores.get_lines() if line.get_color() == figures.GREY]) == 3
    stars = [line for line in scores.get_lines() if line.get_marker() == "*" and len(line.get_xdata())]
    assert [line.get_xydata().tolist() for line in stars] == [[[1, 0.5 + number / 100]] for number in range(8, 2, -1)]


def test_trials_without_an_epoch_and_figures_without_a_value_are_left_out():
    unfinished = trial("second", [0.7])
    unfinished.epochs[0]["dev_loss"] = None
    losses, scores = figures.learning_curves([trial("first", []), unfinished]).axes
    assert "dev" not in lines(losses)
    assert lines(scores)["macro F1"] == [[1, 0.7]]
    assert "no epoch" in figures.learning_curves([])._suptitle.get_text()


def test_a_confusion_cell_counts_and_shares_its_true_class():
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    axes = figures.confusion_matrix(labels, predicted, NAMES).axes[0]
    assert [text.get_text() for text in axes.texts] == ["2\n66.7%", "1\n33.3%", "0\n0.0%", "1\n100.0%"]
    assert [text.get_position() for text in axes.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]  # column, row
    assert axes.get_title() == "75.00% of 4 dev reviews right"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == NAMES
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_a_class_that_never_occurs_has_a_row_of_zeros():
    texts = figures.confusion_matrix(np.array([0]), np.array([0]), ["a", "b", "c"]).axes[0].texts
    assert [text.get_text() for text in texts][3:] == ["0\n0.0%"] * 6


def test_a_model_that_hits_as_often_as_it_says_has_no_calibration_error():
    confident = np.tile([[0.2, 0.8]], (10, 1))
    honest = figures.reliability(np.array([1] * 8 + [0] * 2), confident).axes
    boastful = figures.reliability(np.array([1] * 3 + [0] * 7), confident).axes
    assert honest[0].get_title().endswith("ECE 0.000")
    assert boastful[0].get_title().endswith("ECE 0.500")
    assert sum(bar.get_height() for bar in honest[1].patches) == 10


@pytest.mark.parametrize("classes", [2, 3])
def test_every_confidence_from_an_equal_share_to_certainty_has_its_bin(classes):
    certain, equal = np.eye(classes)[:1], np.full((1, classes), 1 / classes)
    bars = figures.reliability(np.array([0, 0]), np.vstack([certain, equal])).axes[1].patches
    assert [bars[0].get_height(), bars[-1].get_height()] == [1, 1]


def test_names_in_hangul_become_class_numbers_which_the_fonts_can_draw(tmp_path):
    picture = figures.confusion_matrix(np.array([0, 1]), np.array([0, 1]), ["부정", "긍정"])
    picture.savefig(tmp_path / "matrix.png")  # matplotlib warns of a missing glyph, which is an error here
    figures.learning_curves([trial("시험", [0.5]), trial("둘", [0.6])]).savefig(tmp_path / "curves.png")
    assert [tick.get_text() for tick in picture.axes[0].get_xticklabels()] == ["class 0", "class 1"]


def predictions(*rows: tuple[str, int, float]) -> pd.DataFrame:
    """Rows of text, label and probability of the second class."""
    return pd.DataFrame([{"text": text, "label": label, "probabilities": [1 - p, p]} for text, label, p in rows])


def test_the_table_has_wrong_answers_only_the_surest_first():
    table = figures.error_table(
        predictions(("맞음", 1, 0.99), ("덜 확실", 0, 0.6), ("확실", 0, 0.9), ("반대", 1, 0.2)), NAMES
    )
    assert table.to_dict("records") == [
        {"text": "확실", "label": "negative", "predicted": "positive", "confidence": 0.9},
        {"text": "반대", "label": "positive", "predicted": "negative", "confidence": 0.8},
        {"text": "덜 확실", "label": "negative", "predicted": "positive", "confidence": 0.6},
    ]


def test_the_page_escapes_strangers_texts_and_shows_them_whole():
    long = "길어요 " * 100
    page = figures.error_page(
        figures.error_table(predictions(("<img src=x onerror=alert(1)> &", 0, 0.9), (long, 0, 0.8)), NAMES)
    )
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; &amp;" in page
    assert long.strip() in page


def test_a_model_without_an_error_has_an_empty_table():
    table = figures.error_table(predictions(("맞음", 1, 0.99)), NAMES)
    assert len(table) == 0
    assert "The 0 most confident errors" in figures.error_page(table)
