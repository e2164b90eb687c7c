"""Encoders of each class, built small and saved as the hub saves them; the hub itself as a double over HTTP."""

import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
)

from tests.training.hub_double import HubDouble, Repository
from training.batches import EncodedTexts, pad_batch
from training.cleaning import cleaning_normalizer, has_cleaning
from training.data import SAMPLE
from training.encoders import NANO, PINNED, freeze, load_classifier, load_finetuned, parameter_groups, revision_of
from training.errors import CheckpointError, ConfigRefused

ROOT = Path(__file__).resolve().parent.parent.parent
LABELS = ["negative", "neutral", "positive"]
TEXTS = ["정말 재미있는 영화 ㅋㅋㅋㅋㅋ", "돈 아깝다 <br>최악!!!!", "그냥 그래요", "배우 연기 최고 👍", "Very GOOD"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHAPE = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, max_position_embeddings=48
)


def vocabulary() -> list[str]:
    """As KcBERT's vocab.txt goes: special tokens, characters, and the same inside words; upper and lower case apart."""
    characters = sorted(set(SAMPLE.read_text(encoding="utf-8")) | set("".join(TEXTS)) - set("\n\t "))
    characters = [character for character in characters if not character.isspace()]
    return [*SPECIAL, *characters, *(f"##{character}" for character in characters)]


def save_as_the_hub_does(folder: Path, kind: type, config: type, **shape) -> Path:
    """vocab.txt and a tokenizer_config.json of two lines, no tokenizer.json: so KcBERT and KcELECTRA lie on the hub."""
    words = vocabulary()
    torch.manual_seed(0)
    kind(config(vocab_size=len(words), **SHAPE, **shape)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 300}')
    return folder


CLASSES = {
    "bert classifier": (BertForSequenceClassification, BertConfig, {}),
    "kcbert, masked words": (BertForMaskedLM, BertConfig, {}),
    "electra classifier": (ElectraForSequenceClassification, ElectraConfig, {"embedding_size": 32}),
    "kcelectra, discriminator": (ElectraForPreTraining, ElectraConfig, {"embedding_size": 16}),
}


@pytest.fixture(scope="module", params=CLASSES)
def hub_folder(request, tmp_path_factory) -> Path:
    kind, config, shape = CLASSES[request.param]
    return save_as_the_hub_does(tmp_path_factory.mktemp("encoder") / "model", kind, config, **shape)


@pytest.fixture(scope="module")
def kcbert_like(tmp_path_factory) -> Path:
    return save_as_the_hub_does(tmp_path_factory.mktemp("kcbert") / "model", BertForMaskedLM, BertConfig)


def batch_of(tokenizer) -> dict[str, torch.Tensor]:
    texts = EncodedTexts(tokenizer, TEXTS, [2, 0, 1, 2, 2], 48)
    return pad_batch([texts[index] for index in range(len(TEXTS))], tokenizer.pad_token_id)


def logits_of(model, tokenizer) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**batch_of(tokenizer)).logits


