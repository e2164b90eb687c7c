"""Runs a written model.onnx on the CPU. Needs no torch, so a finished bundle can be checked without it."""

from pathlib import Path

import numpy as np
import onnxruntime

from export.manifest import IDS, LOGITS, MASK


class OnnxModel:
    """model.onnx on the CPU, on ``threads`` cores (0: on all)."""

    def __init__(self, file: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        # Idle threads sleep: spinning ones steal the cores from each other on a machine with other work to do.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def probabilities(
        self, rows: list[list[int]], pad_token_id: int, width: int | None = None, *, pad_left: bool = False
    ) -> np.ndarray:
        """FLOAT [rows, labels]; rows are padded to ``width`` columns (None: to the longest)."""
        return softmax(self.logits(*pad(rows, pad_token_id, width, pad_left=pad_left)))

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """FLOAT [rows, labels]; ids and mask INT64 [rows, width]."""
        (logits,) = self._session.run([LOGITS], {IDS: ids, MASK: mask})
        return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def pad(
    rows: list[list[int]], pad_token_id: int, width: int | None = None, *, pad_left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, INT64 [rows, width]."""
    width = width or max(map(len, rows))
    ids = np.full((len(rows), width), pad_token_id, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if pad_left else slice(0, len(row))
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask
