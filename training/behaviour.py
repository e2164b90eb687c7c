"""What a model must get right whatever its accuracy: ``behaviour.tsv``, hand-written Korean sentences of many domains.

Each case has a kind (negation, typos, spacing, irony, …) and what is expected of its text:

    positive, negative    leans that way
    more                  leans more to the positive side than ``other``
    same                  leans the same way as ``other``

To lean is to compare p(positive) with p(negative), so that a model with a neutral label is judged alike.
Nobody trains on these sentences: a case that a model fails is mended in the model, not in the file.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from training.errors import RegistryError

CASES = Path(__file__).with_name("behaviour.tsv")
NEGATIVE, POSITIVE = "negative", "positive"


class Predictor(Protocol):
    """What `training.predict.SentimentPredictor` offers: label names in index order, FP32 [rows, labels]."""

    labels: tuple[str, ...]

    def probabilities(self, texts: list[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class Case:
    kind: str
    text: str
    expected: Literal["positive", "negative", "more", "same"]
    other: str


def read_cases() -> list[Case]:
    with CASES.open(encoding="utf-8", newline="") as file:
        return [Case(**row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def run_cases(cases: Sequence[Case], predictor: Predictor) -> np.ndarray:
    """BOOL [cases]: which of them the model passes.

    Raises:
        RegistryError: its labels do not include positive and negative.
    """
    if not {NEGATIVE, POSITIVE} <= set(predictor.labels):
        raise RegistryError(
            f"the model answers {', '.join(predictor.labels)}; the behaviour suite asks for {NEGATIVE} and {POSITIVE}"
        )
    texts = sorted({text for case in cases for text in (case.text, case.other) if text})
    leanings = dict(zip(texts, _leaning(predictor, texts), strict=True))
    return np.array([_passes(case, leanings[case.text], leanings.get(case.other, 0.0)) for case in cases])


def count_by_kind(cases: Sequence[Case], passed: np.ndarray) -> dict[str, tuple[int, int]]:
    """Per kind, in the order of the file: cases passed, cases there are."""
    counts: dict[str, tuple[int, int]] = {}
    for case, fine in zip(cases, passed, strict=True):
        before = counts.get(case.kind, (0, 0))
        counts[case.kind] = (before[0] + int(fine), before[1] + 1)
    return counts


def _leaning(predictor: Predictor, texts: list[str]) -> np.ndarray:
    """FP64 [texts]: log p(positive) - log p(negative); unlike probabilities it does not saturate near 0 and 1."""
    logs = np.log(np.maximum(predictor.probabilities(texts).astype(float), 1e-12))
    return logs[:, predictor.labels.index(POSITIVE)] - logs[:, predictor.labels.index(NEGATIVE)]


def _passes(case: Case, leaning: float, other: float) -> bool:
    match case.expected:
        case "positive":
            return leaning > 0
        case "negative":
            return leaning < 0
        case "more":
            return leaning > other
        case "same":
            return (leaning > 0) == (other > 0)
