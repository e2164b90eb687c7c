"""Searches run for real: Ray, a tiny encoder, generated reviews; killed, resumed, and with a node lost on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from transformers import ElectraConfig, ElectraForSequenceClassification

from training import tune
from training.cluster import ray_cluster
from training.config import TrainingConfig
from training.data import TEST, TRAIN, open_dataset
from training.errors import DatasetError, SearchError
from training.evaluate import measure
from training.search import (
    CHECKPOINT,
    DEV_PREDICTIONS,
    EPOCHS,
    Search,
    Trial,
    now,
    read_search,
    read_trials,
    trial_folder,
    write_search,
    write_trial,
)
from training.settings import Settings
from training.vocabulary import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TELLING = [["별로", "최악", "지루함"], ["명작", "감동", "꿀잼"]]
OTHERS = [f"낱말{index}" for index in range(60)]


def write_reviews(folder: Path) -> None:
    """One word of each review tells, anywhere in it: who reads less than the whole review must guess often."""
    chance = random.Random(1)

    def review(label: int) -> str:
        return " ".join(chance.sample([*chance.sample(OTHERS, 5), chance.choice(TELLING[label])], 6))

    for name, rows in ((TRAIN, 480), (TEST, 40)):
        lines = [f"{row}\t{review(row % 2)}\t{row % 2}" for row in range(rows)]
        (folder / name).write_text("\n".join(["id\tdocument\tlabel", *lines]) + "\n", encoding="utf-8")


def write_encoder(folder: Path) -> None:
    tokenizer = train_tokenizer([*OTHERS, *TELLING[0], *TELLING[1]] * 5, 300, max_length=32)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ElectraConfig(
        vocab_size=len(tokenizer), intermediate_size=32, max_position_embeddings=32, pad_token_id=0,
        attention_probs_dropout_prob=0.0, **shape,
    )  # fmt: skip
    ElectraForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> dict:
    """The dataset and model sections of a config."""
    folder = tmp_path_factory.mktemp("material")
    write_reviews(folder)
    write_encoder(folder / "tiny")
    return {
        "dataset": {"kind": "nsmc", "name": "generated", "folder": str(folder), "dev_share": 0.15},
        "model": {"encoder": str(folder / "tiny"), "max_length": 32},
        "train": {"epochs": 4, "batch_size": 32, "learning_rate": 1e-2, "precision": "fp32", "word_dropout": 0.0},
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    return Settings(var=tmp_path_factory.mktemp("var"))


@pytest.fixture(scope="module")
def ray():
    """One Ray for all searches of this process: each start would cost seconds."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_worker_niceness", "0")
        with ray_cluster():
            yield


def config_of(material: dict, **sections) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {section: {**material.get(section, {}), **sections.get(section, {})} for section in (*material, *sections)}
    )


def started_search(name: str, config: TrainingConfig, settings: Settings, trials: list[dict]) -> Path:
    """A search as a crash leaves it that comes before any epoch: its trials are known, and none has begun."""
    dataset = open_dataset(config.dataset, cache=settings.var / "data")
    folder = settings.searches / name
    write_search(
        folder,
        Search(name, config.model_dump(mode="json"), dataset.name, dataset.fingerprint, git_commit=None, created=now()),
    )
    for number, params in enumerate(trials, 1):
        trial = f"trial-{number:02}"
        write_trial(trial_folder(folder, trial), Trial(trial, params, started=now()))
    return folder


@pytest.fixture(scope="module")
def search(material, settings, ray) -> Path:
    """Trials one after the other: a good one, one that reads less, one that hardly learns, one that asks too much."""
    choices = {"model.max_length": [32, 8], "train.learning_rate": [1e-2, 1e-7], "model.unfrozen_layers": [None, 7]}
    config = config_of(
        material,
        tune={
            "trials": 4, "concurrent": 1, "reduction_factor": 2, "grace_epochs": 3,
            "space": {path: {"choices": values} for path, values in choices.items()},
        },
    )  # fmt: skip
    usual = {path: values[0] for path, values in choices.items()}
    others = [{path: values[1]} for path, values in choices.items()]
    folder = started_search("four", config, settings, [usual, *({**usual, **other} for other in others)])
    return tune.run_search(None, settings, resume=folder)


