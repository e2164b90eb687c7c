"""What a student learns from its teachers: ``--train.teachers "[CHECKPOINT, …]"``.

The targets are the teachers' mean probabilities (Hinton et al. 2015, arXiv:1503.02531), over the labelled reviews,
where they are mixed with the true labels, and over NSMC's reviews that the labels leave out: three times as many, and
where a student gains most. Dev and test stay as they are, and of what is added no text stands in either.
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from training.batches import EncodedTexts
from training.data import Dataset
from training.encoders import load_finetuned
from training.errors import CheckpointError
from training.evaluate import predict_logits

log = logging.getLogger(__name__)

HARD_SHARE = 0.3
"""Weight of the true label, where there is one."""


def taught(dataset: Dataset, teachers: list[Path], max_length: int) -> pd.DataFrame:
    """All that may be learned from, as the teachers read it: ``label`` holds a distribution, FP32 [labels].

    It takes no label smoothing, the teachers' doubt stands in its place: `training.config` refuses the two together.

    Args:
        teachers: folders of classifiers over the dataset's labels.
        max_length: tokens that they read of a text.

    Raises:
        CheckpointError: a teacher cannot be loaded, or answers other labels.
    """
    reviews, _ = dataset.learning_parts()
    if dataset.config.kind == "nsmc":
        others = dataset.star_reviews()
        others = others[~others.document.isin(set(reviews.document))]
        reviews = pd.concat([reviews, others.assign(label=-1)], ignore_index=True)
    soft = _mean_probabilities(teachers, reviews.document.tolist(), dataset.labels, max_length)
    return reviews.assign(label=list(mix(soft, reviews.label.to_numpy(), HARD_SHARE)))


def mix(soft: np.ndarray, truth: np.ndarray, hard_share: float) -> np.ndarray:
    """Targets FP32 [rows, labels]: ``hard_share`` of the true label, the rest the teachers'; truth -1: unknown."""
    known = truth >= 0
    targets = soft.copy()
    targets[known] *= 1 - hard_share
    targets[known, truth[known]] += hard_share
    return targets


def _mean_probabilities(teachers: list[Path], texts: list[str], labels: tuple[str, ...], max_length: int) -> np.ndarray:
    """FP32 [texts, labels]."""
    total = np.zeros((len(texts), len(labels)))
    for number, teacher in enumerate(teachers, start=1):
        log.info("teacher %d of %d reads %s reviews", number, len(teachers), f"{len(texts):,}")
        model, tokenizer = load_finetuned(teacher)
        encoded = EncodedTexts(tokenizer, texts, [0] * len(texts), max_length)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):  # targets need no more digits, and half the time
            logits = predict_logits(model, encoded)
        total += torch.tensor(logits).softmax(1).numpy()[:, _columns(model, teacher, labels)]
    return (total / len(teachers)).astype(np.float32)


def _columns(model: PreTrainedModel, teacher: Path, labels: tuple[str, ...]) -> list[int]:
    """Where the teacher's answer to each of ``labels`` stands."""
    answers = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if sorted(answers) != sorted(labels):
        raise CheckpointError(
            f"the teacher {teacher} answers {', '.join(answers)}, and the dataset is labelled {', '.join(labels)}; "
            "take a teacher that was fine-tuned on the same labels"
        )
    return [answers.index(label) for label in labels]
