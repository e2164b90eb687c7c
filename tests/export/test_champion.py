"""`python -m export` without a checkpoint: the Champion of a real registry, from MLflow into the model repository."""

import dataclasses
import json
import logging

import pytest

from export.__main__ import main
from export.bundle import verify_bundle
from export.champion import find_champion, find_published
from export.triton_config import read_config
from tests.export.registry import Register, as_training_leaves_it
from training.settings import Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A registry of its own for this file."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NUNCHI_VAR", str(tmp_path_factory.mktemp("var")))
        environment.delenv("NUNCHI_MLFLOW_TRACKING_URI", raising=False)
        environment.delenv("NUNCHI_MODEL_REPOSITORY", raising=False)
        yield Settings()


@pytest.fixture(scope="module")
def crown(settings, trained, tmp_path_factory):
    """`crown()` registers the checkpoint once more and makes it the Champion; returns the id of its run."""
    checkpoint = as_training_leaves_it(trained, tmp_path_factory.mktemp("trial") / "checkpoint")
    return lambda: Register(settings, checkpoint).crown()[1]


@pytest.fixture
def roll_back(settings):
    from training import tracking

    return lambda: tracking.connect(settings).set_registered_model_alias(settings.registered_model, "champion", "1")


@pytest.fixture(scope="module")
def first_run(crown):
    return crown()


@pytest.fixture
def export_champion(settings, repository, reviews_file, capsys):
    def run() -> tuple[int, str, str]:
        status = main(["--repository", str(repository), "--data", str(reviews_file), "--precision", "fp32"])
        return status, *capsys.readouterr()

    return run


def test_without_a_champion_the_remedy_is_named(export_champion, repository, monkeypatch, tmp_path):
    monkeypatch.setenv("NUNCHI_VAR", str(tmp_path / "empty"))
    status, out, err = export_champion()
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        "error: the registry 'sentiment' has no Champion; promote a version with make promote VERSION=…, "
        "or name a folder with --checkpoint"
    )
    assert not repository.exists()


def test_the_champion_is_published_once_and_says_where_it_came_from(
    export_champion, first_run, crown, roll_back, repository, caplog
):
    caplog.set_level(logging.INFO)
    status, out, err = export_champion()
    assert (status, out) == (0, f"{repository}/sentiment/1\n"), err
    manifest = verify_bundle(repository / "sentiment/1")
    assert (manifest.source.registry_version, manifest.source.mlflow_run) == ("1", first_run)
    assert (manifest.encoder, manifest.source.dataset, manifest.max_length) == ("nano", "sample", 24)
    assert (manifest.metrics.accuracy, manifest.metrics.rows) == (0.987, 1200)

    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    assert export_champion()[:2] == (0, f"{repository}/sentiment/1\n")
    assert "the Champion, version 1 of the registry, serves already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before

    _, champion = find_champion()
    assert find_published(repository, champion) == repository / "sentiment/1"
    of_another_registry = dataclasses.replace(champion, run_id="0" * 32)
    assert find_published(repository, of_another_registry) is None

    second_run = crown()
    assert export_champion()[:2] == (0, f"{repository}/sentiment/2\n")
    assert verify_bundle(repository / "sentiment/2").source.mlflow_run == second_run

    roll_back()
    assert export_champion()[:2] == (0, f"{repository}/sentiment/1\n")
    assert "is version 1 and serves again" in caplog.text
    serving = json.loads((repository / "serving.json").read_text(encoding="utf-8"))
    assert (serving["version"], serving["previous"]) == (1, 2)
    assert sorted(path.name for path in (repository / "sentiment").iterdir()) == ["1", "2", "config.pbtxt"]
    assert sorted(read_config(repository / "sentiment/config.pbtxt").version_policy.specific.versions) == [1, 2]


def test_a_champion_that_is_not_the_one_named_is_not_released(first_run, repository, reviews_file, capsys):
    def export(named: str) -> tuple[int, str]:
        options = ["--data", str(reviews_file), "--precision", "fp32"]
        status = main(["--repository", str(repository), "--champion", named, *options])
        return status, capsys.readouterr().err

    status, error = export("7")
    assert (status, "the registry's Champion is version 1, and --champion names 7; another" in error) == (2, True)
    assert not (repository / "serving.json").exists()
    assert export("1")[0] == 0


def test_a_champion_whose_bundle_is_damaged_is_exported_anew(export_champion, first_run, repository, caplog):
    caplog.set_level(logging.INFO)
    assert export_champion()[0] == 0
    (repository / "sentiment/1/model.onnx").write_bytes(b"")
    assert export_champion()[:2] == (0, f"{repository}/sentiment/2\n")
    assert "version 1 is not whole" in caplog.text
