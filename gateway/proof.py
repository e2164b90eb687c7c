"""Is Triton's model the one a bundle describes?  Asked with the golden rows, pinned to the version of the bundle."""

import time

import numpy as np

from gateway.bundle import Bundle, GoldenRow
from gateway.errors import ModelMismatch
from gateway.triton import Tensor, Triton

PROOF_SECONDS = 60.0  # of all golden rows, on a machine that may be busy
ROW_SECONDS = 5.0
ROW_TRIES = 3  # a row shares a batch with whatever is under way, which moves int8 answers a little


async def prove(triton: Triton, bundle: Bundle, *, seconds: float = PROOF_SECONDS) -> None:
    """ModelMismatch unless Triton's model is the one the bundle describes; RequestError if Triton is away.

    The golden rows go one after the other: a caller waits behind one of them at most, behind a whole batch he would
    notice. That a full batch comes out right too was the promoter's to prove.
    """
    until = time.monotonic() + seconds
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
    for row in bundle.manifest.golden:
        await _check(triton, bundle, row, until)


async def check_golden_row(triton: Triton, bundle: Bundle) -> None:
    """The same errors as `prove`, by one golden row in a few milliseconds."""
    await _check(triton, bundle, bundle.manifest.golden[0], time.monotonic() + ROW_SECONDS)


async def _check(triton: Triton, bundle: Bundle, row: GoldenRow, until: float) -> None:
    tolerance = bundle.manifest.golden_probability_tolerance
    for _ in range(ROW_TRIES):
        logits = await triton.logits(bundle, [row.input_ids], until=until)
        shift = float(np.abs(probabilities(logits) - row.probabilities).max())
        if shift <= tolerance:
            return
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
