"""What a classifier is worth, said once and with its uncertainty.

F1 is the macro average over classes: equal to the mean of both classes' F1 for two labels, and fair to a rare third.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from transformers import PreTrainedModel

from training.batches import EncodedTexts, pad_batch
from training.errors import CollapsedModel

COLLAPSE_SHARE = 0.98
Z_95 = 1.959964


@dataclass(frozen=True)
class Metrics:
    """Figures over ``rows`` reviews. ``confusion[true][predicted]`` counts; the interval is Wilson's, at 95 %."""

    dataset: str
    rows: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    f1: float
    confusion: list[list[int]]

    def as_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.accuracy_interval
        return (
            f"{self.dataset}: accuracy {self.accuracy:.4f} (95 % interval {low:.4f}-{high:.4f}), "
            f"macro F1 {self.f1:.4f}, {self.rows:,} reviews"
        )


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same ``rows``, by McNemar's test.

    ``only_first`` rows are right with the first model alone, ``only_second`` with the second alone. ``difference`` is
    the first's accuracy less the second's, ``interval`` its 95 % interval. Shares, not points.
    """

    rows: int
    only_first: int
    only_second: int
    p_value: float
    difference: float
    interval: tuple[float, float]

    def as_dict(self) -> dict:
        return asdict(self)


def measure(dataset: str, labels: np.ndarray, predicted: np.ndarray, classes: int) -> Metrics:
    """Both arrays INT [rows], indices below ``classes``."""
    hits = int((labels == predicted).sum())
    interval = binomtest(hits, len(labels)).proportion_ci(method="wilson")
    return Metrics(
        dataset=dataset,
        rows=len(labels),
        accuracy=round(float(accuracy_score(labels, predicted)), 5),
        accuracy_interval=(round(interval.low, 5), round(interval.high, 5)),
        f1=round(float(f1_score(labels, predicted, labels=range(classes), average="macro", zero_division=0)), 5),
        confusion=confusion_matrix(labels, predicted, labels=range(classes)).tolist(),
    )


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> PairedComparison:
    """Both BOOL [rows]: where each model is right. The exact two-sided test, however many rows they differ on.

    The interval is Agresti and Min's (half a row added to each cell): it keeps its width where models hardly differ.
    """
    rows = len(first_right)
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    differing = only_first + only_second
    p_value = binomtest(only_first, differing).pvalue if differing else 1.0
    middle = (only_first - only_second) / (rows + 2)
    spread = Z_95 * ((differing + 1) / (rows + 2) - middle**2) ** 0.5 / (rows + 2) ** 0.5
    return PairedComparison(
        rows=rows,
        only_first=only_first,
        only_second=only_second,
        p_value=float(p_value),
        difference=round((only_first - only_second) / rows, 6),
        interval=(round(middle - spread, 6), round(middle + spread, 6)),
    )


def refuse_collapsed(predicted: np.ndarray, labels: np.ndarray) -> None:
    """Raises:
    CollapsedModel: one class is predicted for more than 98 % of the rows, though it is not that common.
    """
    majority = np.bincount(predicted).argmax()
    share, truth = float((predicted == majority).mean()), float((labels == majority).mean())
    if share > COLLAPSE_SHARE and truth < COLLAPSE_SHARE:
        raise CollapsedModel(
            f"the model answers class {majority} for {share:.1%} of the reviews (true share {truth:.1%}); "
            "train again with a lower learning rate or a longer warm-up"
        )


@torch.inference_mode()
def predict_logits(model: PreTrainedModel, texts: EncodedTexts, batch_size: int = 256) -> np.ndarray:
    """FP32 [rows, labels] in the order of ``texts``; batches are cut from texts of like length."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(texts)), key=lambda index: len(texts.rows[index]))
    logits = np.empty((len(texts), model.config.num_labels), np.float32)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = pad_batch([texts[index] for index in chosen], model.config.pad_token_id)
        batch.pop("labels")
        logits[chosen] = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits.float().cpu()
    model.train(was_training)
    return logits
