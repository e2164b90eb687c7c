"""Checkpoint in, accepted model.onnx out: climbs the ladder of remedies until the parity gate opens."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from export import manifest, parity
from export.checkpoint import Checkpoint
from export.errors import GateClosed
from export.graph import build_graph
from export.manifest import Attempt, Parity
from export.padded import LARGEST_HALF, build_padded_graph, largest_half
from export.parity import Measurement, Reference
from export.quantize import RECIPES
from export.reference import describe
from export.reviews import DEFAULT_ROWS, load_reviews

log = logging.getLogger(__name__)

OVERFLOW_ROWS = 64


@dataclass(frozen=True)
class Conversion:
    precision: str
    parity: Parity
    reference: manifest.Reference


def convert_checkpoint(
    checkpoint: Checkpoint, file: Path, *, precision: str = "int8", data: Path | None = None, rows: int = DEFAULT_ROWS
) -> Conversion:
    """Write ``file`` as `convert` does, compared with torch on at most ``rows`` of the labelled reviews of ``data``.

    Raises:
        DataError: the reviews cannot be used.
        GateClosed: no recipe answered like torch.
    """
    reviews = load_reviews(data, checkpoint.labels, rows)
    log.info("torch reads %s of the %s reviews of %s", f"{len(reviews.texts):,}", f"{reviews.found:,}", reviews.name)
    reference = parity.measure_reference(checkpoint, checkpoint.tokenizer, reviews)
    return convert(checkpoint, reference, precision, file)


def convert(checkpoint: Checkpoint, reference: Reference, precision: str, file: Path) -> Conversion:
    """Write ``file`` by the first recipe for ``precision`` that answers like torch.

    Raises:
        GateClosed: not even the last recipe did. ``file`` is then the refused one.
    """
    weights = checkpoint.weights()
    write = build_padded_graph if precision == "fp16" else build_graph
    attempts: list[Attempt] = []
    for recipe in RECIPES[precision]:
        graph = write(checkpoint.config, weights, recipe)
        file.write_bytes(graph.SerializeToString(deterministic=True))
        measured = parity.measure(file, reference)
        reason = parity.complaint(measured, recipe.precision)
        if recipe.precision == "fp16":
            reason = reason or _overflow(file, reference)
        log.info("%s: %s", recipe.remedy, f"refused: {reason}" if reason else _summary(measured))
        if reason is None:
            attempts.append(Attempt(remedy=recipe.remedy, accepted=True, reason=_remark(measured)))
            texts = describe(reference.encoded, measured.probabilities, checkpoint.tokenizer)
            return Conversion(recipe.precision, _parity(measured, recipe.precision, attempts), texts)
        attempts.append(Attempt(remedy=recipe.remedy, accepted=False, reason=reason))
    tried = "; ".join(f"{attempt.remedy}: {attempt.reason}" for attempt in attempts)
    raise GateClosed(
        f"the written model does not answer like torch, so nothing was published ({tried}); "
        "this is a fault of the exporter, not of the checkpoint: please report it"
    )


def _overflow(file: Path, reference: Reference) -> str | None:
    rows = reference.encoded[:: math.ceil(len(reference.encoded) / OVERFLOW_ROWS)]
    largest = largest_half(file, rows, reference.pad_token_id)
    log.info("fp16: no value of %d reviews is beyond %.0f (fp16 ends at 65,504)", len(rows), largest)
    if largest > LARGEST_HALF:
        return f"a value reaches {largest:,.0f}, {LARGEST_HALF:,.0f} is allowed, and fp16 ends at 65,504"
    return None


def _parity(measured: Measurement, precision: str, attempts: list[Attempt]) -> Parity:
    return Parity(
        rows=measured.rows,
        label_agreement=round(measured.label_agreement, 5),
        accuracy_reference=round(measured.accuracy_reference, 5),
        accuracy_exported=round(measured.accuracy_exported, 5),
        max_probability_shift=_rounded_up(measured.max_probability_shift),
        batch_probability_tolerance=parity.BATCH_TOLERANCE[precision],
        max_batch_probability_shift=_rounded_up(measured.max_batch_probability_shift),
        attempts=attempts,
    )


def _remark(measured: Measurement) -> str | None:
    if not measured.near_ties:
        return None
    return f"{measured.near_ties} flip(s) where torch's two best probabilities lie within {parity.NEAR_TIE}"


def _summary(measured: Measurement) -> str:
    return (
        f"labels agree on {measured.label_agreement:.2%} of {measured.rows:,} reviews, "
        f"accuracy {measured.accuracy_exported:.4f} (torch {measured.accuracy_reference:.4f}), "
        f"largest probability shift {measured.max_probability_shift:.4f}, "
        f"by batch or padding {measured.max_batch_probability_shift:.6f}"
    )


def _rounded_up(shift: float) -> float:
    """Six decimals, never below what was measured."""
    return min(1.0, math.ceil(shift * 1e6) / 1e6)
