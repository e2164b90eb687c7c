"""Checkpoint in, accepted model.onnx out: climbs the ladder of remedies until the parity gate opens."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export import manifest, parity
from export.calibration import calibration, smoothing
from export.checkpoint import Checkpoint
from export.errors import GateClosed
from export.graph import Weights, build_graph
from export.manifest import Attempt, Parity
from export.onnx_model import OnnxModel
from export.padded import LARGEST_HALF, build_padded_graph, largest_half
from export.parity import Measurement, Reference
from export.quantize import Recipe, has_vnni, recipes
from export.reference import describe
from export.reviews import DEFAULT_ROWS, load_reviews

log = logging.getLogger(__name__)

OVERFLOW_ROWS = 64
SENSITIVITY_ROWS = 256


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
    vnni = has_vnni()
    attempts: list[Attempt] = []
    for recipe in recipes(precision, vnni=vnni):
        given = weights
        if recipe.calibrated:
            given = weights | calibration(checkpoint, reference.encoded)
        elif recipe.smoothed:
            given = weights | smoothing(checkpoint, reference.encoded)
        if recipe.spared:
            recipe = _spare_layers(checkpoint, given, recipe, reference, file)
        file.write_bytes(write(checkpoint.config, given, recipe).SerializeToString(deterministic=True))
        measured = parity.measure(file, reference)
        reason = parity.complaint(measured, recipe.precision)
        if recipe.precision == "fp16":
            reason = reason or _overflow(file, reference)
        log.info("%s: %s%s", recipe.remedy, f"refused: {reason}; " if reason else "", _summary(measured))
        attempts.append(_attempt(recipe, measured, reason))
        if reason is None:
            texts = describe(reference.encoded, measured.probabilities, checkpoint.tokenizer)
            return Conversion(recipe.precision, _parity(measured, recipe.precision, attempts, vnni), texts)
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


def _spare_layers(checkpoint: Checkpoint, weights: Weights, recipe: Recipe, reference: Reference, file: Path) -> Recipe:
    """The recipe with the layers named whose sparing alone brings the answers nearest to torch's; writes ``file``."""
    step = math.ceil(len(reference.encoded) / SENSITIVITY_ROWS)
    encoded, expected = reference.encoded[::step], reference.probabilities[::step]
    distance = {}
    for number in range(checkpoint.config.num_hidden_layers):
        graph = build_graph(checkpoint.config, weights, replace(recipe, float_layers=frozenset([number])))
        file.write_bytes(graph.SerializeToString())
        found = OnnxModel(file).probabilities(encoded, reference.pad_token_id)
        distance[number] = float(np.abs(found - expected).mean())
    spared = sorted(distance, key=distance.__getitem__)[: math.ceil(recipe.spared * len(distance))]
    named = ", ".join(str(number + 1) for number in sorted(spared))
    return replace(recipe, remedy=f"{recipe.remedy} ({named})", float_layers=frozenset(spared))


def _attempt(recipe: Recipe, measured: Measurement, reason: str | None) -> Attempt:
    return Attempt(
        remedy=recipe.remedy,
        accepted=reason is None,
        reason=reason or _remark(measured),
        label_agreement=round(measured.label_agreement, 5),
        accuracy=round(measured.accuracy_exported, 5),
        max_probability_shift=_rounded_up(measured.max_probability_shift) if measured.finite else None,
        max_batch_probability_shift=_rounded_up(measured.max_batch_probability_shift) if measured.finite else None,
    )


def _parity(measured: Measurement, precision: str, attempts: list[Attempt], vnni: bool) -> Parity:
    return Parity(
        rows=measured.rows,
        label_agreement=round(measured.label_agreement, 5),
        accuracy_reference=round(measured.accuracy_reference, 5),
        accuracy_exported=round(measured.accuracy_exported, 5),
        max_probability_shift=_rounded_up(measured.max_probability_shift),
        batch_probability_tolerance=parity.BATCH_TOLERANCE[precision],
        max_batch_probability_shift=_rounded_up(measured.max_batch_probability_shift),
        attempts=attempts,
        vnni=vnni,
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