def test_the_best_trial_and_its_best_epoch_are_chosen_by_dev_f1(search):
    record = read_search(search)
    trials = {trial.name: trial for trial in read_trials(search)}
    best = trials[record.best]
    assert record.best == "trial-01" and best.state == "finished"
    assert [epoch["epoch"] for epoch in best.epochs] == [1, 2, 3, 4]
    folder = trial_folder(search, best.name)
    chosen = json.loads((folder / CHECKPOINT / "training.json").read_text(encoding="utf-8"))
    assert best.epochs[chosen["epoch"] - 1]["dev_f1"] == best.best_f1 > 0.9
    rows = pd.read_parquet(folder / DEV_PREDICTIONS)
    predicted = np.stack(rows.probabilities).argmax(1)
    assert measure("dev", rows.label.to_numpy(), predicted, 2).f1 == pytest.approx(best.best_f1)
    assert chosen["dev_metrics"]["f1"] == pytest.approx(best.best_f1)


def test_asha_ends_a_poor_trial_early(search):
    poor = read_trials(search)[1]
    assert poor.state == "stopped"
    assert [epoch["epoch"] for epoch in poor.epochs] == [1, 2, 3]


def test_a_collapsed_trial_is_recorded_as_failed_and_leaves_no_checkpoint(search):
    collapsed = read_trials(search)[2]
    assert collapsed.state == "failed"
    assert "one class" in collapsed.error
    assert not (trial_folder(search, collapsed.name) / CHECKPOINT).exists()


def test_a_trial_that_cannot_run_is_recorded_with_its_reason_and_ends_nothing(search):
    refused = read_trials(search)[3]
    assert refused.state == "failed"
    assert refused.error.startswith("model.unfrozen_layers is 7, the encoder has 1 layers")


def test_nothing_but_results_is_left_in_the_folder(search):
    left = {path.name for path in search.glob("trials/*/*")}
    assert left == {CHECKPOINT, DEV_PREDICTIONS, EPOCHS, "trial.json", "trial.log"}
    assert not (search / "ray").exists()


def test_the_table_names_the_best_trial_and_the_next_command(search, capsys):
    tune.print_result(search, tune.Console(width=200))
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if "trial-0" in line]
    assert [name for line in lines for name in line.split() if name.startswith("trial-")][:2] == [
        "trial-01",
        "trial-02",
    ]
    assert f"python -m training.registry register {search.name}" in shown


def test_a_finished_search_is_returned_as_it_is(search, settings):
    before = (search / "search.json").read_bytes()
    assert tune.run_search(None, settings, resume=search) == search
    assert (search / "search.json").read_bytes() == before


def test_a_search_without_any_success_says_why_and_ends_with_status_2(
    material, settings, ray, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("NUNCHI_VAR", str(settings.var))
    space = {"model.unfrozen_layers": {"choices": [8]}}
    file = write_config(tmp_path, config_of(material, tune={"trials": 1, "space": space}))
    assert tune.main(["--config", str(file), "--name", "hopeless"]) == 2
    error = capsys.readouterr().err
    assert "model.unfrozen_layers is 8" in error.splitlines()[-1]
    assert read_search(settings.searches / "hopeless").finished


def test_other_data_is_no_ground_to_go_on(material, settings, tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    write_reviews(folder)
    config = config_of(material, dataset={"folder": str(folder)})
    search = started_search("moved", config, settings, [])
    with (folder / TRAIN).open("a", encoding="utf-8") as file:
        file.write("999\t새로운 명작\t1\n")
    with pytest.raises(DatasetError, match=r"search moved was started on generated with the fingerprint"):
        tune.run_search(None, settings, resume=search)


def test_a_name_that_is_taken_is_refused_with_the_way_to_resume(material, settings):
    started_search("taken", config_of(material), settings, [])
    with pytest.raises(SearchError, match=r"there is a search taken already; .* --resume taken"):
        tune.run_search(config_of(material), settings, name="taken")


def test_two_workers_share_a_trial_and_leave_one_checkpoint(material, settings, ray):
    space = {"train.seed": {"choices": [1]}}
    config = config_of(material, tune={"trials": 1, "workers_per_trial": 2, "cpus_per_worker": 0.5, "space": space})
    search = tune.run_search(config, settings, name="two-workers")
    (trial,) = read_trials(search)
    assert trial.state == "finished"
    assert [epoch["epoch"] for epoch in trial.epochs] == [1, 2, 3, 4]
    assert trial.best_f1 > 0.9
    assert len(list(search.glob("trials/*/checkpoint/model.safetensors"))) == 1
    assert not (search / "ray").exists()


def write_config(folder: Path, config: TrainingConfig) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return file


def start_command(*options: str, var: Path, output: Path, **environment: str) -> subprocess.Popen:
    variables = {**os.environ, "NUNCHI_VAR": str(var), "RAY_worker_niceness": "0", **environment}
    with output.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "training.tune", *options], cwd=ROOT, env=variables, stdout=file, stderr=file
        )


