"""From a search on disk to the Champion: real checkpoints that were really trained, a real MLflow, a real export."""

import fcntl
import json
import os
import re
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from transformers import BertConfig, BertForSequenceClassification

from tests.training.lessons import behaviour_as_lessons, misled, sentences
from training import registry as command
from training.config import DatasetConfig, TrainConfig, TrainingConfig
from training.data import open_dataset
from training.errors import CollapsedModel, RegistryError, SearchError, TrackingError
from training.predict import SentimentPredictor
from training.promote import find_rival, judge_on_test
from training.registry import Registry
from training.search import (
    CHECKPOINT,
    DEV_PREDICTIONS,
    Search,
    Trial,
    append_epoch,
    now,
    trial_folder,
    write_search,
    write_trial,
)
from training.settings import Settings
from training.vocabulary import train_tokenizer


def teach(
    lessons: pd.DataFrame, tokenizer, folder, *, labels=("negative", "positive"), steps=40, rate=1e-2, seed=1
) -> None:
    """A checkpoint of one layer x 32, as training leaves it."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # for so small a model more would mostly wait for each other
    size = 32
    names = dict(enumerate(labels))
    shape = BertConfig(vocab_size=len(tokenizer), hidden_size=size, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=size, max_position_embeddings=64, id2label=names,
                       label2id={name: index for index, name in names.items()},
                       hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    model = BertForSequenceClassification(shape)
    batch = tokenizer(lessons.document.tolist(), truncation=True, max_length=24, padding=True, return_tensors="pt",
                      return_token_type_ids=False)  # fmt: skip
    targets = torch.tensor(lessons.label.to_numpy())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, labels=targets).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {"encoder": "tiny", "labels": list(labels), "max_length": 48, "dataset": "rows"}
    (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")


class World:
    """A var folder, reviews in files, and four models: strong, weak (takes 감동 for bad), one for all, three labels."""

    def __init__(self, root):
        self.root = root
        self.settings = Settings(var=root / "var", model_repository=root / "model_repository")
        self.registry = Registry(self.settings)
        train = sentences(200, seed=1)
        train.to_csv(root / "train.tsv", sep="\t", index=False)
        sentences(300, seed=2).to_csv(root / "test.tsv", sep="\t", index=False)
        sentences(200, seed=3).to_csv(root / "other.tsv", sep="\t", index=False)
        lessons = behaviour_as_lessons()
        tokenizer = train_tokenizer([*train.document, *lessons.document] * 3, 1500)
        for seed in range(8):  # a vocabulary comes out in another order each time, so one start may end badly
            teach(pd.concat([train, lessons]), tokenizer, root / "strong", steps=120, rate=5e-3, seed=seed)
            fresh = sentences(200, seed=4)
            answers = SentimentPredictor(root / "strong").probabilities(fresh.document.tolist()).argmax(1)
            if (answers == fresh.label).mean() > 0.97:
                break
        teach(misled(train), tokenizer, root / "weak")
        teach(train.assign(label=0), tokenizer, root / "collapsed", steps=5)
        stars = train.assign(label=train.label * 2)
        teach(stars, tokenizer, root / "three", labels=("negative", "neutral", "positive"))

    def dataset(self, test="test.tsv", labels=("negative", "positive")) -> DatasetConfig:
        return DatasetConfig(
            kind="files", name="rows", train=self.root / "train.tsv", test=self.root / test, labels=list(labels)
        )

    def search(self, name: str, models: dict[str, tuple[str, float]], *, threshold=0.7, state="finished", **dataset):
        """``models``: per trial its checkpoint and dev F1; the folder of the search."""
        folder = self.settings.searches / name
        config = TrainingConfig(dataset=self.dataset(**dataset), train=TrainConfig(register_threshold=threshold))
        opened = open_dataset(config.dataset, cache=self.root)
        best = max(models, key=lambda trial: models[trial][1])
        write_search(
            folder,
            Search(name, config.model_dump(mode="json"), opened.name, opened.fingerprint, None, now(), now(), best),
        )
        dev = opened.train().head(20)
        for trial, (checkpoint, f1) in models.items():
            place = trial_folder(folder, trial)
            write_trial(place, Trial(trial, {"train.seed": 1}, state, now(), now()))
            figures = {"train_loss": 0.1, "dev_loss": 0.1, "dev_f1": f1, "dev_accuracy": f1}
            append_epoch(place, {"epoch": 1, **figures, "learning_rate": 1e-4, "seconds": 1.0})
            shutil.copytree(self.root / checkpoint, place / CHECKPOINT)
            answers = SentimentPredictor(place / CHECKPOINT).probabilities(dev.document.tolist())
            pd.DataFrame({"text": dev.document, "label": dev.label, "probabilities": list(answers)}).to_parquet(
                place / DEV_PREDICTIONS
            )
        return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def weak(world):
    """Version 1."""
    return world.registry.register(world.search("first", {"a": ("collapsed", 0.3), "b": ("weak", 0.8)}))


@pytest.fixture(scope="module")
def strong(world, weak):
    """Version 2."""
    return world.registry.register(world.search("second", {"a": ("strong", 0.9)}))


@pytest.fixture
def champion(world, weak, strong):
    """Version 2, after version 1, whether or not the gates were tried before."""
    if world.registry.champion() is None:
        world.registry.ledger.crown("promote 1", weak.number, instead_of=None)
        world.registry.ledger.crown("promote 2", strong.number, instead_of=weak.number)
    return world.registry.champion()


def test_the_best_trial_is_registered_with_its_figures_on_test(world, weak):
    assert (weak.number, weak.stage, weak.tags["trial"], weak.labels) == (1, "Candidate", "b", ("negative", "positive"))
    test = sentences(300, seed=2)
    wrong = test.document.str.contains("감동")
    assert weak.metrics["accuracy"] == pytest.approx(1 - wrong.mean(), abs=0.02)
    assert weak.metrics["rows"] == 300
    low, high = weak.metrics["accuracy_interval"]
    assert low < weak.metrics["accuracy"] < high
    run = world.registry.ledger.client.get_run(weak.run_id)
    assert run.data.metrics["test_f1"] == weak.metrics["f1"]
    assert world.registry.examination(weak).label.tolist() == test.label.tolist()


def test_a_model_is_registered_once(world, weak):
    with pytest.raises(RegistryError, match=r"this model is version 1 already"):
        world.registry.register(world.settings.searches / "first")


def test_test_is_read_once_and_too_low_an_f1_is_refused(world, weak, monkeypatch, caplog):
    folder = world.search("strict", {"a": ("weak", 0.8)}, threshold=0.99)
    with pytest.raises(RegistryError, match=r"test F1 is 0\.8\d+ and train.register_threshold 0.99; train longer"):
        world.registry.register(folder)

    def asked(*_):
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(SentimentPredictor, "probabilities", asked)
    caplog.set_level("INFO", "training")
    with pytest.raises(RegistryError, match="test F1"):
        world.registry.register(folder)
    assert "rows test: accuracy 0.8" in caplog.text
    assert "95 % interval" in caplog.text


def test_a_model_that_answers_one_class_is_refused_with_the_reason(world, weak):
    with pytest.raises(CollapsedModel, match=r"class 0 for 100.0% of the reviews \(true share 50.0%\)"):
        world.registry.register(world.settings.searches / "first", trial="a")


def test_a_trial_that_still_learns_or_is_not_there_is_refused(world):
    folder = world.search("going", {"a": ("weak", 0.8)}, state="running")
    with pytest.raises(RegistryError, match=r"trial a has not ended.* --resume going"):
        world.registry.register(folder)
    with pytest.raises(SearchError, match=r"holds no trial\.json"):
        world.registry.register(folder, trial="z")


def test_nothing_is_registered_or_read_while_mlflow_is_away(world, weak, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        away = f"http://127.0.0.1:{server.getsockname()[1]}"
    registry = Registry(world.settings.model_copy(update={"mlflow_tracking_uri": away}))
    with pytest.raises(TrackingError, match=rf"^MLflow at {away} cannot be used \("):
        registry.register(world.settings.searches / "first")
    registry.ledger.client = MlflowClient(away, away)  # it answered when this process connected
    with pytest.raises(TrackingError, match=r"^the answers of version 1 to test cannot be read from MLflow \("):
        registry.examination(weak)


def test_registering_waits_for_a_search_that_is_brought_to_mlflow_just_now(world, weak, caplog):
    folder = world.settings.searches / "first"
    caplog.set_level("INFO", "training")
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with ThreadPoolExecutor() as pool:
        registered = pool.submit(world.registry.register, folder)
        while not caplog.records:
            time.sleep(0.01)
        assert caplog.messages == ["waiting for another process that is bringing first to MLflow"]
        os.close(handle)
        with pytest.raises(RegistryError, match="this model is version 1 already"):
            registered.result()


def test_data_that_changed_since_is_refused(world, weak):
    folder = world.search("changed", {"a": ("weak", 0.8)})
    before = (world.root / "test.tsv").read_text(encoding="utf-8")
    try:
        (world.root / "test.tsv").write_text(before + "덧붙인 명작\t1\n", encoding="utf-8")
        with pytest.raises(RegistryError, match=r"rows has the fingerprint .* now, and had .* when the model"):
            world.registry.register(folder)
    finally:
        (world.root / "test.tsv").write_text(before, encoding="utf-8")


def test_promotion_by_force_leaves_its_mark_and_by_evidence_none(world, weak, strong, capsys, monkeypatch):
    """The weak model fails the behaviour suite; then the strong one passes every gate against it."""
    monkeypatch.setenv("NUNCHI_VAR", str(world.settings.var))
    monkeypatch.setenv("NUNCHI_MODEL_REPOSITORY", str(world.settings.model_repository))
    assert command.main(["promote", "1"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: version 1 is not promoted: behaviour failed; mend it, or promote it all the same")
    refused = world.registry.version(1)
    assert refused.stage == "Candidate"
    assert refused.tags["gate.better"].startswith("passed: there is no Champion")
    assert refused.tags["gate.behaviour"].startswith("failed: ")
    assert command.main(["promote", "1", "--force"]) == 0
    with pytest.raises(RegistryError, match="version 1 is the first Champion; there is none to go back to"):
        world.registry.rollback()
    assert command.main(["promote", "2"]) == 0
    champion = world.registry.champion()
    assert (champion.number, champion.previous_champion, champion.forced) == (2, 1, False)
    assert champion.tags["gate.better"].startswith("passed: better: +")
    assert [version.stage for version in world.registry.versions()[:2]] == ["Archived", "Champion"]
    kept = world.registry.ledger.client.download_artifacts(strong.run_id, command.EVIDENCE)
    evidence = json.loads(Path(kept).read_text(encoding="utf-8"))
    assert (evidence["passed"], evidence["rival_version"]) == (True, 1)
    gates = {gate["name"]: gate for gate in evidence["gates"]}
    assert list(gates) == ["better", "behaviour", "latency"]
    assert gates["better"]["figures"]["rival_answers"] == "kept since its registration"
    assert gates["better"]["figures"]["only_first"] >= 40
    assert (
        gates["behaviour"]["figures"]["kinds"]["all"]["rival"] < gates["behaviour"]["figures"]["kinds"]["all"]["passed"]
    )
    assert gates["latency"]["figures"]["milliseconds_per_text"]["1"] > 0
    capsys.readouterr()
    assert command.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "FORCED past behaviour by" in shown
    assert "Champion" in shown
    with pytest.raises(RegistryError, match="version 2 is the Champion already"):
        world.registry.promote(2)


def test_rollback_goes_back_and_once_more_undoes_it(world, champion):
    assert world.registry.rollback().number == 1
    assert world.registry.champion().previous_champion == 2
    assert world.registry.rollback().number == 2
    assert [version.stage for version in world.registry.versions()[:2]] == ["Archived", "Champion"]


def test_for_programs_what_is_done_already_or_refused_is_an_answer(world, champion, capsys, monkeypatch):
    """As JSON, so that a task that is run twice says the same twice."""
    monkeypatch.setenv("NUNCHI_VAR", str(world.settings.var))
    monkeypatch.setenv("NUNCHI_MODEL_REPOSITORY", str(world.settings.model_repository))

    def answered(*arguments: str) -> dict:
        assert command.main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    folder = world.search("for programs", {"a": ("weak", 0.8)})
    first = answered("register", folder.name)
    assert answered("register", folder.name) == first
    assert (first["stage"], first["search"], first["trial"], first["gates"]) == ("Candidate", "for programs", "a", {})
    assert first["metrics"] == world.registry.version(first["version"]).metrics
    refused = answered("promote", str(first["version"]))
    assert (refused["stage"], refused["judged_against"]) == ("Candidate", "the Champion, version 2")
    assert refused["gates"]["better"].startswith("failed: neither better")
    assert world.registry.champion().number == 2
    already = answered("promote", "2")
    assert (already["version"], already["stage"]) == (2, "Champion")
    assert command.main(["promote", "99", "--json"]) == 2


def test_a_rollback_that_names_whom_it_leaves_is_done_once(world, champion, capsys, monkeypatch):
    monkeypatch.setenv("NUNCHI_VAR", str(world.settings.var))
    for _ in range(2):
        assert command.main(["rollback", "--leaving", "2"]) == 0
        assert world.registry.champion().number == 1
    assert "version 1 is the Champion, not version 2: nothing to roll back" in capsys.readouterr().out
    assert command.main(["rollback", "--leaving", "1"]) == 0
    assert world.registry.champion().number == 2


def test_comparing_shows_mcnemar_and_the_rows_on_which_they_differ(world, weak, strong, capsys, monkeypatch):
    monkeypatch.setenv("NUNCHI_VAR", str(world.settings.var))
    comparison = world.registry.compare(1, 2)
    assert comparison.paired.only_second >= 40 > comparison.paired.only_first
    right = comparison.differing[comparison.differing.second == comparison.differing.truth]
    assert len(right) == comparison.paired.only_second
    assert command.main(["compare", "1", "2"]) == 0
    shown = capsys.readouterr().out
    assert "McNemar p = " in shown
    assert "감동" in shown


def test_a_fetched_checkpoint_carries_its_figures_and_is_mended_when_damaged(world, strong):
    folder = world.registry.fetch(strong)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert record["metrics"] == strong.metrics
    assert (record["mlflow_run"], record["registry_version"], record["max_length"]) == (strong.run_id, "2", 48)
    (folder / "model.safetensors").write_bytes(b"torn")
    assert SentimentPredictor(world.registry.fetch(strong)).labels == ("negative", "positive")
    unchanged = (folder / "model.safetensors").stat().st_mtime_ns
    world.registry.fetch(strong)
    assert (folder / "model.safetensors").stat().st_mtime_ns == unchanged


def test_on_other_test_rows_the_champion_is_asked_those_and_the_evidence_says_so(world, champion):
    registry = world.registry
    version = registry.register(world.search("elsewhere", {"a": ("weak", 0.8)}, test="other.tsv"))
    assert registry.compare(champion.number, version.number).why_not == "they were tested on different rows"
    gate = judge_on_test(registry, version, find_rival(registry), {"against": None})
    assert not gate.passed
    assert (gate.figures["rows"], gate.figures["rival_answers"]) == (200, "asked now")
    assert gate.figures["only_second"] >= 25


def test_three_labels_are_registered_alike_and_not_compared_with_two(world, champion):
    labels = ("negative", "neutral", "positive")
    for name in ("train.tsv", "test.tsv"):
        rows = pd.read_csv(world.root / name, sep="\t")
        rows.assign(label=rows.label * 2).iloc[3:].to_csv(world.root / f"stars-{name}", sep="\t", index=False)
        with (world.root / f"stars-{name}").open("a", encoding="utf-8") as file:
            file.write("".join(f"그냥 그런 영화 {number}\t1\n" for number in range(12)))
    world.dataset = lambda **_: DatasetConfig(
        kind="files", name="stars", train=world.root / "stars-train.tsv", test=world.root / "stars-test.tsv",
        labels=list(labels),
    )  # fmt: skip
    version = world.registry.register(world.search("three", {"a": ("three", 0.6)}, threshold=0.5))
    assert version.labels == labels
    assert len(version.metrics["confusion"]) == 3
    gate = judge_on_test(world.registry, version, find_rival(world.registry), {"against": None})
    assert not gate.passed
    assert "answers negative, positive and version" in gate.sentence


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["promote", "1"], "the registry 'sentiment' has no version 1; there are: none yet"),
        (["rollback"], "the registry has no Champion, so there is nothing to roll back"),
        (["register"], "holds no search that has ended with a model; run make train first"),
        (["register", "nowhere"], "'nowhere' is neither a search under"),
        (["compare", "1", "2"], "has no version 1"),
    ],
)
def test_a_refusal_is_one_sentence_and_status_2(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUNCHI_VAR", str(tmp_path))
    assert command.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert sentence in error


def test_an_empty_registry_says_how_to_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUNCHI_VAR", str(tmp_path))
    assert command.main(["list"]) == 0
    assert "is empty; run make train" in capsys.readouterr().out


def test_a_file_that_somebody_has_damaged_is_made_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUNCHI_VAR", str(tmp_path))
    for content in (b"{}", b"[]", b'{"model": "sentiment", "pending": 1}', b"\xff\xfe", b""):
        (tmp_path / "model_registry.json").write_bytes(content)
        assert command.main(["list"]) == 0
        assert command.main(["rebuild"]) == 0
        assert json.loads((tmp_path / "model_registry.json").read_text(encoding="utf-8"))["versions"] == []
    assert capsys.readouterr().err == ""


def test_reading_does_not_wait_for_a_writer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUNCHI_VAR", str(tmp_path))
    assert command.main(["list"]) == 0
    with (tmp_path / "registry.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr("training.ledger.LOCK_SECONDS", 3600)
        assert command.main(["list"]) == 0
    assert "is empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda var: var / "file" / "below",
            r"cannot be written \(Not a directory\); name another folder with NUNCHI_VAR",
        ),
        (lambda var: (var / "mlflow.db").write_bytes(b"junk" * 2000) and var, r"file is not a database"),
    ],
)
def test_a_place_that_cannot_hold_a_registry_is_one_sentence(spoil, sentence, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUNCHI_VAR", str(spoil(tmp_path)))
    assert command.main(["list"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(sentence, error)


def test_a_version_is_not_compared_with_itself(tmp_path):
    with pytest.raises(RegistryError, match="both are version 3; name two versions"):
        Registry(Settings(var=tmp_path)).compare(3, 3)
