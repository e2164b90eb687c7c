"""What a search looks like: learning curves, confusion matrix, reliability diagram, table of errors.

Data in, a matplotlib Figure or a table out; nothing is written here. Pictures speak English, as the fonts that come
with matplotlib have no Hangul; Korean sentences are in the table. Colours are Okabe and Ito's, told apart by everyone.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.search import Trial

BLUE, ORANGE = "#0072B2", "#D55E00"
COLOURS = [BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
GREY = "#BBBBBB"
BINS = 10
ERRORS_SHOWN = 100


def learning_curves(trials: list[Trial]) -> Figure:
    """Loss and dev F1 over epochs. Of many trials the best six have a colour and a name, the others are grey."""
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    losses, scores = figure.subplots(1, 2)
    ranked = sorted((trial for trial in trials if trial.epochs), key=lambda trial: trial.best_f1, reverse=True)
    for trial in ranked[len(COLOURS) :]:
        _draw_trial(losses, scores, trial, GREY, name=None, detailed=False)
    for trial, colour in zip(ranked, COLOURS, strict=False):
        _draw_trial(losses, scores, trial, colour, name=_readable(trial.name), detailed=len(ranked) == 1)
    if ranked:
        scores.plot([], [], "*", ms=10, color="#555555", label="best epoch")
    what = f"best {len(COLOURS)} of {len(ranked)} trials" if len(ranked) > len(COLOURS) else None
    alone = len(ranked) == 1
    losses.set(title="Loss" if alone else "Loss on dev", xlabel="epoch", ylabel="cross-entropy (nats)")
    scores.set(title="Score on dev" if alone else "Macro F1 on dev", xlabel="epoch", ylabel="score (0 to 1)")
    for axes in (losses, scores):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, title=what, title_fontsize=8)
    if not ranked:
        figure.suptitle("no epoch is finished yet")
    return figure


def _draw_trial(losses, scores, trial: Trial, colour: str, *, name: str | None, detailed: bool) -> None:
    """``detailed``: it has the picture to itself, so train loss and accuracy are drawn too."""
    behind = 1 if colour == GREY else 2

    def draw(axes, key: str, label: str | None, colour: str, style: str) -> None:
        points = [(epoch["epoch"], epoch[key]) for epoch in trial.epochs if epoch.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=label, marker="o", ms=4, zorder=behind)

    if detailed:
        draw(losses, "train_loss", "train", ORANGE, "--")
        draw(losses, "dev_loss", "dev", BLUE, "-")
        draw(scores, "dev_accuracy", "accuracy", ORANGE, "--")
        draw(scores, "dev_f1", "macro F1", BLUE, "-")
    else:
        draw(losses, "dev_loss", name, colour, "-")
        draw(scores, "dev_f1", name and f"{name}: F1 {trial.best_f1:.4f}", colour, "-")
    best = max(trial.epochs, key=lambda epoch: epoch["dev_f1"])
    if colour != GREY:
        scores.plot(best["epoch"], best["dev_f1"], marker="*", ms=13, color=BLUE if detailed else colour, zorder=3)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> Figure:
    """Both arrays INT [rows]. A cell holds its count, and its colour and percentage are of the row's true class."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predicted), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(1.9 + 1.4 * len(names), 1.5 + 1.2 * len(names)), dpi=120, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        ink = "white" if share > 0.55 else "black"
        axes.text(column, row, f"{count:,}\n{share:.1%}", ha="center", va="center", color=ink)
    ticks = [_readable(name, index) for index, name in enumerate(names)]
    axes.set_xticks(range(len(names)), ticks)
    axes.set_yticks(range(len(names)), ticks, rotation=90, va="center")
    hits = np.trace(counts) / max(counts.sum(), 1)
    axes.set(title=f"{hits:.2%} of {counts.sum():,} dev reviews right", xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, format=PercentFormatter(1), label="share of the true class", shrink=0.85)
    return figure


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Does it hit as often as it says? ``labels`` INT [rows], ``probabilities`` FP32 [rows, labels].

    Reviews are binned by the confidence of the answer; ECE, the expected calibration error, is the mean gap between
    confidence and accuracy.
    """
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.linspace(1 / probabilities.shape[1], 1, BINS + 1)  # the answer is never below an equal share
    bins = np.searchsorted(edges[1:-1], confidence, side="right")
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    accuracy = np.bincount(bins, hit, BINS)[filled] / counts[filled]
    said = np.bincount(bins, confidence, BINS)[filled] / counts[filled]
    error = float(np.abs(accuracy - said) @ counts[filled]) / max(len(labels), 1)

    figure = Figure(figsize=(5.2, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], "--", color="#777777", lw=1, label="as often as it says")
    upper.plot(said, accuracy, "o-", color=BLUE, label="this model")
    upper.vlines(said, accuracy, said, color=ORANGE, lw=2, label="gap")
    upper.set(title=f"Reliability on dev: ECE {error:.3f}", ylabel="accuracy in the bin (0 to 1)", ylim=(0, 1.02))
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar(edges[:-1], counts, width=0.92 * np.diff(edges), align="edge", color=BLUE)
    lower.set(xlabel="confidence of the answer (0 to 1)", ylabel="reviews", xlim=(edges[0] - 0.02, 1.02))
    for axes in (upper, lower):
        _plain(axes)
    return figure


def error_table(predictions: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The wrong answers that were given most confidently: text, label, predicted, confidence.

    ``predictions``: a search's dev_predictions, columns text, label and probabilities.
    """
    probabilities = np.stack(predictions.probabilities.to_list())
    chosen = probabilities.argmax(1)
    labels = predictions.label.to_numpy()
    table = pd.DataFrame(
        {
            "text": predictions.text.to_list(),
            "label": [names[index] for index in labels],
            "predicted": [names[index] for index in chosen],
            "confidence": probabilities.max(1).round(4),
        }
    )[chosen != labels]
    return table.sort_values("confidence", ascending=False, kind="stable").head(ERRORS_SHOWN).reset_index(drop=True)


def error_page(table: pd.DataFrame) -> str:
    """The table as an HTML page; texts are escaped, as strangers wrote them."""
    rows = table.to_html(escape=True, index=False, border=0)
    return (
        '<!doctype html><html lang="ko"><meta charset="utf-8"><title>Errors on dev</title><style>'
        "body{font:15px/1.5 sans-serif;margin:2em;max-width:60em}table{border-collapse:collapse;width:100%}"
        "th,td{padding:.35em .8em;border-bottom:1px solid #ddd;text-align:left;overflow-wrap:anywhere}"
        "td:last-child{font-variant-numeric:tabular-nums}</style>"
        f"<h1>The {len(table)} most confident errors on dev</h1>{rows}</html>\n"
    )


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E5E5", lw=0.8)
    axes.set_axisbelow(True)


def _readable(name: str, index: int = 0) -> str:
    return name if name.isascii() else f"class {index}"
