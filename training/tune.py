"""The search for the best hyperparameters: Optuna proposes, Ray Tune spreads the trials, ASHA ends the poor ones early.

    python -m training.tune [--config FILE] [--name NAME] [--section.key value …]
    python -m training.tune --resume [SEARCH]         goes on after a crash or Ctrl-C; without a name, the latest

All that counts is in the search's folder (`training.search`), so ``kill -9`` costs at most the running epochs. Trials
run on the CPU cores or GPUs of this machine, or of the Ray cluster that ``RAY_ADDRESS`` names; the nodes of a cluster
share the file system that holds the search, the dataset and this repository. What ran on a node that dies goes on
elsewhere from its last epoch.
"""

import argparse
import fcntl
import logging
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from training import tracking
from training.cluster import ray_cluster, trials_that_fit
from training.config import TrainingConfig, add_config_arguments, load_config, with_absolute_paths
from training.data import Dataset, open_dataset
from training.errors import ConfigRefused, DatasetError, SearchError, TrainingError
from training.search import (
    Search,
    begin_search,
    best_trial,
    folder_of,
    latest_search,
    now,
    read_search,
    read_trials,
    said,
    search_config,
    write_search,
)
from training.settings import Settings, read_settings

log = logging.getLogger("training.tune")  # also where this module is __main__

PROJECTION_SECONDS = 2
INTERRUPTED = 130


def run_search(
    config: TrainingConfig | None, settings: Settings, *, name: str | None = None, resume: Path | None = None
) -> Path:
    """Search, and return the search's folder: ``settings.searches`` / name.

    Args:
        config: of a new search; a resumed one has its own.
        name: of a new search; by default the time.
        resume: the folder of a search to go on with. One that has finished is returned as it is.

    Raises:
        SearchError: the name is taken, another process runs it, nothing fits the machine, or no trial succeeded.
        TrainingError: the config or the dataset is refused.
    """
    if resume is None:
        config = with_absolute_paths(config)
        dataset = open_dataset(config.dataset, cache=settings.var / "data")
        folder = _new_search(config, dataset, settings, name)
    else:
        folder = resume
        if read_search(folder).single:
            raise SearchError(f"{folder.name} is one run of training.trainer, which cannot go on; start it again")
        config = search_config(read_search(folder))
        dataset = open_dataset(config.dataset, cache=settings.var / "data")
    with _alone(folder):
        search = read_search(folder)
        _refuse_other_data(search, dataset)
        if search.finished is None:
            with _projecting(folder, settings):
                _run(folder, config, dataset, settings)
                _finish(folder)
    best_trial(folder)
    return folder


def _run(folder: Path, config: TrainingConfig, dataset: Dataset, settings: Settings) -> None:
    log.info("search %s: %s trials of %s on %s", folder.name, config.tune.trials, config.model.encoder, dataset.name)
    log.info("starting Ray, and a process per trial: the first epoch takes a while to come")
    with ray_cluster():
        # Imported here because Ray reads its environment, which the line above sets, while it is imported.
        from training.schedule import run_trials

        concurrent, gpus_per_worker = trials_that_fit(config.tune)
        log.info("%s at one time, each on %s", concurrent, _share(config, gpus_per_worker))
        run_trials(
            folder,
            config,
            fingerprint=dataset.fingerprint,
            cache=settings.var / "data",
            concurrent=concurrent,
            gpus_per_worker=gpus_per_worker,
        )


def _share(config: TrainingConfig, gpus_per_worker: float) -> str:
    workers = config.tune.workers_per_trial
    each = f"{config.tune.cpus_per_worker:g} CPU" + (f" and {gpus_per_worker:g} GPU" if gpus_per_worker else "")
    return each if workers == 1 else f"{workers} workers with {each}"


def _finish(folder: Path) -> None:
    cut_off = [trial.name for trial in read_trials(folder) if trial.state == "running"]
    if cut_off:
        raise SearchError(
            f"the search ended with {', '.join(cut_off)} cut off; go on with "
            f"python -m training.tune --resume {folder.name}"
        )
    shutil.rmtree(folder / "ray", ignore_errors=True)
    for leftover in folder.glob("trials/*/ray"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        best = best_trial(folder).name
    except SearchError:
        best = None
    write_search(folder, replace(read_search(folder), finished=now(), best=best))


def _new_search(config: TrainingConfig, dataset: Dataset, settings: Settings, name: str | None) -> Path:
    name = name or datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    if Path(name).name != name or name.startswith("."):
        raise ConfigRefused(f"--name is {name!r}; it becomes a folder's name, so leave out / and a dot at the front")
    return begin_search(settings.searches, name, config, dataset)


def _refuse_other_data(search: Search, dataset: Dataset) -> None:
    if dataset.fingerprint != search.dataset_fingerprint:
        raise DatasetError(
            f"search {search.name} was started on {search.dataset} with the fingerprint {search.dataset_fingerprint}; "
            f"the files now have {dataset.fingerprint}. Put the old ones back, or start a new search"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process per search; the lock goes with the process that holds it."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise SearchError(f"search {folder.name} is running in another process; wait for it, or stop it") from exc
        yield


@contextmanager
def _projecting(folder: Path, settings: Settings) -> Iterator[None]:
    """Keep MLflow up to date beside the search, and bring it there once more at the end of the block."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(PROJECTION_SECONDS):
            tracking.project(folder, settings)

    follower = threading.Thread(target=follow, name="tracking", daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
        tracking.project(folder, settings)


def print_result(folder: Path, console: Console) -> None:
    """The trials by dev F1, the best one, and what to do next."""
    trials = sorted(read_trials(folder), key=lambda trial: trial.best_f1 or 0, reverse=True)
    table = Table(title=f"search {folder.name}", title_justify="left")
    for column in ("trial", "dev F1", "epochs", "state", "values"):
        table.add_column(column, justify="right" if column in ("dev F1", "epochs") else "left")
    for trial in trials:
        f1 = "" if trial.best_f1 is None else f"{trial.best_f1:.4f}"
        state = f"{trial.state}: {trial.error}" if trial.error else trial.state
        table.add_row(trial.name, f1, str(len(trial.epochs)), state, said(trial.params))
    console.print(table)
    best = best_trial(folder)
    console.print(f"best: {best.name} with dev F1 {best.best_f1:.4f}, in {folder}", soft_wrap=True)
    console.print(f"next: python -m training.registry register {folder.name}", soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        settings = read_settings()
        options, overrides = _parser().parse_known_args(argv)
        if options.resume is None:
            config, resume = load_config(options.config, overrides), None
        else:
            config, resume = None, _search_to_resume(options, overrides, settings)
        folder = run_search(config, settings, name=options.name, resume=resume)
        print_result(folder, Console())
    except TrainingError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; go on with: python -m training.tune --resume", file=sys.stderr)
        return INTERRUPTED
    return 0


def _search_to_resume(options: argparse.Namespace, overrides: list[str], settings: Settings) -> Path:
    if overrides or options.config or options.name:
        raise ConfigRefused("a resumed search keeps its name and its config; leave out all but --resume [SEARCH]")
    if options.resume:
        return folder_of(settings.searches, options.resume)
    return latest_search(settings.searches, resumable=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.tune", description="Search for the best hyperparameters.")
    parser.add_argument("--name", help="of the new search, and of its folder (default: the time)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="SEARCH",
        help="go on with a search that was cut off, under its own config (default: the latest)",
    )
    add_config_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
