"""A search on disk: which one a command means, and what a kill may leave in its files."""

from dataclasses import replace

import pytest

from training.config import DatasetConfig, TrainingConfig
from training.data import open_dataset
from training.errors import SearchError
from training.search import (
    EPOCHS,
    Trial,
    append_epoch,
    begin_search,
    latest_search,
    read_search,
    read_trial,
    trial_folder,
    write_search,
    write_trial,
)
from training.settings import Settings
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
