"""Searches run for real: Ray, a tiny encoder, generated reviews; killed, resumed, and with a node lost on the way."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from transformers import ElectraConfig, ElectraForSequenceClassification

from training import tune
from training.cluster import NICENESS, OWNER, PREFIX, ray_cluster, temporary_folder
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
    read_trial,
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


def test_a_search_without_any_success_says_why_and_ends_with_status_2(material, settings, ray, capsys, monkeypatch):
    """Cut off after its only trial has failed, so that none has to be run."""
    monkeypatch.setenv("NUNCHI_VAR", str(settings.var))
    space = {"model.unfrozen_layers": {"choices": [8]}}
    folder = started_search("hopeless", config_of(material, tune={"trials": 1, "space": space}), settings, [])
    failed = Trial("trial-01", {"model.unfrozen_layers": 8}, "failed", now(), now(), "model.unfrozen_layers is 8, …")
    write_trial(trial_folder(folder, failed.name), failed)
    assert tune.main(["--resume", "hopeless"]) == 2
    error = capsys.readouterr().err
    assert "model.unfrozen_layers is 8" in error.splitlines()[-1]
    assert read_search(folder).finished and read_search(folder).best is None
    assert [trial.name for trial in read_trials(folder)] == ["trial-01"]


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


def test_a_search_that_another_process_runs_is_refused(material, settings):
    search = started_search("busy", config_of(material), settings, [])
    with (search / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SearchError, match=r"search busy is running in another process; wait for it, or stop it"):
            tune.run_search(None, settings, resume=search)


@pytest.fixture
def task(material, settings, ray, tmp_path):
    """A trial as a node gets it; imported here because Ray reads its environment while it is imported."""
    from training.trial import Task

    config = config_of(material)
    write_trial(tmp_path, Trial("trial-01", {}, started=now()))
    data = open_dataset(config.dataset, cache=settings.var)
    return asdict(Task(str(tmp_path), config.model_dump_json(), str(settings.var), data.fingerprint, 0.0))


def test_a_node_that_reads_other_data_is_refused(task):
    from training.trial import learn

    with pytest.raises(DatasetError):
        learn({**task, "fingerprint": "0123456789ab"})
    trial = read_trial(Path(task["folder"]))
    assert trial.state == "failed"
    assert re.fullmatch(
        rf"on \S+ the dataset has the fingerprint {task['fingerprint']}, where the search was started 0123456789ab; "
        "the nodes of the cluster have to read the same files, from a shared folder",
        trial.error,
    )


def of_the_gpu(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def of_the_machine(*_, **__):
    torch.empty(1 << 60)


@pytest.mark.parametrize("exhausted", [of_the_gpu, of_the_machine])
def test_a_trial_that_runs_out_of_memory_is_recorded_with_the_remedy(task, monkeypatch, exhausted):
    from training.trial import learn

    monkeypatch.setattr(torch.optim.AdamW, "step", exhausted)
    with pytest.raises(RuntimeError):
        learn(task)
    trial = read_trial(Path(task["folder"]))
    assert trial.state == "failed"
    assert trial.error.startswith("out of memory: ")
    assert trial.error.endswith("; take a smaller train.batch_size or model.max_length")


def test_what_a_killed_ray_left_is_removed_and_a_living_one_stays(monkeypatch):
    """Two owners hold their locks: this test, and a process that is killed."""
    home = Path(tempfile.mkdtemp(dir="/tmp"))  # in pytest's own folders the sockets' names would be too long
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    alive, left = home / f"{PREFIX}alive", home / f"{PREFIX}left"
    for folder in (alive, left):
        folder.mkdir()
        (folder / OWNER).touch()
    hold = "import fcntl, sys; lock = open(sys.argv[1]); fcntl.flock(lock, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(left / OWNER)]
    with (
        (alive / OWNER).open() as lock,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        process.stdout.readline()
        with temporary_folder() as own:
            assert {folder.name for folder in home.iterdir()} == {alive.name, left.name, own.name}
        process.kill()
        process.wait()
        with temporary_folder() as own, temporary_folder() as another:
            assert {folder.name for folder in home.iterdir()} == {alive.name, own.name, another.name}
    assert [folder.name for folder in home.iterdir()] == [alive.name]
    shutil.rmtree(home)


def test_two_workers_share_a_trial_and_leave_one_checkpoint(material, settings, ray):
    space = {"train.seed": {"choices": [1]}}
    config = config_of(
        material,
        train={"epochs": 3},
        tune={"trials": 1, "workers_per_trial": 2, "cpus_per_worker": 0.5, "space": space},
    )
    search = tune.run_search(config, settings, name="two-workers")
    (trial,) = read_trials(search)
    assert trial.state == "finished"
    assert [epoch["epoch"] for epoch in trial.epochs] == [1, 2, 3]
    assert trial.best_f1 > 0.9
    assert len(list(search.glob("trials/*/checkpoint/model.safetensors"))) == 1
    assert not (search / "ray").exists()


def write_config(folder: Path, config: TrainingConfig) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return file


def start_command(*options: str, var: Path, output: Path, **environment: str) -> subprocess.Popen:
    """In a process group of its own, as a terminal starts it."""
    variables = {**os.environ, "NUNCHI_VAR": str(var), **environment}
    command = [sys.executable, "-m", "training.tune", *options]
    with output.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=file, stderr=file, start_new_session=True)


def wait_until(condition, process: subprocess.Popen, output: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, output.read_text(encoding="utf-8")
        time.sleep(0.02)


def epochs_of(search: Path, trial: str) -> list[str]:
    file = trial_folder(search, trial) / EPOCHS
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_ctrl_c_ends_a_search_and_all_of_its_ray_and_says_how_to_go_on(material, settings, tmp_path):
    space = {"train.learning_rate": {"low": 5e-3, "high": 1e-2}}
    config = config_of(
        material, train={"epochs": 500}, tune={"trials": 1, "concurrent": 1, "grace_epochs": 500, "space": space}
    )
    search, output = settings.searches / "interrupted", tmp_path / "output"
    process = start_command("--config", str(write_config(tmp_path, config)), "--name", "interrupted",
                            var=settings.var, output=output, RAY_ADDRESS="")  # fmt: skip
    wait_until(lambda: epochs_of(search, "trial-01"), process, output)
    children = psutil.Process(process.pid).children(recursive=True)
    assert os.nice(0) + NICENESS in {child.nice() for child in running(children)}
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(240) == 130, output.read_text(encoding="utf-8")
    last = output.read_text(encoding="utf-8").splitlines()[-1]
    assert last == "interrupted; go on with: python -m training.tune --resume"
    psutil.wait_procs(children, timeout=30)
    assert not running(children)
    assert read_trials(search)[0].state == "running" and read_search(search).finished is None


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
    assert not running(children)

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


@pytest.fixture
def cluster(ray):
    """Two nodes with one core each. It asks for the secret that Ray has read in this process, as it does only once."""
    from ray.cluster_utils import Cluster

    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_a_search_outlives_a_node_of_its_cluster(material, settings, cluster, tmp_path):
    space = {"train.learning_rate": {"low": 5e-3, "high": 1e-2}}
    config = config_of(material, train={"epochs": 40}, tune={"trials": 2, "grace_epochs": 40, "space": space})
    search, output = settings.searches / "outlived", tmp_path / "output"
    lost = cluster.add_node(num_cpus=1)
    process = start_command("--config", str(write_config(tmp_path, config)), "--name", "outlived",
                            var=settings.var, output=output, RAY_ADDRESS=cluster.address)  # fmt: skip
    wait_until(lambda: all(epochs_of(search, trial) for trial in ("trial-01", "trial-02")), process, output)
    cluster.remove_node(lost, allow_graceful=False)
    assert process.wait(240) == 0, output.read_text(encoding="utf-8")
    assert "broke off" in output.read_text(encoding="utf-8")
    for trial in read_trials(search):
        assert trial.state == "finished"
        assert [json.loads(line)["epoch"] for line in epochs_of(search, trial.name)] == list(range(1, 41))
