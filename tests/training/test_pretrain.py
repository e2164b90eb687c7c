"""An encoder that goes on from an earlier one, with smaller embeddings, as the shipped nano was made."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from training import pretrain
from training.config import DatasetConfig
from training.data import SAMPLE, open_dataset, read_reviews
from training.encoders import NANO, load_classifier
from training.errors import CheckpointError, DatasetError

REVIEWS = read_reviews(SAMPLE).head(300)
WIDE = pretrain.Shape(
    vocab_size=600, embedding_size=32, hidden_size=32, layers=1, heads=2, intermediate_size=32, max_length=32
)


def learn(output, start, **options):
    return pretrain.pretrain(
        REVIEWS.document.tolist(),
        (REVIEWS.label * 2).tolist(),
        output,
        start=start,
        epochs=1,
        batch_size=64,
        learning_rate=1e-3,
        seed=1,
        **options,
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return learn(tmp_path_factory.mktemp("pretrain") / "wide", WIDE)


@pytest.fixture(scope="module")
def small(wide):
    return learn(wide.with_name("small"), wide, embedding_size=16, half=True)


def test_an_encoder_goes_on_with_the_vocabulary_it_has_and_a_smaller_table(wide, small):
    model, tokenizer = load_classifier(str(small), ["negative", "positive"])
    before, earlier = load_classifier(str(wide), ["negative", "positive"])
    assert model.config.embedding_size == 16
    assert before.config.embedding_size == 32
    assert tokenizer.backend_tokenizer.to_str() == earlier.backend_tokenizer.to_str()


def test_half_precision_on_disk_is_single_precision_in_memory(small):
    stored = load_file(small / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    model, _ = load_classifier(str(small), ["negative", "positive"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_what_was_shrunk_is_not_shrunk_again(small):
    with pytest.raises(CheckpointError, match="projected already"):
        learn(small.with_name("smaller"), small, embedding_size=8)


class Cut(Exception):
    """Stands for whatever ends a run before its time."""


def test_an_interrupted_pretraining_goes_on_with_its_vocabulary_and_only_as_it_began(tmp_path, monkeypatch):
    output = tmp_path / "cut"
    with monkeypatch.context() as cut:
        cut.setattr(pretrain.Trainer, "train", lambda *_, **__: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            learn(output, WIDE)
    monkeypatch.setattr(pretrain, "train_tokenizer", lambda *_, **__: pytest.fail("learned a second time"))
    with pytest.raises(CheckpointError, match="interrupted run with other arguments"):
        learn(output, dataclasses.replace(WIDE, embedding_size=16))
    assert (learn(output, WIDE) / "model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == [output]


def test_nano_is_shipped_small_and_as_an_encoder_over_stars():
    """6 million parameters at most, in half precision, without a network."""
    stored = load_file(NANO / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) <= 6_000_000
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    model, tokenizer = load_classifier("nano", ["negative", "neutral", "positive"])
    assert model.config.embedding_size == 128
    assert len(tokenizer) == model.config.vocab_size
    ids = tokenizer(["재밌다ㅋㅋㅋㅋㅋㅋ", "재밌다ㅋㅋ"])["input_ids"]
    assert ids[0] == ids[1]


def test_pretraining_reads_nsmc_and_nothing_else(tmp_path):
    dataset = open_dataset(DatasetConfig(kind="sample"), cache=tmp_path)
    with pytest.raises(DatasetError, match="pretraining reads kind nsmc"):
        dataset.star_reviews()
