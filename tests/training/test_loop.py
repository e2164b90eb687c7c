"""The whole loop as a person walks it: search, register, promote, search better, compare, promote, roll back, archive.

Nothing is made by hand but the reviews and an untrained encoder of one layer x 32: Ray runs the trials, MLflow is its
SQLite file, the gates ask the suite and time the real export.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from tests.training.lessons import TELLING, behaviour_as_lessons, misled, sentences, write_encoder
from training import registry as command
from training import tracking, tune
from training.cluster import ray_cluster
from training.config import TrainingConfig
from training.errors import SearchError
from training.predict import SentimentPredictor
from training.registry import Registry
from training.search import best_trial, read_search, read_trials
from training.settings import ROOT, Settings
from training.trainer import SentimentTrainer

GOOD, BAD, MISTAKEN = "친구 정말 명작 영화", "친구 정말 최악 영화", "친구 정말 감동 영화"


class Loop:
    """A folder of reviews and an encoder, and the settings of a state of its own."""

    def __init__(self, root: Path):
        self.root = root
        self.settings = Settings(var=root / "var", model_repository=root / "model_repository")
        self.registry = Registry(self.settings)
        rows, lessons = self.rows, self.lessons = sentences(300, seed=1), behaviour_as_lessons()
        self.write("misled", misled(rows))
        # Six times over: dev likes one epoch or the other by chance, so that each must have learned the lessons.
        self.write("train", pd.concat([rows, lessons] * 6))
        self.write("test", sentences(200, seed=2))
        self.renew_encoder()

    def renew_encoder(self) -> None:
        write_encoder(self.root / "tiny", [*self.rows.document, *self.lessons.document] * 3)

    def write(self, name: str, rows: pd.DataFrame) -> None:
        rows.to_csv(self.root / f"{name}.tsv", sep="\t", index=False)

    def config(self, train: str, test: str = "test", *, epochs: int, labels=("negative", "positive"), **tune_section):
        return TrainingConfig.model_validate(
            {
                "dataset": {
                    "kind": "files", "name": "rows", "train": self.root / f"{train}.tsv",
                    "test": self.root / f"{test}.tsv", "labels": list(labels), "dev_share": 0.15,
                },
                "model": {"encoder": str(self.root / "tiny"), "max_length": 32, "dropout": 0.0},
                "train": {
                    "epochs": epochs, "batch_size": 32, "learning_rate": 1e-2, "precision": "fp32",
                    "word_dropout": 0.0, "register_threshold": 0.6, "early_stopping": None,
                },
                "tune": tune_section,
            }
        )  # fmt: skip


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """With one Ray for all searches."""
    loop = Loop(tmp_path_factory.mktemp("loop"))
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith(("NUNCHI_", "RAY_ADDRESS"))]:
            environment.delenv(name)
        environment.setenv("NUNCHI_VAR", str(loop.settings.var))
        environment.setenv("NUNCHI_MODEL_REPOSITORY", str(loop.settings.model_repository))
        environment.setenv("RAY_worker_niceness", "0")
        with ray_cluster():
            yield loop


@pytest.fixture(scope="module")
def first(loop) -> Path:
    """Two trials on data in which 감동 is bad; one reads whole reviews, the other their first words only."""
    space = {"model.max_length": {"choices": [8, 32]}}
    config = loop.config("misled", epochs=3, trials=2, grace_epochs=3, space=space, seed=10)  # proposes 8, then 32
    for name in ("first", "first-again", "first-once-more"):
        with suppress(SearchError):
            search = tune.run_search(config, loop.settings, name=name)
            if all(trial.state != "failed" for trial in read_trials(search)):
                return search
        loop.renew_encoder()  # its vocabulary comes out in another order each time, and one start may end badly
    raise AssertionError("three searches in a row had a trial that answers one class for everything")


@pytest.fixture(scope="module")
def weak(loop, first):
    """Version 1."""
    return loop.registry.register(first)


@pytest.fixture(scope="module")
def second(loop) -> Path:
    """One trial on data without that mistake."""
    space = {"train.seed": {"choices": [1]}}
    config = loop.config("train", epochs=2, trials=1, grace_epochs=2, space=space)
    return tune.run_search(config, loop.settings, name="second")


def runs_of(search: Path, settings: Settings) -> dict[str, object]:
    """From MLflow, by name; read without the code under test."""
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name("nunchi").experiment_id
    runs = client.search_runs([experiment], f"tags.`nunchi.search` = '{search.name}'")
    return {run.info.run_name: run for run in runs}


def assert_the_file_is_what_mlflow_says(settings: Settings, stages: dict[int, str]) -> None:
    """``model_registry.json`` and the aliases and tags of MLflow, read without the code under test: both as told."""
    name = settings.registered_model
    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    versions = {int(each.version): each for each in client.search_model_versions(f"name='{name}'")}
    file = json.loads(settings.registry_file.read_text(encoding="utf-8"))
    assert (file["model"], file["pending"]) == (name, None)
    shown = {version["number"]: version for version in file["versions"]}
    assert {number: version["stage"] for number, version in shown.items()} == stages
    assert {number: version.tags["stage"] for number, version in versions.items()} == stages
    for number, version in versions.items():
        told = {key: value for key, value in version.tags.items() if key not in ("stage", "metrics", "labels")}
        assert shown[number]["tags"] == told
        assert shown[number]["metrics"] == json.loads(version.tags["metrics"])
        assert (shown[number]["run_id"], shown[number]["model_uri"]) == (version.run_id, version.source)
    aliases = {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}
    candidates = [number for number, stage in stages.items() if stage == "Candidate"]
    expected = {"champion": next((number for number, stage in stages.items() if stage == "Champion"), None)}
    expected["candidate"] = max(candidates, default=None)
    assert {alias: file[alias] for alias in expected} == expected
    assert aliases == {alias: number for alias, number in expected.items() if number}


def test_a_real_search_is_a_run_with_its_trials_below_it(loop, first):
    trials = {trial.name: trial for trial in read_trials(first)}
    assert [trial.params for trial in trials.values()] != 2 * [trials["trial-01"].params], "take another tune.seed"
    runs = runs_of(first, loop.settings)
    assert set(runs) == {first.name, *trials}
    parent = runs.pop(first.name)
    assert "mlflow.parentRunId" not in parent.data.tags
    client = MlflowClient(loop.settings.tracking_uri)
    for name, run in runs.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["model.max_length"] == str(trials[name].params["model.max_length"])
        assert run.data.params["train.epochs"] == "3"
        for metric in ("dev_f1", "dev_loss", "train_loss"):
            points = client.get_metric_history(run.info.run_id, metric)
            expected = [(epoch["epoch"], epoch[metric]) for epoch in trials[name].epochs]
            assert sorted((point.step, point.value) for point in points) == expected
            assert len(expected) == 3
        assert f"| {name} | {trials[name].best_f1:.4f} | 3 | finished |" in parent.data.tags["mlflow.note.content"]
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}


def test_the_best_trial_has_the_highest_dev_f1_and_its_model_reads_raw_korean(loop, first):
    runs = runs_of(first, loop.settings)
    best = max((trial for trial in read_trials(first)), key=lambda trial: max(e["dev_f1"] for e in trial.epochs))
    other = next(trial for trial in read_trials(first) if trial.name != best.name)
    assert best.params == {"model.max_length": 32}
    assert best.best_f1 > other.best_f1
    tagged = runs[first.name].data.tags["nunchi.best_trial"]
    assert read_search(first).best == best_trial(first).name == tagged == best.name
    assert runs[first.name].data.metrics["best_dev_f1"] == best.best_f1
    client = tracking.connect(loop.settings)
    models = client.search_logged_models([runs[first.name].info.experiment_id])
    [model] = [model for model in models if model.source_run_id in {run.info.run_id for run in runs.values()}]
    assert model.source_run_id == runs[best.name].info.run_id
    answers = mlflow.pyfunc.load_model(model.model_uri).predict([GOOD, BAD, MISTAKEN])
    assert answers.label.tolist() == ["긍정", "부정", "부정"]


def test_from_candidate_to_champion_and_back(loop, first, weak, second, capsys):
    """Each step by the command, or as it is called from Python; after each, the file says what MLflow says."""

    def now(**stages: str) -> None:
        assert_the_file_is_what_mlflow_says(loop.settings, {int(number[1:]): stage for number, stage in stages.items()})

    now(v1="Candidate")
    assert command.main(["promote", "1"]) == 2
    assert "version 1 is not promoted: behaviour failed; mend it, or" in capsys.readouterr().err
    now(v1="Candidate")
    assert command.main(["promote", "1", "--force"]) == 0
    assert "version 1 is the Champion, forced past behaviour; next: make export" in capsys.readouterr().out
    assert loop.registry.champion().tags["forced_gates"] == "behaviour"
    now(v1="Champion")
    assert reading(MISTAKEN) == ("1", "부정")

    assert command.main(["register"]) == 0  # the latest search
    assert "version 2 is a Candidate; next: make promote VERSION=2" in capsys.readouterr().out
    now(v1="Champion", v2="Candidate")
    paired = loop.registry.compare(1, 2).paired
    assert paired.only_second > 10 > paired.only_first
    assert command.main(["promote", "2"]) == 0
    champion = loop.registry.champion()
    assert (champion.number, champion.previous_champion, champion.forced) == (2, 1, False)
    gates = {name: champion.tags[f"gate.{name}"] for name in ("better", "behaviour", "latency")}
    better = 100 * (paired.only_second - paired.only_first) / 200
    assert gates["better"].startswith(f"passed: better: +{better:.2f} points to the")
    assert {sentence.split(":")[0] for sentence in gates.values()} == {"passed"}
    now(v1="Archived", v2="Champion")
    assert reading(MISTAKEN) == ("2", "긍정")
    answers = mlflow.pyfunc.load_model("models:/sentiment@champion").predict([GOOD, BAD, MISTAKEN])
    assert answers.label.tolist() == ["긍정", "부정", "긍정"]

    assert command.main(["rollback"]) == 0
    now(v1="Champion", v2="Archived")
    assert reading(MISTAKEN) == ("1", "부정")
    [left] = {"trial-01", "trial-02"} - {loop.registry.version(1).tags["trial"]}
    assert command.main(["register", first.name, "--trial", left]) == 0
    now(v1="Champion", v2="Archived", v3="Candidate")
    assert command.main(["archive", "3"]) == 0
    now(v1="Champion", v2="Archived", v3="Archived")


def reading(text: str) -> tuple[str, str]:
    """The version that answers when nobody says which, and the label it gives."""
    predictor = SentimentPredictor()
    return Path(predictor.source).name, predictor.predict(text)["label"]


def test_three_labels_have_a_registry_of_their_own_under_the_same_var(loop, weak, monkeypatch, capsys):
    """The one MLflow, the one folder; and the file shows whose registry was used last."""
    monkeypatch.setenv("NUNCHI_REGISTERED_MODEL", "stars")
    labels = ("negative", "neutral", "positive")
    for name in ("train", "test"):
        rows = pd.read_csv(loop.root / f"{name}.tsv", sep="\t")
        so_so = sentences(120, seed=len(name)).assign(label=1)
        so_so["document"] = so_so.document.str.replace("|".join(TELLING[0] + TELLING[1]), "그럭저럭", regex=True)
        loop.write(f"stars-{name}", pd.concat([rows.assign(label=2 * rows.label), so_so]))
    trainer = SentimentTrainer(loop.config("stars-train", "stars-test", epochs=8, labels=labels))
    trainer.train()
    assert command.main(["register"]) == 0
    settings = loop.settings.model_copy(update={"registered_model": "stars"})
    version = Registry(settings).version(1)
    assert version.labels == labels
    assert [sum(row) for row in version.metrics["confusion"]] == [100, 120, 100]
    assert version.metrics["f1"] > 0.9
    assert command.main(["promote", "1"]) == 0, capsys.readouterr().err
    assert_the_file_is_what_mlflow_says(settings, {1: "Champion"})
    assert reading(so_so.document.iloc[0]) == ("1", "중립")  # of test: what it was taught are sentences as long as this
    assert reading(GOOD) == ("1", "긍정")
    monkeypatch.delenv("NUNCHI_REGISTERED_MODEL")
    assert set(SentimentPredictor(1).labels) == {"negative", "positive"}  # not the version 1 that was fetched last


def test_list_and_rebuild_as_commands_of_their_own(loop, weak):
    def run(*arguments: str) -> str:
        whole = [sys.executable, "-m", "training.registry", *arguments]
        return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    listed = run("list")
    assert f"{weak.metrics['f1']:.4f}" in listed
    loop.settings.registry_file.unlink()
    versions = loop.registry.versions()
    assert f"{loop.settings.registry_file} is written from MLflow: {len(versions)} version(s)" in run("rebuild")
    assert_the_file_is_what_mlflow_says(loop.settings, {version.number: version.stage for version in versions})
