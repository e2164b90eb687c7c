"""The reference of the manifest: what the texts look like that the parity gate read."""

import json

import numpy as np
import pytest

from export.bundle import read_manifest
from export.reference import describe
from gateway.bundle import read_bundle
from tests.bundles import END, START, UNKNOWN, VOCABULARY, tiny_tokenizer

KNOWN = VOCABULARY.index("영화")


def text(words: int, unknown: int = 0) -> list[int]:
    """Token ids of a text of so many words, `unknown` of them unknown."""
    return [START, *[KNOWN] * (words - unknown), *[UNKNOWN] * unknown, END]


def test_labels_confidences_lengths_and_unknown_words_are_counted():
    encoded = [text(2), text(3), text(10, unknown=1), text(200, unknown=200)]  # 4, 5, 12 and 202 tokens
    probabilities = np.array([[0.51, 0.49], [0.02, 0.98], [0.21, 0.79], [0.01, 0.99]], np.float32)
    found = describe(encoded, probabilities, tiny_tokenizer(256))
    assert found.rows == 4
    assert found.label == [0.25, 0.75]
    assert found.confidence.edges == pytest.approx([0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    assert found.confidence.shares == [0.25, 0, 0, 0, 0, 0.25, 0, 0, 0, 0.5]
    assert found.length.edges == [4, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert found.length.shares == [0.25, 0.25, 0.25, 0, 0, 0, 0, 0, 0, 0, 0.25]
    assert found.unknown.edges == [0, 0.02, 0.05, 0.1, 0.2, 0.5]
    assert found.unknown.shares == [0.5, 0, 0, 0.25, 0, 0, 0.25]


def test_three_labels_begin_at_a_third():
    found = describe([text(2)] * 2, np.array([[0.34, 0.33, 0.33], [0.0, 0.05, 0.95]]), tiny_tokenizer(32))
    assert found.confidence.edges[0] == pytest.approx(0.4)
    assert found.confidence.shares == [0.5, *[0] * 8, 0.5]


def test_a_published_version_brings_its_reference_and_the_gateway_reads_it(export, repository):
    assert export().status == 0
    written = read_manifest(repository / "sentiment" / "1").reference
    assert written.rows == 1200
    for shares in (written.label, written.confidence.shares, written.length.shares, written.unknown.shares):
        assert sum(shares) == pytest.approx(1, abs=1e-4)
    read = read_bundle(repository).manifest.reference
    assert read.model_dump() == written.model_dump()


def test_a_manifest_without_a_reference_is_read_as_before(export, repository):
    assert export().status == 0
    file = repository / "sentiment" / "1" / "manifest.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    del document["reference"]
    file.write_text(json.dumps(document), encoding="utf-8")
    assert read_manifest(file.parent).reference is None
    assert read_bundle(repository).manifest.reference is None