def wait_until(condition, process: subprocess.Popen, output: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, output.read_text(encoding="utf-8")
        time.sleep(0.02)


def epochs_of(search: Path, trial: str) -> list[str]:
    file = trial_folder(search, trial) / EPOCHS
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def test_a_search_killed_in_the_middle_goes_on_where_it_was(material, settings, ray, tmp_path):
    space = {"train.learning_rate": {"low": 5e-3, "high": 1e-2}}
    config = config_of(
        material,
        train={"epochs": 12},
        tune={"trials": 3, "concurrent": 1, "grace_epochs": 12, "space": space},
    )
    search, output = settings.searches / "killed", tmp_path / "output"
    process = start_command("--config", str(write_config(tmp_path, config)), "--name", "killed", var=settings.var,
                            output=output)  # fmt: skip
    wait_until(lambda: len(epochs_of(search, "trial-02")) >= 2, process, output)
    # Ray's two agents notice the end last, a minute later; all that learns or schedules has to be gone.
    children = [child for child in psutil.Process(process.pid).children(recursive=True) if "Agent" not in child.name()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=60)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    before = read_trials(search)
    assert [trial.state for trial in before] == ["finished", "running"]
    first, second = epochs_of(search, "trial-01"), epochs_of(search, "trial-02")
    assert tune.run_search(None, settings, resume=search) == search
    after = read_trials(search)
    assert [trial.name for trial in after] == ["trial-01", "trial-02", "trial-03"]
    assert [trial.params for trial in after[:2]] == [trial.params for trial in before]
    assert after[2].params not in [trial.params for trial in before]
    assert epochs_of(search, "trial-01") == first
    # All but perhaps the last of its epochs are the very lines that were there, and none stands twice.
    assert epochs_of(search, "trial-02")[: len(second) - 1] == second[:-1]
    for trial in after:
        assert [json.loads(line)["epoch"] for line in epochs_of(search, trial.name)] == list(range(1, 13))
        assert trial.state == "finished"


def test_a_search_outlives_a_node_of_its_cluster(material, settings, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    space = {"train.learning_rate": {"low": 5e-3, "high": 1e-2}}
    config = config_of(material, train={"epochs": 12}, tune={"trials": 2, "grace_epochs": 12, "space": space})
    search, output = settings.searches / "outlived", tmp_path / "output"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=1)
        process = start_command("--config", str(write_config(tmp_path, config)), "--name", "outlived",
                                var=settings.var, output=output, RAY_ADDRESS=cluster.address)  # fmt: skip
        wait_until(
            lambda: min(len(epochs_of(search, trial)) for trial in ("trial-01", "trial-02")) >= 2, process, output
        )
        cluster.remove_node(lost, allow_graceful=False)
        assert process.wait(240) == 0, output.read_text(encoding="utf-8")
    finally:
        cluster.shutdown()
    assert "broke off" in output.read_text(encoding="utf-8")
    for trial in read_trials(search):
        assert trial.state == "finished"
        assert [json.loads(line)["epoch"] for line in epochs_of(search, trial.name)] == list(range(1, 13))
