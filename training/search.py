"""A search on disk: what every trial did, written by the trials, read by tracking, registry and the trainer.

    <search>/
      search.json                   Search: config, dataset, commit, the best trial once it is known
      trials/<trial>/
        trial.json                  Trial: what it varies, its state
        work/                       while it runs: what a resumed trial goes on from
        epochs.jsonl                one line per epoch: the figures of that epoch
        checkpoint/                 Hugging Face folder of the best epoch by dev F1, with training.json
        dev_predictions.parquet     of that checkpoint: text, label, probabilities

The folder is the truth; MLflow is a projection of it (`training.tracking`), made during the search or later.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from training.config import TrainingConfig, with_absolute_paths
from training.data import Dataset
from training.errors import SearchError
from training.record import git_commit

SEARCH, TRIAL, EPOCHS = "search.json", "trial.json", "epochs.jsonl"
CHECKPOINT, DEV_PREDICTIONS, WORK = "checkpoint", "dev_predictions.parquet", "work"

NAME = re.compile(r"[A-Za-z0-9가-힣][\w.+-]{0,99}")

State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Search:
    """``config`` is the whole TrainingConfig as JSON values; ``best`` the trial with the highest dev F1.

    ``single``: it is one run of `training.trainer`, which tries nothing and cannot be resumed.
    """

    name: str
    config: dict
    dataset: str
    dataset_fingerprint: str
    git_commit: str | None
    created: str
    finished: str | None = None
    best: str | None = None
    single: bool = False


@dataclass(frozen=True)
class Trial:
    """``params`` are the values it varies, by path, such as ``{"train.learning_rate": 3e-5}``.

    ``state``: finished ran to its end; stopped was ended early by ASHA or early stopping; failed names its ``error``.
    """

    name: str
    params: dict
    state: State = "running"
    started: str = ""
    ended: str | None = None
    error: str | None = None
    epochs: list[dict] = field(default_factory=list, compare=False)

    @property
    def best_f1(self) -> float | None:
        """Highest dev F1 of its epochs; None before the first."""
        return max((epoch["dev_f1"] for epoch in self.epochs), default=None)


def begin_search(searches: Path, name: str, config: TrainingConfig, dataset: Dataset, *, single: bool = False) -> Path:
    """Make the folder of a new search under ``searches`` and return it.

    Raises:
        SearchError: there is one of that name, or it is no name for a folder.
    """
    folder = folder_of(searches, name)
    if (folder / SEARCH).exists():
        raise SearchError(f"there is a search {name} already; take another --name, or go on with it: --resume {name}")
    search = Search(
        name=name,
        config=with_absolute_paths(config).model_dump(mode="json"),
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        git_commit=git_commit(),
        created=now(),
        single=single,
    )
    write_search(folder, search)
    return folder


def folder_of(searches: Path, name: str) -> Path:
    """Raises:
    SearchError: the name would lead out of ``searches``, or is no name for a folder.
    """
    if not NAME.fullmatch(name):
        raise SearchError(
            f"{name!r} is no name for a search; take 1 to 100 letters, digits or . _ + -, the first a letter or a digit"
        )
    return searches / name


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_search(folder: Path, search: Search) -> None:
    write_json(folder / SEARCH, asdict(search))


def read_search(folder: Path) -> Search:
    return Search(**_read(folder / SEARCH))


def search_config(search: Search) -> TrainingConfig:
    return TrainingConfig.model_validate(search.config)


def trial_folder(search_folder: Path, name: str) -> Path:
    return search_folder / "trials" / name


def write_trial(folder: Path, trial: Trial) -> None:
    """``folder`` is the trial's own; its epochs are in their own file and not written here."""
    facts = asdict(replace(trial, epochs=[]))
    facts.pop("epochs")
    write_json(folder / TRIAL, facts)


def read_trial(folder: Path) -> Trial:
    return Trial(**_read(folder / TRIAL), epochs=read_epochs(folder))


def read_trials(search_folder: Path) -> list[Trial]:
    """In the order in which they started."""
    folders = sorted((search_folder / "trials").glob(f"*/{TRIAL}"))
    return sorted((read_trial(file.parent) for file in folders), key=lambda trial: (trial.started, trial.name))


def append_epoch(folder: Path, figures: dict) -> None:
    """``figures``: epoch (int, from 1), train_loss, dev_loss, dev_f1, dev_accuracy, learning_rate, seconds."""
    with (folder / EPOCHS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_epochs(folder: Path) -> list[dict]:
    """What `append_epoch` has left there, in the order of the epochs; nothing while the first has not ended."""
    if not (folder / EPOCHS).is_file():
        return []
    by_number = {}
    for line in (folder / EPOCHS).read_text(encoding="utf-8").splitlines():
        try:
            figures = json.loads(line)
        except json.JSONDecodeError:
            continue  # a killed trial may have left half a line
        by_number[figures["epoch"]] = figures  # a resumed one repeats the epoch it was killed in: the later line counts
    return [by_number[number] for number in sorted(by_number)]


def best_trial(search_folder: Path) -> Trial:
    """Raises:
    SearchError: no trial has a checkpoint.
    """
    trials = [
        trial
        for trial in read_trials(search_folder)
        if trial.state != "failed" and trial.best_f1 is not None
        and (trial_folder(search_folder, trial.name) / CHECKPOINT / "config.json").is_file()
    ]  # fmt: skip
    if not trials:
        errors = {trial.error for trial in read_trials(search_folder) if trial.error}
        why = f"; they failed with: {'; '.join(sorted(errors))}" if errors else ""
        raise SearchError(f"no trial of {search_folder.name} has left a checkpoint{why}")
    return max(trials, key=lambda trial: trial.best_f1)


def latest_search(searches: Path, *, resumable: bool = False) -> Path:
    """The latest that has found its best trial; or, if it is to be resumed, that was cut off.

    Raises:
        SearchError: there is none.
    """
    found = [(search.created, search.name) for search in map(read_search, _folders(searches))
             if (search.finished is None and not search.single if resumable else search.best)]  # fmt: skip
    if not found and resumable:
        raise SearchError(f"{searches} holds no search that was cut off; start one with make train")
    if not found:
        raise SearchError(f"{searches} holds no search that has ended with a model; run make train first")
    return searches / max(found)[1]


def _folders(searches: Path) -> list[Path]:
    return [file.parent for file in searches.glob(f"*/{SEARCH}")]


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise SearchError(
            f"{file.parent} holds no {file.name}; name the folder of a search under var/searches"
        ) from exc
    except json.JSONDecodeError as exc:
        raise SearchError(f"{file} is damaged ({exc}); its MLflow runs, if any, are not") from exc


def write_json(file: Path, value: dict) -> None:
    """Whole or not at all, also when the machine fails; readers see the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


def said(params: dict) -> str:
    """As a person reads them: learning_rate 0.00021, weight_decay 0.05."""
    return ", ".join(f"{path.split('.')[-1]} {shortly(value)}" for path, value in params.items())


def shortly(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """As a person says it: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
