"""``python -m training.data feedback [--opinions FILE] [--output FILE] [--labels NAME …]``: opinions as a dataset.

The page keeps what people said about its answers (``ui/opinions.py``, SQLite). This makes a Parquet file of it, with
``document``, ``label`` and ``judges``, for ``--dataset.kind files --dataset.train FILE``, and prints how far the
people agree.

Texts that differ in white space only are one text, written as it came first. A judge is a name or, without one, a
visit of the page; of what a judge said about one text the last counts. Where judges differ the majority decides; a
text without one is left out and counted, as are opinions with a label that is not asked for.
"""

import argparse
import os
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from training.config import POLARITY
from training.errors import DatasetError, TrainingError
from training.settings import read_settings


@dataclass(frozen=True)
class Agreement:
    """How far judges agree about the ``texts`` that two or more of them judged.

    ``share`` of the pairs of judges of a text who say the same, the mean over texts; ``kappa`` is Fleiss' for a number
    of judges that differs by text: 0 where chance would do as well, None where all say one label, which shows nothing.
    """

    texts: int
    share: float
    kappa: float | None


@dataclass(frozen=True)
class Feedback:
    """``rows`` of the dataset: ``document``, ``label`` (its name), ``judges`` (INT). The rest are counts and figures.

    ``said``, one row per judge and text: ``judge``, ``label``, and ``with_others``, the share of the text's other
    judges who say the same (NaN where there is none).
    """

    rows: pd.DataFrame
    said: pd.DataFrame
    opinions: int
    other_labels: int
    repeated: int
    conflicts: int
    ties: int
    agreement: Agreement | None


def read_opinions(file: Path) -> pd.DataFrame:
    """``text``, ``label``, ``name`` and ``visit`` (str) of every opinion, the oldest first.

    Raises:
        DatasetError: the file is missing, or no file of opinions.
    """
    if not file.is_file():
        raise DatasetError(f"{file} does not exist; it does once somebody has pressed 틀렸어요 in the page, or name it")
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT text, label, name, visit FROM opinions ORDER BY id").fetchall()
    except sqlite3.Error as exc:
        raise DatasetError(f"{file} cannot be read as the page's opinions: {exc}; name the page's own file") from exc
    return pd.DataFrame(rows, columns=["text", "label", "name", "visit"], dtype="str")


def settle(opinions: pd.DataFrame, labels: list[str]) -> Feedback:
    """One label for each text, from the rows of `read_opinions`."""
    known = opinions[opinions.label.isin(labels)]
    known = known.assign(
        plain=["".join(text.split()) for text in known.text],
        judge=[name.casefold() or f"visit {visit}" for name, visit in zip(known.name, known.visit, strict=True)],
    )
    first = known.drop_duplicates("plain").set_index("plain").text
    said = known.drop_duplicates(["plain", "judge"], keep="last")
    votes = pd.crosstab(said.plain, said.label).reindex(index=first.index, columns=labels, fill_value=0)
    counts = votes.to_numpy(np.int64)
    most = counts.max(axis=1, initial=0)
    judges = counts.sum(axis=1)
    tied = (counts == most[:, None]).sum(axis=1) > 1
    rows = pd.DataFrame(
        {"document": first.to_numpy(), "label": np.array(labels)[counts.argmax(axis=1)], "judges": judges}
    )
    return Feedback(
        rows=rows[~tied].reset_index(drop=True),
        said=_with_others(said, votes),
        opinions=len(opinions),
        other_labels=len(opinions) - len(known),
        repeated=len(known) - len(said),
        conflicts=int((most < judges).sum()),
        ties=int(tied.sum()),
        agreement=measure_agreement(counts),
    )


def measure_agreement(votes: np.ndarray) -> Agreement | None:
    """``votes`` INT [texts, labels]: how many judges gave each label. None where no text has two judges.

    The mean over texts of the pairs that agree, and what it is above that of judges who draw labels at random with
    the shares they have in all (Fleiss 1971, with each text's own number of judges).
    """
    votes = votes[votes.sum(axis=1) >= 2]
    if not len(votes):
        return None
    judges = votes.sum(axis=1)
    share = float(((votes * (votes - 1)).sum(axis=1) / (judges * (judges - 1))).mean())
    by_chance = float(((votes.sum(axis=0) / votes.sum()) ** 2).sum())
    kappa = None if (votes.sum(axis=0) > 0).sum() == 1 else (share - by_chance) / (1 - by_chance)
    return Agreement(len(votes), share, kappa)


