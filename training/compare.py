"""Two registered versions on the same test rows, by the answers they gave when they were registered."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from training.errors import TrainingError
from training.evaluate import PairedComparison, mcnemar
from training.examination import names, same_rows

if TYPE_CHECKING:
    from training.registry import Registry, Version

ROWS_SHOWN = 20


@dataclass(frozen=True)
class Comparison:
    """``paired`` has ``first`` first; it is None, and ``why_not`` says why, when they did not answer the same rows.

    ``differing``: the rows they answer differently. number (of the row in test, from 0), truth, first, second (names of
    labels), first_confidence, second_confidence.
    """

    first: "Version"
    second: "Version"
    paired: PairedComparison | None
    why_not: str | None
    differing: pd.DataFrame


def compare(registry: "Registry", first: "Version", second: "Version") -> Comparison:
    nothing = pd.DataFrame(columns=["number", "truth", "first", "second", "first_confidence", "second_confidence"])
    if set(first.labels) != set(second.labels):
        return Comparison(first, second, None, "they answer different labels", nothing)
    ours, theirs = registry.examination(first), registry.examination(second)
    truth = names(first.labels, ours.label)
    # Fingerprints may differ while the rows do not: the share of train that was used is part of one.
    if not (same_rows(ours, theirs) and (truth == names(second.labels, theirs.label)).all()):
        return Comparison(first, second, None, "they were tested on different rows", nothing)
    answers = names(first.labels, ours.predicted), names(second.labels, theirs.predicted)
    table = pd.DataFrame(
        {
            "number": np.arange(len(truth)),
            "truth": truth,
            "first": answers[0],
            "second": answers[1],
            "first_confidence": [max(row) for row in ours.probabilities],
            "second_confidence": [max(row) for row in theirs.probabilities],
        }
    )
    paired = mcnemar(answers[0] == truth, answers[1] == truth)
    return Comparison(first, second, paired, None, table[answers[0] != answers[1]])


def show(registry: "Registry", comparison: Comparison, console: Console) -> None:
    """Print the figures of both, McNemar's test, and some rows on which they differ."""
    first, second, paired = comparison.first, comparison.second, comparison.paired
    figures = Table("", f"version {first.number}", f"version {second.number}")
    for name, value in (
        ("stage", lambda version: version.stage),
        ("test", lambda version: f"{version.metrics['dataset']}, {version.metrics['rows']:,} rows"),
        ("accuracy", lambda version: f"{version.metrics['accuracy']:.4f}"),
        ("95 % interval", lambda version: "{:.4f}-{:.4f}".format(*version.metrics["accuracy_interval"])),
        ("macro F1", lambda version: f"{version.metrics['f1']:.4f}"),
    ):
        figures.add_row(name, value(first), value(second))
    console.print(figures)
    if paired is None:
        console.print(f"no McNemar's test: {comparison.why_not}")
        return
    console.print(
        f"on the same {paired.rows:,} rows: {paired.only_first:,} right with {first.number} alone, "
        f"{paired.only_second:,} with {second.number} alone; difference {paired.difference * 100:+.2f} points "
        f"(95 % interval {paired.interval[0] * 100:+.2f} to {paired.interval[1] * 100:+.2f}), "
        f"McNemar p = {paired.p_value:.2g}"
    )
    _show_rows(registry, comparison, console)


def _show_rows(registry: "Registry", comparison: Comparison, console: Console) -> None:
    """The surest disagreements first."""
    if comparison.differing.empty:
        return
    sure = comparison.differing[["first_confidence", "second_confidence"]].min(axis=1)
    chosen = comparison.differing.loc[sure.sort_values(ascending=False).index[:ROWS_SHOWN]]
    try:
        texts = registry.dataset(comparison.first).test().document
    except TrainingError as refusal:
        console.print(f"the texts are not shown: {refusal}")
        texts = None
    table = Table(
        "row", "truth", f"version {comparison.first.number}", f"version {comparison.second.number}", "text",
        title=f"{len(chosen)} of the {len(comparison.differing):,} rows on which they differ",
    )  # fmt: skip
    for row in chosen.itertuples():
        answers = f"{row.first} {row.first_confidence:.2f}", f"{row.second} {row.second_confidence:.2f}"
        table.add_row(str(row.number), row.truth, *answers, "" if texts is None else texts.iloc[row.number])
    console.print(table)
