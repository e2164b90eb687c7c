"""Times model files against each other: all answer the same texts, in turns, so that a noisy neighbour hits them alike.

The texts are padded to max_length as the gateway pads them. What is timed is ONNX Runtime, without tokenizer and
servers. Compare figures of one call only.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from tokenizers import Tokenizer

from export.bundle import verify_bundle
from export.manifest import MODEL_FILE, TOKENIZER_FILE
from export.onnx_model import OnnxModel, pad
from training.data import SAMPLE, read_reviews

BATCH_SIZES = (1, 8, 32)
TEXTS = {1: 40, 8: 160, 32: 320}  # per batch size: enough for the lengths to average out
TURNS = 7
QUANTILE = 0.2  # of the turns of one batch: what the file takes when it is left in peace

Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Contender:
    """A model file and what it reads texts with; the vocabularies of contenders may differ."""

    file: Path
    tokenizer: Tokenizer
    max_length: int
    pad_token_id: int

    @classmethod
    def of_bundle(cls, folder: Path) -> Self:
        """Raises:
        BundleBroken: the version folder is not what its manifest says.
        """
        manifest = verify_bundle(folder)
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        return cls(folder / MODEL_FILE, tokenizer, manifest.max_length, manifest.pad_token_id)

    def batches(self, texts: list[str], size: int) -> list[Batch]:
        """Ids and mask INT64 [size, max_length] of the first TEXTS[size] texts."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts[: TEXTS[size]])]
        return [
            pad(rows[start : start + size], self.pad_token_id, self.max_length) for start in range(0, len(rows), size)
        ]


def texts_of_natural_length(file: Path | None = None) -> list[str]:
    """As many reviews as timing takes, always the same ones, of ``file`` in NSMC's format or of the bundled ones.

    Raises:
        DatasetError: the file cannot be read.
    """
    return read_reviews(file or SAMPLE).document.sample(max(TEXTS.values()), random_state=1).tolist()


def milliseconds_per_text(contenders: list[Contender], texts: list[str], threads: int) -> list[dict[int, float]]:
    """By batch size, for each contender; ``texts`` are those of `texts_of_natural_length`."""
    models = [OnnxModel(contender.file, threads) for contender in contenders]
    figures: list[dict[int, float]] = [{} for _ in contenders]
    for size in BATCH_SIZES:
        seconds = _seconds_per_batch(models, [contender.batches(texts, size) for contender in contenders])
        for figure, each in zip(figures, seconds, strict=True):
            figure[size] = float(each) / size * 1000
    return figures


def _seconds_per_batch(models: list[OnnxModel], batches: list[list[Batch]]) -> np.ndarray:
    """FLOAT [models]; ``batches`` holds a list for each model, all of one length."""
    seconds = np.empty((len(models), len(batches[0]), TURNS))
    for turn in range(TURNS):
        for place, together in enumerate(zip(*batches, strict=True)):
            for number, (model, batch) in enumerate(zip(models, together, strict=True)):
                started = time.perf_counter()
                model.logits(*batch)
                seconds[number, place, turn] = time.perf_counter() - started
    return np.quantile(seconds, QUANTILE, axis=2).mean(axis=1)
