"""What a checkpoint folder may look like, and the sentence for each that it may not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForSequenceClassification

from export.checkpoint import read_checkpoint
from export.errors import CheckpointError, UnsupportedModel
from tests.export.checkpoints import CONFIGS, SPECIAL, VOCABULARY, make_model, make_tokenizer, save_checkpoint

RECORD = {
    "encoder": "nano",
    "max_length": 24,
    "dataset": "NSMC-R",
    "git_commit": "0123456789ab",
    "metrics": {
        "dataset": "NSMC-R test",
        "rows": 50000,
        "accuracy": 0.87,
        "f1": 0.87,
        "accuracy_interval": [0.867, 0.873],
        "confusion": [[1, 2], [3, 4]],
    },
}


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tmp_path / "checkpoint", make_model(CONFIGS["bert, 2 labels"]))


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_plain_checkpoint_gets_names_from_its_config(folder):
    checkpoint = read_checkpoint(folder)
    assert checkpoint.encoder == "bert-2x32"
    assert [(label.name, label.korean) for label in checkpoint.labels] == [("negative", "부정"), ("positive", "긍정")]
    assert checkpoint.max_length == 40  # as many as it has positions, since 128 would be more
    assert checkpoint.pad_token_id == 0
    assert checkpoint.metrics is None
    assert checkpoint.source.checkpoint == "checkpoint"


def test_training_json_is_carried_over(folder):
    (folder / "training.json").write_text(json.dumps(RECORD))
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.encoder, checkpoint.max_length) == ("nano", 24)
    assert (checkpoint.source.dataset, checkpoint.source.git_commit) == ("NSMC-R", "0123456789ab")
    assert checkpoint.metrics.accuracy == 0.87
    assert checkpoint.metrics.accuracy_interval == (0.867, 0.873)


def test_a_length_that_is_asked_for_wins(folder):
    (folder / "training.json").write_text(json.dumps(RECORD))
    assert read_checkpoint(folder, max_length=16).max_length == 16


def test_the_tokenizer_keeps_its_cleaning_and_gets_its_truncation(folder):
    tokenizer = read_checkpoint(folder, max_length=5).tokenizer
    assert tokenizer.normalizer.normalize_str("좋다<br>좋다") == "좋다 좋다"
    assert len(tokenizer.encode("좋다 " * 50).ids) == 5
    assert tokenizer.padding is None
    assert tokenizer.encode("").ids == [2, 3]


def test_a_vocab_txt_alone_is_enough(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, "[MASK]"][: len(VOCABULARY)]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    edit_config(folder, vocab_size=len(VOCABULARY))
    tokenizer = read_checkpoint_or_explain(folder)
    assert tokenizer.encode("좋다").ids == [2, VOCABULARY.index("좋다"), 3]


def read_checkpoint_or_explain(folder) -> Tokenizer:
    """transformers adds [MASK] to a vocabulary without one, which the tiny model has no embedding for: give it one."""
    weights = load_file(folder / "model.safetensors")
    words = weights["bert.embeddings.word_embeddings.weight"]
    weights["bert.embeddings.word_embeddings.weight"] = torch.cat([words, words[:1]])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, vocab_size=len(words) + 1)
    return read_checkpoint(folder).tokenizer


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["LABEL_0", "LABEL_1", "LABEL_2"], [("negative", "부정"), ("neutral", "중립"), ("positive", "긍정")]),
        (["부정", "긍정"], [("부정", "부정"), ("긍정", "긍정")]),
        (["angry", "neutral", "glad"], [("angry", "angry"), ("neutral", "중립"), ("glad", "glad")]),
    ],
)
def test_labels_are_read_from_the_config(tmp_path, labels, expected):
    config = BertConfig.from_dict(
        {
            **CONFIGS["bert, 2 labels"].to_dict(),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
        }
    )
    folder = save_checkpoint(tmp_path / "checkpoint", make_model(config))
    assert [(label.name, label.korean) for label in read_checkpoint(folder).labels] == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; export writes gelu, "),
        ({"position_embedding_type": "relative_key"}, "relative_key position embeddings; export writes absolute"),
        ({"is_decoder": True}, "decoder"),
        ({"problem_type": "multi_label_classification"}, "choose one of at least two labels"),
        (
            {"architectures": ["BertForTokenClassification"]},
            "BertForTokenClassification; export writes BertForSequence",
        ),
        ({"architectures": None}, "architecture none"),
        ({"model_type": "nonsense"}, "cannot be used"),
    ],
)
def test_a_model_that_cannot_be_written_is_refused_by_name(folder, changes, words):
    edit_config(folder, **changes)
    with pytest.raises(UnsupportedModel, match=words):
        read_checkpoint(folder)


@pytest.mark.parametrize("kind", ["distilbert", "masked"])
def test_other_architectures_are_refused(tmp_path, kind):
    if kind == "distilbert":
        model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=50, dim=32, n_layers=1, n_heads=2))
    else:
        model = BertForMaskedLM(BertConfig.from_dict(CONFIGS["bert, one layer"].to_dict()))
    folder = save_checkpoint(tmp_path / "checkpoint", model)
    with pytest.raises(UnsupportedModel, match="BertForSequenceClassification or ElectraForSequenceClassification"):
        read_checkpoint(folder)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(folder):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["새말"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=f"ids up to {len(VOCABULARY)}, the model has {len(VOCABULARY)} embedd"):
        read_checkpoint(folder)


def test_a_tokenizer_without_special_tokens_is_refused(folder):
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"adds no \[CLS\] and \[SEP\]"):
        read_checkpoint(folder)


@pytest.mark.parametrize("length", [2, 41])
def test_a_length_the_model_cannot_read_is_refused(folder, length):
    with pytest.raises(CheckpointError, match=f"max_length is {length}; the model of .* reads 3 to 40 tokens"):
        read_checkpoint(folder, max_length=length)


def test_missing_weights_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks the weights of classifier\.weight"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "holds no config.json"),
        ("model.safetensors", None, "weights of .* cannot be loaded"),
        ("model.safetensors", "half a file", "weights of .* cannot be loaded"),
        ("tokenizer.json", "{}", "no usable fast tokenizer"),
        ("training.json", "{", "the file: Invalid JSON"),
        ("training.json", "[]", "the file: Input should be an object"),
        ("training.json", '{"max_length": "long"}', "max_length: Input should be a valid integer"),
        ("training.json", '{"metrics": {"accuracy": 0.9}}', "metrics.dataset: Field required"),
    ],
)
def test_a_broken_file_is_one_sentence(folder, name, content, words):
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_the_special_tokens_come_first(folder):
    assert VOCABULARY[:4] == SPECIAL