def train_a_few_steps(model, tokenizer) -> tuple[float, float]:
    """Loss before and after."""
    groups = parameter_groups(model, learning_rate=5e-3, weight_decay=0.01, layer_decay=0.9)
    optimizer = torch.optim.AdamW(groups)
    losses = []
    model.train()
    for _ in range(8):
        loss = model(**batch_of(tokenizer)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_each_class_is_loaded_frozen_trained_saved_and_reloaded(hub_folder, tmp_path):
    model, tokenizer = load_classifier(str(hub_folder), LABELS, dropout=0.0)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert revision_of(model) is None
    freeze(model, 1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    first, last = train_a_few_steps(model, tokenizer)
    assert last < first
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert not [name for name in changed if ".embeddings" in name or ".layer.0." in name or ".layer.1." in name]
    assert any(".layer.2." in name for name in changed) and any(name.startswith("classifier") for name in changed)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, tokenizer_again = load_classifier(str(tmp_path / "saved"), LABELS)
    assert torch.equal(logits_of(again, tokenizer_again), logits_of(model, tokenizer))
    assert tokenizer_again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert has_cleaning(tokenizer_again.backend_tokenizer)


def test_the_weights_of_the_encoder_are_the_saved_ones(hub_folder):
    saved = load_file(hub_folder / "model.safetensors")
    model, _ = load_classifier(str(hub_folder), LABELS)
    own = model.state_dict()
    encoder = [name for name in saved if ".encoder." in name or ".embeddings" in name]
    assert len(encoder) > 40
    assert all(torch.equal(saved[name], own[name]) for name in encoder)


def test_a_cased_vocabulary_stays_cased_and_is_read_cleaned(hub_folder):
    tokenizer = load_classifier(str(hub_folder), LABELS)[1]
    assert tokenizer.tokenize("<b>Good</b>ㅋㅋㅋㅋㅋㅋ") == ["G", "##o", "##o", "##d", "ㅋ", "##ㅋ"]
    assert tokenizer.tokenize("각") == ["각"]  # composed: no accents were stripped, which would tear jamo apart


def test_a_hub_vocabulary_tokenizes_as_its_own_tokenizer_does(hub_folder):
    """Against the tokenizers library's BERT, given the cleaned text."""
    own = BertWordPieceTokenizer(str(hub_folder / "vocab.txt"), lowercase=False, strip_accents=False)
    tokenizer = load_classifier(str(hub_folder), LABELS)[1]
    clean = cleaning_normalizer()
    for text in [*TEXTS, *random.Random(0).sample(SAMPLE.read_text(encoding="utf-8").splitlines(), 200)]:
        assert tokenizer(text)["input_ids"] == own.encode(clean.normalize_str(text)).ids, text


def test_freezing_lets_exactly_the_head_and_the_top_layers_learn(hub_folder):
    model, _ = load_classifier(str(hub_folder), LABELS)

    everything = {name for name, _ in model.named_parameters()}

    def learning() -> set[str]:
        return {name for name, weight in model.named_parameters() if weight.requires_grad}

    def within(*parts: str) -> set[str]:
        return {name for name in everything if any(part in name for part in parts)}

    freeze(model, 0)
    assert learning() == everything - within(".encoder.", ".embeddings")
    freeze(model, 2)
    assert learning() == everything - within(".embeddings", ".layer.0.")
    freeze(model, 3)
    assert learning() == everything - within(".embeddings")
    freeze(model, None)
    assert learning() == everything


def test_bert_without_a_pooler_of_its_own_trains_it_with_the_head(kcbert_like):
    model, _ = load_classifier(str(kcbert_like), LABELS)
    freeze(model, 0)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def test_more_unfrozen_layers_than_there_are_is_refused_with_the_number(kcbert_like):
    model, _ = load_classifier(str(kcbert_like), LABELS)
    with pytest.raises(ConfigRefused, match=r"unfrozen_layers is 4, the encoder has 3 layers; give 0 to 3, or null"):
        freeze(model, 4)


def test_the_learning_rate_falls_layer_by_layer_and_only_matrices_decay(hub_folder):
    model, _ = load_classifier(str(hub_folder), LABELS)
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    facts = {id(w): (g["lr"], g["weight_decay"]) for g in groups for w in g["params"]}
    assert len(facts) == sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    for name, weight in model.named_parameters():
        rate, decay = facts[id(weight)]
        if "embeddings" in name:
            assert rate == 0.5**4, name
        elif ".layer." in name:
            assert rate == 0.5 ** (3 - int(name.split(".layer.")[1][0])), name
        else:
            assert rate == 1, name
        assert decay == (0 if name.endswith(".bias") or "LayerNorm" in name else 0.1), name


def test_frozen_parameters_are_in_no_group_and_no_decay_needs_but_two(kcbert_like):
    model, _ = load_classifier(str(kcbert_like), LABELS)
    freeze(model, 0)
    groups = parameter_groups(model, learning_rate=1e-3, weight_decay=0.1, layer_decay=1.0)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [(1e-3, 0.1, 2), (1e-3, 0.0, 2)]


def test_half_precision_weights_learn_in_full_precision(kcbert_like, tmp_path):
    for file in kcbert_like.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    half = {name: weight.half() for name, weight in load_file(kcbert_like / "model.safetensors").items()}
    save_file(half, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text()) | {"dtype": "float16"}  # so save_pretrained writes it
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = load_classifier(str(tmp_path), LABELS)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.skipif(not NANO.is_dir(), reason="nano is not made yet")
def test_nano_is_shipped_small_and_becomes_a_classifier_over_any_labels():
    model, tokenizer = load_classifier("nano", LABELS)
    assert model.config.num_labels == 3 and has_cleaning(tokenizer.backend_tokenizer)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert logits_of(model, tokenizer).isfinite().all()


def copy_without(source: Path, target: Path, *left_out: str) -> Path:
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name not in left_out:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_folder_that_is_no_whole_model_is_one_sentence_with_the_remedy(kcbert_like, tmp_path):
    def refusal(folder: Path | str) -> str:
        with pytest.raises(CheckpointError) as info:
            load_classifier(str(folder), LABELS)
        assert "\n" not in str(info.value)
        return str(info.value)

    bare = copy_without(kcbert_like, tmp_path / "bare", "model.safetensors")
    assert "holds no model.safetensors; copy all that" in refusal(bare)
    torch.save({"weight": torch.ones(1)}, bare / "pytorch_model.bin")
    assert "a pickle, which can run code while it is read; convert it where you trust it: python -c" in refusal(bare)
    assert "holds no config.json" in refusal(copy_without(kcbert_like, tmp_path / "none", "config.json"))
    broken = copy_without(kcbert_like, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((kcbert_like / "model.safetensors").read_bytes()[:5000])
    assert "cannot be loaded (" in refusal(broken)
    wordless = copy_without(kcbert_like, tmp_path / "wordless", "vocab.txt", "tokenizer_config.json")
    assert "holds no vocabulary; put its tokenizer.json or vocab.txt there" in refusal(wordless)
    assert "a folder has none; leave @main out" in refusal(f"{kcbert_like}@main")


def test_a_checkpoint_that_lacks_a_layer_is_refused_instead_of_starting_from_chance(kcbert_like, tmp_path):
    folder = copy_without(kcbert_like, tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 16 of the model's weights, bert.encoder.layer.1"):
        load_classifier(str(folder), LABELS)


def test_a_finetuned_model_keeps_its_labels_and_an_encoder_without_a_head_is_none(hub_folder, tmp_path):
    model, tokenizer = load_classifier(str(hub_folder), LABELS)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_finetuned(tmp_path)
    assert again.config.id2label == dict(enumerate(LABELS)) and not again.training
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("classifier.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks \d of the model's weights, classifier"):
        load_finetuned(tmp_path)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(kcbert_like, tmp_path):
    folder = copy_without(kcbert_like, tmp_path / "foreign")
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("뜬금없는\n")
    words = len(vocabulary())
    with pytest.raises(CheckpointError, match=rf"gives ids up to {words}, the model has {words} embeddings"):
        load_classifier(str(folder), LABELS)


@pytest.mark.parametrize("name", ["kcbert-bas", "./nowhere", "/nowhere/at/all", "klue/bert/base"])
def test_a_name_that_can_be_neither_folder_nor_hub_id_says_what_names_there_are(name):
    with pytest.raises(CheckpointError, match="give a local folder, or one of nano, kcbert-base") as info:
        load_classifier(name, LABELS)
    assert ("did you mean kcbert-base?" in str(info.value)) == (name == "kcbert-bas")


def test_nano_takes_no_revision():
    with pytest.raises(CheckpointError, match="a folder has none"):
        load_classifier("nano@main", LABELS)


def test_the_names_are_pinned_to_whole_commits():
    for name, place in PINNED.items():
        repository, _, commit = place.partition("@")
        assert repository.startswith("beomi/") and len(commit) == 40 and set(commit) <= set("0123456789abcdef"), name


# What the hub is asked: a process of its own, as its address is read at import.
SCRIPT = """
import json, socket, sys
hosts = set()
connect, look_up = socket.socket.connect, socket.getaddrinfo
def watched(self, address):
    hosts.add(address[0] if isinstance(address, tuple) else "unix")
    return connect(self, address)
def watched_look_up(host, *args, **kwargs):
    hosts.add(host)
    return look_up(host, *args, **kwargs)
socket.socket.connect, socket.getaddrinfo = watched, watched_look_up
from training.encoders import load_classifier, revision_of
from training.errors import CheckpointError
answers = {}
for encoder in sys.argv[1:]:
    try:
        model, tokenizer = load_classifier(encoder, ["negative", "positive"])
        answers[encoder] = revision_of(model)
    except CheckpointError as exc:
        answers[encoder] = str(exc)
print(json.dumps({"answers": answers, "hosts": sorted(hosts)}))
"""


def ask_hub(endpoint: str, home: Path, *encoders: str) -> dict:
    """What loading each encoder gave, a commit or a refusal, and every host that was looked up or connected to."""
    kept = {name: os.environ[name] for name in os.environ if not re.match(r"HF_|.*proxy", name, re.IGNORECASE)}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *encoders],
        cwd=ROOT,
        env={**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


FIRST, SECOND, THIRD = "1" * 40, "2" * 40, "3" * 40


@pytest.fixture(scope="module")
def answered(kcbert_like, tmp_path_factory):
    """One process asks a hub for everything at once: the double, its answers, and the cache that was left."""
    folder = tmp_path_factory.mktemp("hub")
    pickled = copy_without(kcbert_like, folder / "pickled", "model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    commit = {name: place.partition("@")[2] for name, place in PINNED.items()}
    title = "Adding `safetensors` variant of this model"
    both = {FIRST: kcbert_like, SECOND: pickled, THIRD: kcbert_like}
    hub = HubDouble(
        {
            "beomi/kcbert-base": Repository({"main": FIRST}, {FIRST: kcbert_like, commit["kcbert-base"]: kcbert_like}),
            "beomi/KcELECTRA-base-v2022": Repository(
                {"refs/pr/1": FIRST, "refs/pr/2": THIRD},
                {commit["kcelectra-base"]: pickled, THIRD: kcbert_like},
                offers=[(1, "somebody", title), (2, "SFconvertbot", title)],
            ),
            "some/plain": Repository({"main": SECOND, "refs/pr/1": FIRST}, both),
            "some/forged": Repository({"main": SECOND, "refs/pr/1": FIRST}, both, offers=[(1, "somebody", title)]),
            "some/private": Repository(fails=401),
            "some/broken": Repository(fails=500),
        }
    )
    encoders = ["kcbert-base", "kcbert-base@main", "kcelectra-base", f"beomi/kcbert-base@{SECOND}", "some/plain"]
    encoders += ["some/plain@refs/pr/1", "some/forged", "some/private", "some/broken", "some/missing"]
    with hub:
        result = ask_hub(hub.url, folder / "home", *encoders)
    return hub, result, folder / "home"


def test_a_name_asks_for_its_pinned_commit_and_for_no_pickle(answered):
    hub, result, _ = answered
    commit = PINNED["kcbert-base"].partition("@")[2]
    assert result["answers"]["kcbert-base"] == commit
    fetched = [path for path in hub.asked if "kcbert-base/resolve" in path]
    assert f"/beomi/kcbert-base/resolve/{commit}/model.safetensors" in fetched
    assert not [path for path in hub.asked if path.endswith(".bin")]


def test_another_revision_can_be_asked_for_and_its_commit_is_told(answered):
    hub, result, _ = answered
    assert result["answers"]["kcbert-base@main"] == FIRST
    assert "/api/models/beomi/kcbert-base/revision/main" in hub.asked
    assert result["answers"]["some/plain@refs/pr/1"] == FIRST
    assert "has no revision '2222" in result["answers"][f"beomi/kcbert-base@{SECOND}"]


def test_where_only_a_pickle_is_pinned_the_hubs_own_conversion_is_taken_and_nobody_elses(answered):
    _, result, _ = answered
    assert result["answers"]["kcelectra-base"] == THIRD
    for name in ("some/plain", "some/forged"):
        assert f"{name} holds no model.safetensors" in result["answers"][name]
        assert f"name it as {name}@refs/pr/N" in result["answers"][name]


@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [
        ("some/missing", "the hub knows no some/missing, or it is private; mind the spelling, set HF_TOKEN"),
        ("some/private", "the hub answered 401 for some/private; set HF_TOKEN to a token that may read it"),
        ("some/broken", "the hub answered 500; train nano, which is shipped, or fetch it"),
    ],
)
def test_each_refusal_of_the_hub_is_one_sentence_with_the_remedy(answered, encoder, sentence):
    _, result, _ = answered
    assert sentence in result["answers"][encoder]
    assert "\n" not in result["answers"][encoder]


def test_no_host_but_the_hub_is_contacted(answered):
    _, result, _ = answered
    assert set(result["hosts"]) == {"127.0.0.1"}


def test_without_a_network_the_cache_serves_and_what_is_missing_is_said_with_the_way_out(answered, tmp_path):
    _, _, home = answered
    with socket.socket() as bound:  # bound and not listening: the port refuses
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        result = ask_hub(endpoint, home, "kcbert-base", "kcbert-large", "some/plain@refs/pr/1")
    commit = PINNED["kcbert-large"].partition("@")[2]
    assert result["answers"]["kcbert-base"] == PINNED["kcbert-base"].partition("@")[2]
    assert result["answers"]["some/plain@refs/pr/1"] == FIRST
    missing = result["answers"]["kcbert-large"]
    assert missing.startswith("beomi/kcbert-large is not on this machine, and the hub cannot be reached")
    assert f"hf download beomi/kcbert-large --revision {commit} --local-dir FOLDER" in missing
    assert "train nano" in missing and "\n" not in missing
    assert set(result["hosts"]) == {"127.0.0.1"}
