"""Asks Triton what the answer is already known of: the golden rows of the served version, over gRPC.

It follows serving.json, so after a promotion the rows are those of the new version.
"""

import logging
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from server.bundle import INPUTS, MODEL, OUTPUT, Bundle, GoldenRow, read_served_bundle, read_served_version
from server.errors import CannotStart
from server.triton import LOOPBACK

log = logging.getLogger("server")


class WrongAnswer(Exception):
    """Triton answered a golden row with other probabilities than the manifest."""


class NoAnswer(Exception):
    """Triton did not answer a golden row.  `late`: it had not said anything when the time was up."""

    def __init__(self, message: str, *, late: bool) -> None:
        super().__init__(message)
        self.late = late

    @property
    def dead_stub(self) -> bool:
        """Triton knows that the process of this version is gone, and will say so for ever."""
        return "is not healthy" in str(self)

    @property
    def not_loaded(self) -> bool:
        """Triton lives, but serving.json names a version that was never loaded, or unloaded by an operator."""
        return "unknown model" in str(self)


class Canary:
    """A client for one life of Triton; `async with` closes its channel."""

    def __init__(self, repository: Path, bundle: Bundle, port: int) -> None:
        self.repository = repository
        self.bundle = bundle
        self.turn = 0
        self.complaint = ""
        # The default waits for up to two minutes between two attempts to connect.
        patience = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        self.client = InferenceServerClient(f"{LOOPBACK}:{port}", channel_args=patience)

    async def __aenter__(self) -> "Canary":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def check_all(self, seconds: float) -> None:
        """Every golden row, in as few requests as the model takes; raise `NoAnswer` or `WrongAnswer`."""
        self.follow_serving()
        rows, size = self.bundle.manifest.golden, self.bundle.max_batch_size
        for start in range(0, len(rows), size):
            await self.check(rows[start : start + size], seconds)

    async def check_next(self, seconds: float) -> None:
        """One golden row; the next one after it was answered right, the same one again after anything else."""
        self.follow_serving()
        rows = self.bundle.manifest.golden
        await self.check([rows[self.turn % len(rows)]], seconds)
        self.turn += 1

    async def check(self, rows: list[GoldenRow], seconds: float) -> None:
        manifest = self.bundle.manifest
        try:
            result = await self.client.infer(
                MODEL,
                golden_inputs(rows, width=manifest.max_length, padding=manifest.pad_token_id),
                model_version=str(self.bundle.version),
                client_timeout=seconds,
            )
        except InferenceServerException as error:
            raise NoAnswer(error.message(), late="DEADLINE_EXCEEDED" in (error.status() or "")) from None
        logits = result.as_numpy(OUTPUT).astype(float)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        shift = np.abs(probabilities - [row.probabilities for row in rows]).max()
        if not shift <= manifest.golden_probability_tolerance:
            raise WrongAnswer(
                f"version {self.bundle.version} is off by {shift:.3f} in a golden row, "
                f"{manifest.golden_probability_tolerance} is allowed"
            )

    async def executions(self, seconds: float) -> int | None:
        """Batches all loaded versions have finished since they were loaded; None when Triton does not say."""
        try:
            statistics = await self.client.get_inference_statistics(MODEL, client_timeout=seconds)
        except InferenceServerException:
            return None
        return sum(version.execution_count for version in statistics.model_stats)

    def follow_serving(self) -> None:
        """Turn to the version serving.json names now; a broken file is reported once, and the last good one counts."""
        try:
            if read_served_version(self.repository) != self.bundle.version:
                self.bundle = read_served_bundle(self.repository)
                self.turn = 0
                log.info("serving version=%d", self.bundle.version)
        except CannotStart as error:
            if str(error) != self.complaint:
                log.error("serving.json is not followed: %s", error)
            self.complaint = str(error)
        else:
            self.complaint = ""


def golden_inputs(rows: list[GoldenRow], *, width: int, padding: int) -> list[InferInput]:
    """The rows as every client sends them, padded to the model's full width: requests of one shape share a batch."""
    ids = np.full((len(rows), width), padding, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row.input_ids)] = row.input_ids
        mask[index, : len(row.input_ids)] = 1
    inputs = []
    for name, tensor in zip(INPUTS, (ids, mask), strict=True):
        inputs.append(InferInput(name, tensor.shape, "INT64"))
        inputs[-1].set_data_from_numpy(tensor)
    return inputs
