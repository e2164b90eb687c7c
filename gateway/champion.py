"""The Champion in service: the one bundle that answers, proven through Triton, switched when serving.json changes.

A bundle goes live only after Triton described the same inputs, outputs and labels and gave the golden rows the golden
probabilities, pinned to that version, in a request of `max_batch_size` rows.  Until the first one is proven nothing is
served; later a bundle that fails leaves the old one in place, and one clear sentence in the log.  While serving.json
names a version that is not live, it is tried again, so Triton may come up late.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gateway.bundle import Bundle, read_bundle, serving_path
from gateway.errors import BundleBroken, ModelMismatch, ModelUnavailable, RequestError
from gateway.triton import Tensor, Triton

POLL_SECONDS = 0.25  # how soon a changed serving.json is seen
RETRY_SECONDS = 1.0  # how soon a bundle that Triton would not confirm is tried again
PROOF_SECONDS = 60.0  # a proof is one full batch, on a machine that may be busy
CANARY_SECONDS = 5.0
CANARY_TRIES = 3  # its row shares a batch with whatever is under way, which moves int8 answers a little
READY_FOR_SECONDS = 1.0  # one canary answers every readiness question of a second

log = logging.getLogger(__name__)


class Champion:
    """Which bundle answers.  `run` keeps it up to date; `live` is read once per request."""

    def __init__(self, repository: Path, triton: Triton, bundle: Bundle, on_change: Callable[[Bundle], None]) -> None:
        self._repository = repository
        self._triton = triton
        self._on_change = on_change
        self._named = bundle  # what serving.json asks for
        self._proven: Bundle | None = None
        self._seen = _signature(repository)
        self._stepping = asyncio.Lock()
        self._looked_at = 0.0
        self._next_try = 0.0
        self._in_doubt = False
        self._last_sentence = ""
        self._canary = asyncio.Lock()
        self._canary_until = 0.0
        self._canary_error: ModelUnavailable | None = None

    @property
    def named(self) -> Bundle:
        """The bundle to name in headers: the live one, or before there is one, the one it will be."""
        return self._proven or self._named

    @property
    def live(self) -> Bundle:
        """The bundle that answers; ModelUnavailable before the first one is proven."""
        if self._proven is None:
            raise ModelUnavailable("The model is not ready yet; try again in a moment")
        return self._proven

    async def run(self) -> None:
        """Watch serving.json and Triton for ever."""
        while True:
            try:
                await self.refresh()
            except Exception:
                log.exception("watching %s failed; trying again", serving_path(self._repository))
            await asyncio.sleep(POLL_SECONDS)

    async def refresh(self, *, now: bool = False) -> None:
        """Look at serving.json once and act on it; `now` also retries a bundle whose turn is not yet.

        Callers that arrive while another is looking share the next look.
        """
        arrived = time.monotonic()
        async with self._stepping:
            if self._looked_at >= arrived:
                return
            self._looked_at = time.monotonic()
            signature = _signature(self._repository)
            if signature != self._seen:
                self._seen = signature
                self._next_try = 0.0
                await self._read()
            if now or time.monotonic() >= self._next_try:
                await self._prove()

    def doubt(self) -> None:
        """Triton failed somebody: it may have been replaced, so the live bundle has to be proven again."""
        self._in_doubt = True

    async def check_ready(self) -> Bundle:
        """The live bundle, if a golden row through Triton came out right within the last second.

        One canary at a time: whoever asks meanwhile gets its result.
        """
        async with self._canary:
            if time.monotonic() >= self._canary_until:
                try:
                    await self._send_canary()
                    self._canary_error = None
                except ModelUnavailable as error:
                    self._canary_error = error
                self._canary_until = time.monotonic() + READY_FOR_SECONDS
        if self._canary_error:
            raise ModelUnavailable(self._canary_error.detail)
        return self.live

    async def _send_canary(self) -> None:
        bundle = self.live
        for left in reversed(range(CANARY_TRIES)):
            try:
                return await check_golden_rows(self._triton, bundle, rows=1, seconds=CANARY_SECONDS)
            except ModelMismatch as error:
                if not left:
                    self.doubt()
                    raise ModelUnavailable("The model gives other answers than when it was published") from error
            except RequestError as error:
                self.doubt()
                raise ModelUnavailable("The model server does not answer; try again in a moment") from error

    async def _read(self) -> None:
        try:
            bundle = await asyncio.to_thread(read_bundle, self._repository)
        except BundleBroken as error:
            self._say(f"keeping version {self.named.version}: {error}")
            return
        if self._proven and bundle.version == self._proven.version:
            bundle = dataclasses.replace(self._proven, since=bundle.since)
            self._proven = bundle
        self._named = bundle

    async def _prove(self) -> None:
        wanted = self._named
        if self._proven is wanted and not self._in_doubt:
            return
        self._in_doubt = False
        try:
            await prove(self._triton, wanted)
        except ModelMismatch as error:
            if self._proven is wanted:
                self._proven = None
            self._postpone(f"version {wanted.version} will not serve: {error}")
        except RequestError as error:
            self._in_doubt = self._proven is wanted
            self._postpone(
                f"version {wanted.version} is waiting for Triton at {self._triton.address}: {error.cause or error}"
            )
        else:
            if self._proven is not wanted:
                log.info("version %s of %s answers", wanted.version, wanted.model)
            self._last_sentence = ""
            self._proven = wanted
            self._canary_until = 0.0
            self._on_change(wanted)

    def _postpone(self, sentence: str) -> None:
        self._next_try = time.monotonic() + RETRY_SECONDS
        still = f"; version {self._proven.version} goes on" if self._proven else ""
        self._say(sentence + still)

    def _say(self, sentence: str) -> None:
        """Log a sentence, once while it stays true."""
        if sentence != self._last_sentence:
            log.error(sentence)
            self._last_sentence = sentence


async def prove(triton: Triton, bundle: Bundle, *, seconds: float = PROOF_SECONDS) -> None:
    """ModelMismatch unless Triton's model is the one the bundle describes; RequestError if Triton is away.

    The golden rows fill a whole batch, so that Triton merges them with nothing else and their answer is repeatable.
    """
    described = await triton.describe(bundle.model, bundle.version, seconds=seconds)
    expected_inputs = {Tensor(name, "INT64", (-1, -1)) for name in bundle.manifest.inputs}
    expected_outputs = {Tensor(bundle.manifest.output, "FP32", (-1, len(bundle.labels)))}
    for what, expected, found in (
        ("inputs", expected_inputs, set(described.inputs)),
        ("outputs", expected_outputs, set(described.outputs)),
    ):
        if expected != found:
            raise ModelMismatch(
                f"Triton at {triton.address} reports the {what} {_shown(found)} for {bundle.model} version "
                f"{bundle.version}, its manifest says {_shown(expected)}; point both at the same model repository"
            )
    await check_golden_rows(triton, bundle, rows=bundle.max_batch_size, seconds=seconds)


async def check_golden_rows(triton: Triton, bundle: Bundle, *, rows: int, seconds: float) -> None:
    """ModelMismatch unless `rows` golden rows (repeated if there are fewer) come back with the golden probabilities."""
    golden = list(itertools.islice(itertools.cycle(bundle.manifest.golden), rows))
    logits = await triton.logits(bundle, [row.input_ids for row in golden], until=time.monotonic() + seconds)
    expected = np.array([row.probabilities for row in golden])
    shift = float(np.abs(probabilities(logits) - expected).max())
    tolerance = bundle.manifest.golden_probability_tolerance
    if shift > tolerance:
        raise ModelMismatch(
            f"Triton at {triton.address} moves the golden probabilities of {bundle.model} version {bundle.version} by "
            f"{shift:.3f}, its manifest tolerates {tolerance:.3f}; point both at the same model repository"
        )


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in double precision."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def _shown(tensors: set[Tensor]) -> str:
    return ", ".join(f"{each.name} {each.datatype}{list(each.shape)}" for each in sorted(tensors)) or "none"


def _signature(repository: Path) -> tuple[int, ...] | None:
    """Changes whenever serving.json is replaced or written."""
    with contextlib.suppress(OSError):
        status = os.stat(serving_path(repository))
        return status.st_ino, status.st_mtime_ns, status.st_size
    return None
