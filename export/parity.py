"""The gate: a written model.onnx, loaded again, against the torch model it was made from, on real labelled sentences.

It opens when labels, accuracy and probabilities stay within the limits below, and when the answer to a text does not
depend on the batch or the padding it comes in. A label that differs where torch itself is undecided (its two best
probabilities closer than NEAR_TIE) is no disagreement: there the labels are a coin's two sides. The agreement that the
manifest states counts such flips as disagreements all the same, and the attempt's reason says how many there were.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from export.checkpoint import Checkpoint
from export.onnx_model import OnnxModel, pad, softmax
from export.reviews import Reviews

MIN_LABEL_AGREEMENT = 0.99
MAX_ACCURACY_LOSS = 0.003
MAX_PROBABILITY_SHIFT = {"int8": 0.10, "fp16": 0.01, "fp32": 0.001}  # largest seen in int8 on trained models: 0.05
# Between a text alone and the same text in any batch. A sum in another order can tip the rounding of an int8 code.
BATCH_TOLERANCE = {"int8": 0.002, "fp16": 0.002, "fp32": 0.0001}
NEAR_TIE = 0.002
BATCH_ROWS = 32
BATCH_CHECK_ROWS = 256


@dataclass(frozen=True)
class Reference:
    """Token ids of the reviews, their labels [rows], and torch's probabilities [rows, labels]."""

    encoded: list[list[int]]
    labels: np.ndarray
    probabilities: np.ndarray
    max_length: int
    pad_token_id: int


@dataclass(frozen=True)
class Measurement:
    """``near_ties`` counts flips where torch was undecided; ``label_agreement`` counts them as disagreements.

    ``probabilities`` [rows, labels] are the answers of the written file.
    """

    rows: int
    finite: bool
    label_agreement: float
    near_ties: int
    accuracy_reference: float
    accuracy_exported: float
    max_probability_shift: float
    max_batch_probability_shift: float
    probabilities: np.ndarray = field(repr=False)


def measure_reference(checkpoint: Checkpoint, tokenizer: Tokenizer, reviews: Reviews) -> Reference:
    """Run torch in fp32 over the reviews, by length so that little padding is computed.

    Each batch runs on one thread of a pool. Left to itself torch splits every product over all cores and waits for the
    slowest, which on a machine with other work to do takes tens of times as long.
    """
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(reviews.texts)]

    @torch.inference_mode()
    def run(batch: list[int]) -> np.ndarray:
        ids, mask = pad([encoded[index] for index in batch], checkpoint.pad_token_id)
        answer = checkpoint.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        return answer.logits.numpy()

    batches = _by_length(encoded)
    logits = np.empty((len(encoded), checkpoint.config.num_labels), np.float32)
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for batch, answer in zip(batches, pool.map(run, batches), strict=True):
            logits[batch] = answer
    return Reference(encoded, np.array(reviews.labels), softmax(logits), checkpoint.max_length, checkpoint.pad_token_id)


def measure(file: Path, reference: Reference) -> Measurement:
    """Load ``file`` and compare it with torch."""
    model = OnnxModel(file)
    exported = np.empty_like(reference.probabilities)
    for batch in _by_length(reference.encoded):
        rows = [reference.encoded[index] for index in batch]
        exported[batch] = model.probabilities(rows, reference.pad_token_id)
    expected, answered = reference.probabilities.argmax(axis=1), exported.argmax(axis=1)
    best = np.sort(reference.probabilities, axis=1)
    undecided = best[:, -1] - best[:, -2] < NEAR_TIE
    return Measurement(
        rows=len(expected),
        finite=bool(np.isfinite(exported).all()),
        label_agreement=float((expected == answered).mean()),
        near_ties=int(((expected != answered) & undecided).sum()),
        accuracy_reference=float((expected == reference.labels).mean()),
        accuracy_exported=float((answered == reference.labels).mean()),
        max_probability_shift=float(np.abs(exported - reference.probabilities).max()),
        max_batch_probability_shift=_batch_shift(model, reference),
        probabilities=exported,
    )


def complaint(measured: Measurement, precision: str) -> str | None:
    """Why the gate stays closed for this file, in words with figures; None when it opens."""
    if not measured.finite:
        return "some probabilities are not finite"
    agreement = measured.label_agreement + measured.near_ties / measured.rows
    if agreement < MIN_LABEL_AGREEMENT:
        return f"labels agree on {agreement:.2%} of {measured.rows:,} reviews, {MIN_LABEL_AGREEMENT:.0%} are needed"
    loss = measured.accuracy_reference - measured.accuracy_exported
    if loss > MAX_ACCURACY_LOSS:
        return f"accuracy falls by {loss * 100:.2f} points, {MAX_ACCURACY_LOSS * 100:.1f} are allowed"
    allowed = MAX_PROBABILITY_SHIFT[precision]
    if measured.max_probability_shift > allowed:
        return f"a probability moves by {measured.max_probability_shift:.4f}, {allowed} is allowed"
    if measured.max_batch_probability_shift > BATCH_TOLERANCE[precision]:
        return (
            f"a probability depends on batch or padding by {measured.max_batch_probability_shift:.5f}, "
            f"{BATCH_TOLERANCE[precision]} is allowed"
        )
    return None


def _batch_shift(model: OnnxModel, reference: Reference) -> float:
    """The largest difference between texts alone, unpadded, and the same texts in mixed batches padded three ways."""
    step = math.ceil(len(reference.encoded) / BATCH_CHECK_ROWS)
    rows = reference.encoded[::step]
    pad_id, full = reference.pad_token_id, reference.max_length
    alone = np.concatenate([model.probabilities([row], pad_id) for row in rows])
    shift = 0.0
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        for width, pad_left in ((None, False), (full, False), (full, True)):
            together = model.probabilities(batch, pad_id, width, pad_left=pad_left)
            shift = max(shift, float(np.abs(together - alone[start : start + BATCH_ROWS]).max()))
    return shift


def _by_length(encoded: list[list[int]]) -> list[list[int]]:
    """Row numbers in batches of similar length."""
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    return [order[start : start + BATCH_ROWS] for start in range(0, len(order), BATCH_ROWS)]