def _with_others(said: pd.DataFrame, votes: pd.DataFrame) -> pd.DataFrame:
    counts = votes.to_numpy(np.int64)
    text, label = votes.index.get_indexer(said.plain), votes.columns.get_indexer(said.label)
    others = counts.sum(axis=1)[text] - 1
    same = counts[text, label] - 1
    share = np.divide(same, others, out=np.full(len(said), np.nan), where=others > 0)
    return pd.DataFrame({"judge": said.judge, "label": said.label, "with_others": share}).reset_index(drop=True)


def summary(feedback: Feedback, labels: list[str]) -> str:
    """What was found, and who agrees with whom, as tables for a terminal."""
    counts = Counter(feedback.rows.label)
    lines = [
        f"{feedback.opinions:,} opinions, {len(feedback.rows):,} reviews: "
        + ", ".join(f"{counts[label]:,} {label}" for label in labels),
        "",
        f"{feedback.other_labels:9,}  opinions left out: another label than {', '.join(labels)}",
        f"{feedback.repeated:9,}  opinions left out: the same judge said something about the text later",
        f"{feedback.conflicts:9,}  texts on which judges differ",
        f"{feedback.ties:9,}  of them left out: no majority",
        "",
        _agreement_line(feedback.agreement),
        "",
        f"{'judge':24} {'texts':>9} {'shared':>9} {'with others':>12}" + "".join(f" {label:>12}" for label in labels),
    ]
    for judge, said in feedback.said.groupby("judge"):
        shared = said.with_others.dropna()
        share = f"{shared.mean():.3f}" if len(shared) else "-"
        given = "".join(f" {(said.label == label).sum():12,}" for label in labels)
        lines.append(f"{judge:24} {len(said):9,} {len(shared):9,} {share:>12}{given}")
    return "\n".join(lines)


def _agreement_line(agreement: Agreement | None) -> str:
    if agreement is None:
        return "agreement: no text was judged by two"
    kappa = "undefined, all said one label" if agreement.kappa is None else f"{agreement.kappa:.3f}"
    return (
        f"agreement on {agreement.texts:,} texts judged by two or more: {agreement.share:.3f} of the pairs, "
        f"Fleiss' kappa {kappa}"
    )


def write_dataset(rows: pd.DataFrame, output: Path) -> None:
    """Whole or not at all.

    Raises:
        DatasetError: it is not called .parquet, or cannot be written.
    """
    if output.suffix != ".parquet":
        raise DatasetError(f"{output} is not called .parquet; texts with tabs and line breaks need that format")
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            rows.to_parquet(part, index=False)
            os.replace(part, output)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise DatasetError(f"{output} cannot be written: {exc.strerror or exc}") from exc


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.data feedback", description="Make a dataset of what people said in the page."
    )
    parser.add_argument("--opinions", type=Path, help="the page's file; default: feedback.sqlite3 under NUNCHI_VAR")
    parser.add_argument("--output", type=Path, help="a .parquet; default: feedback.parquet under NUNCHI_VAR")
    parser.add_argument("--labels", nargs="+", default=POLARITY, metavar="NAME", help="in index order")
    options = parser.parse_args(argv)
    if len(set(options.labels)) < max(2, len(options.labels)):
        parser.error(f"--labels is {' '.join(options.labels)}; name two or more, each once")
    try:
        var = read_settings().var
        feedback = settle(read_opinions(options.opinions or var / "feedback.sqlite3"), options.labels)
        print(summary(feedback, options.labels))
        if feedback.rows.empty:
            raise DatasetError(f"no opinion with a label of {', '.join(options.labels)} is settled; nothing is written")
        output = options.output or var / "feedback.parquet"
        write_dataset(feedback.rows, output)
    except TrainingError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    print(f"\n{output}: train on it with --dataset.kind files --dataset.train {output}")
    return 0
