"""Three feelings, 부정, 중립 and 긍정: from a checkpoint through the real export, Triton and gateway."""

import json
import math
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from transformers import ElectraConfig

from export.__main__ import main as export
from tests.export.checkpoints import CONFIGS, labelled_reviews, save_checkpoint, train_classifier, write_reviews
from tests.gateway.gateway_process import running_gateway
from tests.stack_process import ROOT
from tests.triton_process import running_triton

LABELS = [("negative", "부정"), ("neutral", "중립"), ("positive", "긍정")]
TEXTS = {"이 영화 정말 최악": "부정", "배우 연기 솔직히 무난하다": "중립", "음악 정말 최고, 결말 감동": "긍정"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A model that has learned three labels, published by `python -m export`."""
    folder = tmp_path_factory.mktemp("three")
    config = ElectraConfig(**CONFIGS["electra, no projection, 3 labels"].to_diff_dict())
    checkpoint = save_checkpoint(folder / "checkpoint", train_classifier(labelled_reviews(3), config))
    reviews = write_reviews(folder / "reviews.tsv", labelled_reviews(3))
    options = {"--checkpoint": checkpoint, "--data": reviews, "--repository": folder / "model_repository"}
    assert export([str(word) for option in options.items() for word in option]) == 0
    return folder / "model_repository"


@pytest.fixture(scope="module")
def triton(repository):
    with running_triton(repository, repository.parent / "var") as triton:
        yield triton


@pytest.fixture(scope="module")
def client(repository, triton):
    with (
        running_gateway(repository, triton.grpc_port) as gateway,
        httpx.Client(base_url=gateway.url, timeout=30) as client,
    ):
        yield client


def test_the_gate_compared_all_three_labels(repository):
    manifest = json.loads((repository / "sentiment/1/manifest.json").read_text(encoding="utf-8"))
    assert [(label["name"], label["korean"]) for label in manifest["labels"]] == LABELS
    assert manifest["parity"]["rows"] == 1800
    assert manifest["parity"]["accuracy_exported"] > 0.95, "a model that confuses its labels would not"


def test_each_feeling_is_answered_with_three_probabilities_that_sum_to_one(client):
    for text, korean in TEXTS.items():
        answer = client.post("/v1/predict", json={"text": text, "return_probs": True}).json()
        assert answer["label"] == korean
        assert answer["prediction"] == dict(map(reversed, LABELS))[korean]
        assert list(answer["probs"]) == [name for name, _ in LABELS]
        assert math.isclose(sum(answer["probs"].values()), 1, abs_tol=1e-5)
        assert answer["confidence"] == max(answer["probs"].values())


def test_a_batch_answers_all_three(client):
    texts = [*TEXTS] * 50  # more than one chunk
    rows = client.post("/v1/predict/batch", json={"texts": texts, "return_probs": True}).json()["predictions"]
    assert [row["label"] for row in rows] == [*TEXTS.values()] * 50
    assert all(math.isclose(sum(row["probs"].values()), 1, abs_tol=1e-5) for row in rows)


def test_the_model_route_lists_three(client):
    labels = client.get("/v1/model").json()["labels"]
    assert [(label["name"], label["korean"]) for label in labels] == LABELS


def test_triton_itself_answers_three_logits(repository, triton):
    command = [sys.executable, "-m", "server.examples.grpc_client", "--repository", repository]
    done = subprocess.run(
        [*command, "--address", f"127.0.0.1:{triton.grpc_port}", *TEXTS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == [*TEXTS.values()]


def test_a_model_with_two_labels_is_refused_where_three_are_served(client, repository, tmp_path, capsys):
    config = ElectraConfig(**CONFIGS["electra, projection"].to_diff_dict())
    two = save_checkpoint(tmp_path / "two", train_classifier(labelled_reviews(), config, steps=1))
    assert export(["--checkpoint", str(two), "--repository", str(repository)]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert "serves a model with 3 labels, the checkpoint has 2; publish it into a repository of its own" in sentence
    assert client.get("/readyz").json() == {"status": "ready", "model_version": "1"}
