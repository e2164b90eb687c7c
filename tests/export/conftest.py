"""One trained checkpoint and its labelled reviews, made once; and a way to run the command."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import ElectraConfig

from export.__main__ import main
from tests.export.checkpoints import CONFIGS, labelled_reviews, save_checkpoint, train_classifier, write_reviews
from tests.triton_process import free_ports


class Answer(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small only lose time on more, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nobody_serves(monkeypatch):
    """What runs on the usual ports of this machine is not for a test to find."""
    triton, gateway = free_ports(2)
    monkeypatch.setenv("NUNCHI_TRITON_GRPC_PORT", str(triton))
    monkeypatch.setenv("NUNCHI_GATEWAY_PORT", str(gateway))


@pytest.fixture(scope="session")
def reviews_file(tmp_path_factory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("reviews") / "reviews.tsv", labelled_reviews())


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    config = ElectraConfig(**CONFIGS["electra, projection"].to_diff_dict())
    return save_checkpoint(tmp_path_factory.mktemp("trained") / "nano", train_classifier(labelled_reviews(), config))


@pytest.fixture
def repository(tmp_path) -> Path:
    return tmp_path / "house" / "model_repository"


@pytest.fixture
def export(capsys, monkeypatch, reviews_file, trained, repository):
    """`export("--precision", "fp32")` runs `python -m export` on the trained checkpoint; a repeated option wins."""
    monkeypatch.delenv("NUNCHI_MODEL_REPOSITORY", raising=False)

    def run(*arguments: str) -> Answer:
        usual = ["--checkpoint", trained, "--repository", repository, "--data", reviews_file]
        status = main([str(argument) for argument in [*usual, *arguments]])
        return Answer(status, *capsys.readouterr())

    return run
