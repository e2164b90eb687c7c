"""Drift: what is said of the latest texts, against the reference in the manifest, and when nothing is said."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.bundle import BundleBroken, Tokens, read_bundle
from gateway.drift import MINIMUM_TEXTS, Drift, stability_index
from gateway.metrics import Metrics
from tests.bundles import END, START, UNKNOWN, VOCABULARY, write_json

KNOWN = VOCABULARY.index("영화")
REFERENCE = {
    "rows": 2000,
    "label": [0.5, 0.5],
    "confidence": {"edges": [0.6, 0.8], "shares": [0.2, 0.3, 0.5]},
    "length": {"edges": [4, 8], "shares": [0.25, 0.5, 0.25]},
    "unknown": {"edges": [0, 0.5], "shares": [0.9, 0.1, 0.0]},
}
LENGTHS = (3, 6, 6, 12)  # tokens, as often as the reference says
CONFIDENCES = (0.55, 0.7, 0.7, 0.9, 0.9)


def with_reference(repository: Path, **changes: object) -> Path:
    file = repository / "sentiment" / "1" / "manifest.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | {"reference": REFERENCE | changes})
    return repository


@pytest.fixture
def bundle(repository):
    return read_bundle(with_reference(repository))


def feed(metrics: Metrics, bundle, texts: int, *, winner: int | None = None, unknown: int = 0) -> None:
    """Texts as the reference describes them, but for what is said otherwise."""
    chance = random.Random(1)
    for _ in range(texts):
        words = chance.choice(LENGTHS) - 2
        missing = min(words, unknown) if unknown else int(chance.random() < 0.1 and words > 1)
        ids = [START, *[UNKNOWN] * missing, *[KNOWN] * (words - missing), END]
        label = chance.randint(0, 1) if winner is None else winner
        metrics.read(bundle, [Tokens(ids, False)], [label], [chance.choice(CONFIDENCES)])


def drift(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """The drift series: (name, feature, bin) without what a series does not have."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        tuple(filter(None, (sample.name[21:], sample.labels.get("feature"), sample.labels.get("bin")))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("nunchi_gateway_drift")
    }


def test_texts_like_those_of_the_reference_have_not_drifted(bundle):
    metrics = Metrics()
    feed(metrics, bundle, 3000)
    found = drift(metrics)
    for feature in ("label", "confidence", "length", "unknown"):
        assert found["psi", feature] < 0.1


def test_nothing_is_said_before_enough_texts_were_read(bundle):
    metrics = Metrics()
    feed(metrics, bundle, MINIMUM_TEXTS - 1)
    assert set(drift(metrics)) == {("texts",)}
    feed(metrics, bundle, 20)
    assert ("psi", "label") in drift(metrics)


def test_only_the_feature_that_moves_is_far_off(bundle):
    metrics = Metrics()
    feed(metrics, bundle, 2000, winner=1)
    found = drift(metrics)
    assert found["psi", "label"] > 0.25
    assert found["share", "label", "positive"] > 0.99
    assert found["reference_share", "label", "positive"] == pytest.approx(0.5)
    assert max(found["psi", each] for each in ("confidence", "length", "unknown")) < 0.1


def test_unknown_words_are_counted_as_a_share_of_the_words(bundle):
    metrics = Metrics()
    feed(metrics, bundle, 2000, unknown=100)
    found = drift(metrics)
    assert found["psi", "unknown"] > 0.25
    assert found["share", "unknown", "+Inf"] > 0.99


def test_what_is_long_ago_is_forgotten(bundle):
    metrics = Metrics()
    feed(metrics, bundle, 5000, winner=1)
    assert drift(metrics)["texts",] == pytest.approx(10_000 * (1 - math.exp(-0.5)), rel=0.01)
    feed(metrics, bundle, 40_000)
    found = drift(metrics)
    assert found["psi", "label"] < 0.1
    assert found["texts",] == pytest.approx(10_000, rel=0.02)


def test_the_counts_stay_what_they_are_when_their_weights_are_made_small_again(bundle, monkeypatch):
    kept, lightened = Metrics(), Metrics()
    feed(kept, bundle, 2000)
    monkeypatch.setattr("gateway.drift.HEAVIEST", 1.01)
    feed(lightened, bundle, 2000)
    assert drift(lightened) == pytest.approx(drift(kept))


def test_a_version_that_no_longer_answers_no_longer_drifts(bundle):
    metrics = Metrics()
    metrics.serves(bundle)
    feed(metrics, bundle, 600, winner=1)
    metrics.serves(bundle)
    assert ("psi", "label") in drift(metrics)
    metrics.serves(replace(bundle, version="2"))
    assert drift(metrics) == {}


def test_a_manifest_without_a_reference_gives_no_series(repository):
    bundle, metrics = read_bundle(repository), Metrics()
    feed(metrics, bundle, 1000)
    assert drift(metrics) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": [0.2, 0.3, 0.5]}, "2 labels, its reference 3"),
        ({"length": {"edges": [4, 8], "shares": [0.5, 0.5]}}, "2 ascending edges make 3 bins"),
        ({"length": {"edges": [8, 4], "shares": [0.5, 0.25, 0.25]}}, "ascending"),
    ],
)
def test_a_reference_that_contradicts_itself_is_refused(repository, changes, words):
    with pytest.raises(BundleBroken, match=words):
        read_bundle(with_reference(repository, **changes))


def test_the_index_is_the_published_one():
    """Worked by hand: (0.3 - 0.5) ln(0.3 / 0.5) + (0.7 - 0.5) ln(0.7 / 0.5)."""
    assert stability_index([0.3, 0.7], [0.5, 0.5]) == pytest.approx(0.10217 + 0.06729, abs=1e-5)
    assert stability_index([0.5, 0.5], [0.5, 0.5]) == 0


def test_an_empty_page_has_no_drift():
    assert [family.samples for family in Drift().collect()] == [[], [], [], []]
