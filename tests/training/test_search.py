"""A search on disk: which one a command means, and what a kill may leave in its files."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from training.config import DatasetConfig, TrainingConfig
from training.data import open_dataset
from training.errors import SearchError
from training.search import (
    CHECKPOINT,
    EPOCHS,
    Trial,
    append_epoch,
    begin_search,
    latest_search,
    read_epochs,
    read_search,
    read_trial,
    said,
    trial_folder,
    write_json,
    write_search,
    write_trial,
)
from training.settings import ROOT, Settings
from training.tune import run_search

FIGURES = {
    "train_loss": 0.5,
    "dev_loss": 0.5,
    "dev_f1": 0.8,
    "dev_accuracy": 0.8,
    "learning_rate": 1e-4,
    "seconds": 1.0,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(DatasetConfig(kind="sample"), cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def begin(tmp_path, dataset):
    """`begin(name, finished=…, best=…)` makes a search, each later than the one before."""
    made = []

    def make(name: str, *, single: bool = False, **facts):
        folder = begin_search(tmp_path, name, TrainingConfig(), dataset, single=single)
        made.append(folder)
        created = f"2026-11-22T12:00:{len(made):02}.000+00:00"
        write_search(folder, replace(read_search(folder), created=created, **facts))
        return folder

    return make


def test_a_name_stands_for_one_search(begin):
    begin("first")
    with pytest.raises(SearchError, match="there is a search first already; take another --name, or go on with it"):
        begin("first")


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "/tmp/a", ".hidden", "", "-x", "a b", "가" * 101, "x\n"])
def test_a_name_cannot_leave_the_folder_of_the_searches(begin, tmp_path, name):
    with pytest.raises(SearchError, match="is no name for a search; take 1 to 100 letters"):
        begin(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["20261122-2101", "감정_2", "lr+5e-5.v2", "7"])
def test_plain_names_are_good(begin, name):
    assert begin(name).name == name


def test_to_register_is_the_latest_that_found_a_model(begin, tmp_path):
    with pytest.raises(SearchError, match="no search that has ended with a model; run make train first"):
        latest_search(tmp_path)
    begin("old", finished="then", best="trial-01")
    good = begin("good", finished="then", best="trial-02")
    begin("failed", finished="then")
    begin("running")
    assert latest_search(tmp_path) == good


def test_to_resume_is_the_latest_that_was_cut_off_and_never_a_single_run(begin, tmp_path):
    begin("finished", finished="then", best="trial-01")
    with pytest.raises(SearchError, match="no search that was cut off; start one with make train"):
        latest_search(tmp_path, resumable=True)
    cut_off = begin("cut-off")
    begin("later", finished="then", best="trial-01")
    single = begin("single", single=True)
    assert latest_search(tmp_path, resumable=True) == cut_off
    with pytest.raises(SearchError, match=r"single is one run of training\.trainer, which cannot go on"):
        run_search(None, Settings(var=tmp_path), resume=single)


def test_half_a_line_in_the_middle_of_the_epochs_costs_that_line_alone(tmp_path):
    folder = trial_folder(tmp_path, "trial-01")
    write_trial(folder, Trial("trial-01", {}, started="now"))
    append_epoch(folder, {"epoch": 1, **FIGURES})
    with (folder / EPOCHS).open("a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "train_l\n')
    append_epoch(folder, {"epoch": 2, **FIGURES, "dev_f1": 0.9})
    trial = read_trial(folder)
    assert [epoch["epoch"] for epoch in trial.epochs] == [1, 2]
    assert trial.best_f1 == 0.9


def test_the_later_figures_of_a_repeated_epoch_count_and_none_are_there_before_the_first(tmp_path):
    assert read_epochs(tmp_path) == []
    for epoch, f1 in ((2, 0.5), (1, 0.6), (2, 0.7)):
        append_epoch(tmp_path, {"epoch": epoch, **FIGURES, "dev_f1": f1})
    assert [(epoch["epoch"], epoch["dev_f1"]) for epoch in read_epochs(tmp_path)] == [(1, 0.6), (2, 0.7)]


def test_a_file_is_replaced_whole_once_it_is_on_disk_and_anybody_may_read_it(tmp_path, monkeypatch):
    file, steps, sync = tmp_path / "new" / "facts.json", [], os.fsync
    before = os.umask(0o022)
    try:
        write_json(file, {"이름": "하나"})
    finally:
        os.umask(before)
    written = '{\n  "이름": "하나"\n}\n'
    assert file.read_text(encoding="utf-8") == written
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    with pytest.raises(TypeError):
        write_json(file, {"이름": object()})
    assert os.listdir(file.parent) == ["facts.json"]

    def die(part: Path, target: Path) -> None:
        steps.append((part, target))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", lambda stream: (steps.append(os.fstat(stream).st_size), sync(stream)))
    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_json(file, {"이름": "둘"})
    part = file.with_name(f".facts.json.{os.getpid()}.part")
    assert steps == [len('{\n  "이름": "둘"\n}\n'.encode()), (part, file)]
    assert file.read_text(encoding="utf-8") == written


def test_the_values_of_a_trial_are_said_as_a_person_reads_them():
    params = {"train.learning_rate": 0.000212345, "model.max_length": 32, "train.schedule": "cosine"}
    assert said(params) == "learning_rate 0.000212, max_length 32, schedule cosine"


def test_the_driver_of_a_search_waits_for_no_torch():
    """The trials' processes import it; the driver would be eight seconds late to start them."""
    code = "import sys, training.schedule; print('torch' in sys.modules, 'transformers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False False"


def test_a_finished_search_is_shown_again_without_ray(tmp_path, dataset):
    config = TrainingConfig(dataset=dataset.config)
    folder = begin_search(tmp_path / "searches", "finished", config, dataset)
    trial = trial_folder(folder, "trial-01")
    write_trial(trial, Trial("trial-01", {"train.learning_rate": 0.0002}, "finished", "now", "then"))
    append_epoch(trial, {"epoch": 1, **FIGURES})
    write_json(trial / CHECKPOINT / "config.json", {})
    write_search(folder, replace(read_search(folder), finished="then", best="trial-01"))
    code = "import sys; from training import tune; print(tune.main(['--resume', 'finished']), 'ray' in sys.modules)"
    environment = {**os.environ, "NUNCHI_VAR": str(tmp_path), "COLUMNS": "200"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "0 False", ran.stderr
    assert "learning_rate 0.0002" in ran.stdout
