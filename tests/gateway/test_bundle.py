"""Bundles are read and checked; every disagreement is one sentence that names the file and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, Model, WordLevel

from gateway.bundle import Bundle, _vocabulary_apart, load_tokenizers, read_bundle, read_serving
from gateway.errors import BundleBroken
from gateway.plain import is_plain
from tests.bundles import UNKNOWN, describe, set_serving, write_bundle, write_config

VERSION = "sentiment/1"


def edit_json(file: Path, change: Callable[[dict], None]) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    change(document)
    file.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def edit_tokenizer(repository: Path, change: Callable[[Tokenizer], None]) -> None:
    """Change tokenizer.json and let the manifest vouch for the changed file."""
    folder = repository / VERSION
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    change(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))

    def vouch(manifest: dict) -> None:
        manifest["files"]["tokenizer.json"] = describe(folder / "tokenizer.json")

    edit_json(folder / "manifest.json", vouch)


def in_manifest(change: Callable[[dict], None]) -> Callable[[Path], None]:
    return lambda repository: edit_json(repository / VERSION / "manifest.json", change)


def in_serving(change: Callable[[dict], None]) -> Callable[[Path], None]:
    return lambda repository: edit_json(repository / "serving.json", change)


def append(file: str, content: bytes) -> Callable[[Path], None]:
    def damage(repository: Path) -> None:
        (repository / file).write_bytes((repository / file).read_bytes() + content)

    return damage


# what is wrong: (the damage, what the sentence says)
DAMAGES = {
    "no serving.json": (lambda repository: (repository / "serving.json").unlink(), "serving.json cannot be read"),
    "serving.json is not JSON": (append("serving.json", b"}"), "serving.json is not what the contract says"),
    "serving.json without a version": (in_serving(lambda each: each.pop("version")), "version: Field required"),
    "a version as text": (
        in_serving(lambda each: each.update(version="1")),
        "version: Input should be a valid integer",
    ),
    "a model outside the repository": (
        in_serving(lambda each: each.update(model="../x")),
        "model: String should match",
    ),
    "a version that is not there": (in_serving(lambda each: each.update(version=7)), "names version 7"),
    "no manifest": (
        lambda repository: (repository / VERSION / "manifest.json").unlink(),
        "manifest.json cannot be read",
    ),
    "another schema": (in_manifest(lambda each: each.update(schema=2)), "has schema 2, this gateway reads schema 1"),
    "another version's manifest": (in_manifest(lambda each: each.update(version=2)), "describes sentiment version 2"),
    "another model's manifest": (in_manifest(lambda each: each.update(model="other")), "describes other version 1"),
    "an edited model": (append(f"{VERSION}/model.onnx", b"\0"), "model.onnx has"),
    "an edited tokenizer": (append(f"{VERSION}/tokenizer.json", b"\n"), "tokenizer.json has"),
    "no model": (lambda repository: (repository / VERSION / "model.onnx").unlink(), "model.onnx cannot be read"),
    "a file nobody vouches for": (in_manifest(lambda each: each["files"].pop("model.onnx")), "vouches for"),
    "another vocabulary size": (in_manifest(lambda each: each.update(vocab_size=99)), "its manifest says 99"),
    "another vocabulary": (
        lambda repository: edit_tokenizer(repository, lambda tokenizer: tokenizer.add_tokens(["새말"])),
        "words, its manifest says",
    ),
    "a pad id outside the vocabulary": (in_manifest(lambda each: each.update(pad_token_id=999)), "pads with id 999"),
    "another max_length": (in_manifest(lambda each: each.update(max_length=64)), "its manifest says 64"),
    "no truncation": (
        lambda repository: edit_tokenizer(repository, lambda tokenizer: tokenizer.no_truncation()),
        "truncates to None",
    ),
    "a tokenizer that pads": (
        lambda repository: edit_tokenizer(repository, lambda tokenizer: tokenizer.enable_padding()),
        "pads by itself",
    ),
    "golden ids of another tokenizer": (
        in_manifest(lambda each: each["golden"][3].update(input_ids=[2, 3])),
        "golden row 3",
    ),
    "a label more": (
        in_manifest(lambda each: each["labels"].append({"name": "neutral", "korean": "중립"})),
        "has 3 labels but 2 probabilities",
    ),
    "a label twice": (in_manifest(lambda each: each["labels"][0].update(name="positive")), "names a label twice"),
    "probabilities that do not add up": (
        in_manifest(lambda each: each["golden"][0].update(probabilities=[0.5, 0.6])),
        "add up to 1.100",
    ),
    "no golden rows": (in_manifest(lambda each: each.update(golden=[])), "golden: List should have at least 1"),
    "other input names": (in_manifest(lambda each: each.update(inputs=["ids", "mask"])), "has the inputs"),
    "an output Triton is not told of": (in_manifest(lambda each: each.update(output="scores")), "'scores'"),
    "a config for more labels": (lambda repository: write_config(repository, labels=3), "gives [3] logits"),
    "no config": (lambda repository: (repository / "sentiment/config.pbtxt").unlink(), "config.pbtxt cannot be read"),
    "a config that is none": (
        append("sentiment/config.pbtxt", b"max_batchsize: 1"),
        "not a Triton model configuration",
    ),
    "a config without batching": (append("sentiment/config.pbtxt", b"max_batch_size: 0"), "max_batch_size"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_a_bundle_that_disagrees_with_itself_is_refused_in_one_sentence(repository, damage, says):
    damage(repository)
    with pytest.raises(BundleBroken) as refusal:
        read_bundle(repository)
    sentence = str(refusal.value)
    assert says in sentence
    assert ";" in sentence  # the remedy


def test_keys_of_a_newer_export_are_left_alone(repository):
    edit_json(repository / VERSION / "manifest.json", lambda manifest: manifest.update(comment="new"))
    assert read_bundle(repository).manifest.encoder == "tiny"


def test_the_version_that_serving_names_is_the_one_read(repository):
    write_bundle(repository, 2)
    assert read_bundle(repository).version == "1"
    set_serving(repository, 2, previous=1)
    assert read_bundle(repository).version == "2"


@pytest.mark.parametrize("width", [32, 9])
def test_every_row_is_padded_to_the_same_length_with_a_mask(repository, width):
    bundle = read_bundle(repository)
    rows = [[2, 5, 3], [2, 3], list(range(width))]
    ids, mask = (np.frombuffer(each, "<i8").reshape(3, width) for each in bundle.padded(rows, width))
    for row, padded, marks in zip(rows, ids, mask, strict=True):
        assert padded.tolist() == row + [0] * (width - len(row))
        assert marks.tolist() == [1] * len(row) + [0] * (width - len(row))


def test_only_a_full_batch_is_no_longer_than_its_longest_row(repository):
    bundle = read_bundle(repository)
    assert bundle.max_length == 32
    rows = [[2, 3], [2, 5, 6, 3]] * bundle.max_batch_size
    assert bundle.width(rows[: bundle.max_batch_size]) == 4
    assert bundle.width(rows[: bundle.max_batch_size - 1]) == 32


def test_truncation_and_emptiness_are_told_from_the_tokens(repository):
    bundle: Bundle = read_bundle(repository)

    def tokens(text: str):
        (found,) = bundle.tokens([text])
        return found

    assert not tokens("영화 " * 30).truncated
    assert tokens("영화 " * 31).truncated
    assert bundle.is_empty(tokens("<br> \x00"))
    assert not bundle.is_empty(tokens("."))


def test_any_version_of_the_repository_can_be_read(repository):
    write_bundle(repository, 2, dialect=3)
    assert read_bundle(repository).version == "1"
    assert read_bundle(repository, 2).version == "2"
    with pytest.raises(BundleBroken, match="names version 7"):
        read_bundle(repository, 7)


def test_the_unknown_token_is_known_where_the_tokenizer_has_one(repository):
    assert read_bundle(repository).unknown_id == UNKNOWN
    edit_tokenizer(repository, lambda tokenizer: setattr(tokenizer.model, "unk_token", ""))
    assert read_bundle(repository).unknown_id is None


def test_serving_names_a_candidate_and_what_a_rollback_left(repository):
    set_serving(repository, 1, candidate={"version": 3, "mode": "shadow", "share": 1})
    edit_json(repository / "serving.json", lambda each: each.update(rolled_back=2))
    serving = read_serving(repository)
    candidate = serving.candidate
    assert serving.rolled_back == 2
    assert (candidate.version, candidate.mode, candidate.share) == (3, "shadow", 1.0)


@pytest.mark.parametrize(
    "wrong", [{"share": 0}, {"share": 1.5}, {"mode": "both"}, {"version": 0}, {"since": "yesterday"}]
)
def test_a_candidate_with_impossible_terms_is_refused(repository, wrong):
    set_serving(repository, 1, candidate={"version": 3, "mode": "shadow", "share": 0.5} | wrong)
    with pytest.raises(BundleBroken, match=f"candidate.{next(iter(wrong))}"):
        read_serving(repository)


def with_a_word_beyond_the_vocabulary(file: Path) -> None:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens(["[NEW]"])
    tokenizer.save(str(file))


def with_another_model(model: Model) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.model = model
        tokenizer.save(str(file))

    return change


def with_settings_of_its_own(file: Path) -> None:
    edit_json(file, lambda document: document["model"].update(max_input_chars_per_word=3, unk_token="[SEP]"))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: None,
        with_a_word_beyond_the_vocabulary,
        with_settings_of_its_own,
        with_another_model(WordLevel({"[UNK]": 0, "영화": 7}, unk_token="[UNK]")),
        with_another_model(BPE({"영": 0, "화": 1, "영화": 2}, [("영", "화")])),
    ],
    ids=["as it is", "a word beyond the vocabulary", "settings of its own", "word level", "BPE"],
)
def test_a_tokenizer_that_is_loaded_in_parts_is_the_one_of_the_file(repository, change):
    file = repository / VERSION / "tokenizer.json"
    change(file)
    whole, (parts, plain) = Tokenizer.from_file(str(file)), load_tokenizers(file)
    assert json.loads(parts.to_str()) == json.loads(whole.to_str())
    for text in ("영화 최고! 영화영화", "[NEW] 재밌다 [SEP]", "🤗 unknown", "[CLS]", ""):
        assert parts.encode(text).ids == whole.encode(text).ids
        assert not is_plain(text) or plain.encode(text).ids == whole.encode(text).ids


def test_a_vocabulary_is_loaded_apart_from_the_rest(repository):
    """Else Python's global lock is held for as long as both take."""
    frame, words = _vocabulary_apart((repository / VERSION / "tokenizer.json").read_bytes())
    left, whole = Tokenizer.from_buffer(frame), read_bundle(repository).tokenizer
    assert left.get_vocab().keys() == {each.content for each in left.get_added_tokens_decoder().values()}
    assert Tokenizer(words).get_vocab() == whole.get_vocab()
