"""Drift: how far the texts of today lie from those the served version was measured on.

For each version with a `reference` in its manifest (export/reference.py writes it), four features of the texts answered
are counted: the label, the confidence, the length in tokens and the share of unknown words.  Old texts count less and
less, so that the counts speak of about the last WINDOW_TEXTS of them; nothing is said before MINIMUM_TEXTS were read.

What is said is the population stability index, the sum over bins of (now - then) * ln(now / then): 0 when nothing has
moved.  It is the symmetric divergence of Jeffreys (H. Jeffreys, "An invariant form for the prior probability in
estimation problems", Proc. R. Soc. A 186, 1946); N. Siddiqi, "Credit Risk Scorecards" (Wiley 2006), brought it and its
rule of thumb into use: below 0.1 no change to speak of, 0.1 to 0.25 some, above 0.25 a large one.  Chance alone
contributes about (bins - 1) * (1 / texts now + 1 / texts then) (B. Yurdakul, "Statistical Properties of Population
Stability Index", Western Michigan University 2018): 0.02 for 10 bins of 500 texts, so MINIMUM_TEXTS is low enough to
be early and high enough for the thresholds to mean something.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.bundle import Bundle, Reference, Tokens

WINDOW_TEXTS = 10_000
MINIMUM_TEXTS = 500
GROWTH = 1 + 1 / WINDOW_TEXTS  # each text weighs this much more than the one before it
HEAVIEST = 1e100  # then all weights are divided, long before they leave the range of a float
SMOOTHING = 0.5  # of a text, added to every bin, so that an empty one has a logarithm


class Feature:
    """Weighted counts of one feature beside the shares it had in the reference."""

    def __init__(self, bins: Sequence[str], reference: Sequence[float], reference_rows: int) -> None:
        self.bins = bins
        self.counts = [0.0] * len(bins)
        self.reference = smoothed([share * reference_rows for share in reference])

    def shares(self, weight: float) -> list[float]:
        """The share of each bin; `weight` is that of the latest text, in which the counts are measured."""
        return smoothed([count / weight for count in self.counts])


class Running:
    """The running distribution of the texts that one version answered."""

    def __init__(self, bundle: Bundle, reference: Reference) -> None:
        rows = reference.rows
        self._edges = (reference.confidence.edges, reference.length.edges, reference.unknown.edges)
        self._special = bundle.special_tokens
        self._unknown_id = bundle.unknown_id
        self.features = {
            "label": Feature([label.name for label in bundle.labels], reference.label, rows),
            **{
                name: Feature(bin_names(each.edges), each.shares, rows)
                for name, each in (
                    ("confidence", reference.confidence),
                    ("length", reference.length),
                    ("unknown", reference.unknown),
                )
            },
        }
        self._counts = [feature.counts for feature in self.features.values()]
        self.weight = 1.0

    @property
    def texts(self) -> float:
        """How many of the latest texts the distribution stands for; it ends at WINDOW_TEXTS."""
        return sum(self._counts[0]) / self.weight

    def count(self, tokens: Tokens, winner: int, confidence: float) -> None:
        labels, confidences, lengths, unknowns = self._counts
        confidence_edges, length_edges, unknown_edges = self._edges
        self.weight = weight = self.weight * GROWTH
        length = len(tokens.ids)
        unknown = tokens.ids.count(self._unknown_id) / (length - self._special)
        labels[winner] += weight
        confidences[bisect_left(confidence_edges, confidence)] += weight
        lengths[bisect_left(length_edges, length)] += weight
        unknowns[bisect_left(unknown_edges, unknown)] += weight
        if weight > HEAVIEST:
            self._lighten()

    def _lighten(self) -> None:
        for counts in self._counts:
            counts[:] = [count / self.weight for count in counts]
        self.weight = 1.0


class Drift(Collector):
    """The running distributions of the versions in service, as Prometheus series made when a page is asked for."""

    def __init__(self) -> None:
        self._running: dict[str, Running | None] = {}

    def read(
        self, bundle: Bundle, tokens: Sequence[Tokens], winners: Sequence[int], confidences: Sequence[float]
    ) -> None:
        """Texts that `bundle` answered; a version without a reference is not watched."""
        try:
            running = self._running[bundle.version]
        except KeyError:
            reference = bundle.manifest.reference
            running = self._running[bundle.version] = Running(bundle, reference) if reference else None
        if running is not None:
            for each, winner, confidence in zip(tokens, winners, confidences, strict=True):
                running.count(each, winner, confidence)

    def keep(self, versions: Iterable[str | None]) -> None:
        """Forget every other version: what no longer answers cannot drift."""
        self._running = {version: self._running[version] for version in versions if version in self._running}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Series of the versions that have read enough; how many texts that is, for all that have a reference."""
        name = "nunchi_gateway_drift"
        index = GaugeMetricFamily(
            f"{name}_psi",
            "Population stability index of a feature of the latest texts against the manifest's reference",
            labels=["feature", "version"],
        )
        texts = GaugeMetricFamily(
            f"{name}_texts", "Latest texts (decayed count) that the drift figures stand on", labels=["version"]
        )
        bins = ["feature", "bin", "version"]
        now = GaugeMetricFamily(f"{name}_share", "Share of the latest texts in a bin", labels=bins)
        then = GaugeMetricFamily(f"{name}_reference_share", "Share of the reference's texts in a bin", labels=bins)
        for version, running in self._running.items():
            if running is None:
                continue
            texts.add_metric([version], running.texts)
            if running.texts < MINIMUM_TEXTS:
                continue
            for label, feature in running.features.items():
                shares = feature.shares(running.weight)
                index.add_metric([label, version], stability_index(shares, feature.reference))
                for each, share, reference in zip(feature.bins, shares, feature.reference, strict=True):
                    now.add_metric([label, each, version], share)
                    then.add_metric([label, each, version], reference)
        yield from (index, texts, now, then)


def stability_index(now: Sequence[float], then: Sequence[float]) -> float:
    """The population stability index of two distributions over the same bins, all shares above 0."""
    return sum((a - b) * math.log(a / b) for a, b in zip(now, then, strict=True))


def smoothed(counts: Sequence[float]) -> list[float]:
    """Counts as shares that add up to 1, none of them 0."""
    total = sum(counts) + SMOOTHING * len(counts)
    return [(count + SMOOTHING) / total for count in counts]


def bin_names(edges: Sequence[float]) -> list[str]:
    """What a bin holds at most, as Prometheus writes it; the last has no end."""
    return [*(f"{edge:g}" for edge in edges), "+Inf"]
