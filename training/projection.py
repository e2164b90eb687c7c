"""A search folder as MLflow runs: one for the search, below it one per trial. Called by training.tracking.

Runs are found again by their tags, and only what they lack is sent, so that bringing a folder twice changes nothing.
``mlflow.json`` in the folder notes what is known to be in MLflow; it saves asking, and can be deleted at any time.

An epoch is sent once: when a resumed trial repeats one with other figures, MLflow keeps the first.
"""

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.utils import mlflow_tags

from training import figures
from training.search import (
    DEV_PREDICTIONS,
    EPOCHS,
    SEARCH,
    TRIAL,
    Search,
    Trial,
    read_search,
    read_trials,
    shortly,
    trial_folder,
    write_json,
)

SEARCH_TAG, CREATED_TAG, TRIAL_TAG, KIND_TAG = "nunchi.search", "nunchi.created", "nunchi.trial", "nunchi.kind"
JOURNAL, ENVIRONMENT = "mlflow.json", "requirements.txt"
BEST_F1 = "best_dev_f1"
NOTE_LENGTH = 4900  # characters; with a last line less than the 5000 that any release of MLflow takes in a tag
RUN_STATUS = {"running": "RUNNING", "finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class Projection:
    """One search folder on its way into MLflow. What is noted as sent is believed only if ``trusting``."""

    def __init__(self, folder: Path, tracking_uri: str, *, trusting: bool):
        self.folder = folder
        self.stamps = _stamps(folder)  # before the files are read: what changes in between is then news
        self.search, self.trials = read_search(folder), read_trials(folder)
        self.store = _short(tracking_uri)  # not in clear: it may hold a password
        noted = _read_journal(folder / JOURNAL) if trusting else {}
        same = noted.get("store") == self.store and noted.get("created") == self.search.created
        self.runs: dict[str, dict] = noted["runs"] if same else {}  # by trial; the search's own under ""

    def has_news(self) -> bool:
        """Whether the folder holds something that is not noted as sent."""
        return not all(self._is_sent(name) for name in ["", *(trial.name for trial in self.trials)])

    def run_id(self, trial: str = "") -> str:
        """Of a trial, or of the search itself; known once it was brought."""
        return self.runs[trial]["run_id"]

    def bring(self, client: MlflowClient, experiment_id: str) -> None:
        """Everything but the model; stopped at any point, the next call goes on from there."""
        self.client, self.experiment_id = client, experiment_id
        parent = self._find_or_create("", self.search.name, self.search.created)
        if self.runs.get("", {}).get("run_id") != parent:
            self.runs = {}  # somebody deleted the run, or the whole database
        for trial in self.trials:
            if not self._is_sent(trial.name):
                self._bring_trial(trial, parent)
        if not self._is_sent(""):
            self._bring_search(parent)

    def _bring_search(self, run_id: str) -> None:
        best = next((trial for trial in self.trials if trial.name == self.search.best), None)
        tags = self._tags() | ({"nunchi.best_trial": best.name} if best else {})
        tags[mlflow_tags.MLFLOW_RUN_NOTE] = description(self.trials)
        ended = [trial for trial in self.trials if trial.epochs and trial.state != "running"]
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copy(self.folder / ENVIRONMENT, scratch)
            _write_config(Path(scratch), self.search.config)
            if ended:
                figures.learning_curves(ended).savefig(Path(scratch) / "learning_curves.png")
            self.client.log_artifacts(run_id, scratch)
        self._send(run_id, self.search.config, tags, _best_metric(best) if best else [])
        status = "RUNNING" if not self.search.finished else "FINISHED" if best else "FAILED"
        self._set_status(run_id, status, self.search.finished)
        self._note("", run_id)

    def _bring_trial(self, trial: Trial, parent: str) -> None:
        metrics, config = _epoch_metrics(trial), _with_params(self.search.config, trial.params)
        run_id = self._find_or_create(trial.name, trial.name, trial.started)
        tags = self._tags() | {mlflow_tags.MLFLOW_PARENT_RUN_ID: parent, "nunchi.state": trial.state}
        if trial.error:
            tags["nunchi.error"] = trial.error[:4000]
        if trial.state != "running":
            metrics += _best_metric(trial)
            with tempfile.TemporaryDirectory() as scratch:
                _write_config(Path(scratch), config)
                _write_pictures(Path(scratch), trial, trial_folder(self.folder, trial.name), config)
                self.client.log_artifacts(run_id, scratch)
        self._send(run_id, config, tags, metrics)
        self._set_status(run_id, RUN_STATUS[trial.state], trial.ended)
        self._note(trial.name, run_id)

    def _find_or_create(self, trial: str, name: str, started: str) -> str:
        run = find_run(self.client, self.experiment_id, self.search, trial)
        if run is None:
            tags = {SEARCH_TAG: self.search.name, CREATED_TAG: self.search.created, **_kind(trial)}
            run = self.client.create_run(self.experiment_id, _milliseconds(started), tags=tags, run_name=name)
        return run.info.run_id

    def _send(self, run_id: str, config: dict, tags: dict[str, str], metrics: list[Metric]) -> None:
        """What the run lacks of tags, parameters, metrics, and the name of its data."""
        run = self.client.get_run(run_id)
        known = {
            (key, point.step)
            for key in {metric.key for metric in metrics} & set(run.data.metrics)
            for point in self.client.get_metric_history(run_id, key)
        }
        metrics = [metric for metric in metrics if (metric.key, metric.step) not in known]
        params = [Param(key, value) for key, value in _flatten(config) if key not in run.data.params]
        changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
        if changed:
            self.client.log_batch(run_id, tags=changed)
        for start in range(0, len(params), 100):  # as many as MLflow takes at once
            self.client.log_batch(run_id, params=params[start : start + 100])
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])
        if not (run.inputs and run.inputs.dataset_inputs):
            self.client.log_inputs(run_id, [_dataset_input(self.search)])

    def _set_status(self, run_id: str, status: str, ended: str | None) -> None:
        if self.client.get_run(run_id).info.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(run_id, status)
        else:
            self.client.set_terminated(run_id, status, _milliseconds(ended) if ended else None)

    def _tags(self) -> dict[str, str]:
        return {
            "nunchi.dataset": self.search.dataset,
            "nunchi.dataset_fingerprint": self.search.dataset_fingerprint,
            mlflow_tags.MLFLOW_GIT_COMMIT: self.search.git_commit or "unknown",
            mlflow_tags.MLFLOW_SOURCE_NAME: "python -m training.tune",
            mlflow_tags.MLFLOW_SOURCE_TYPE: "LOCAL",
        }

    def _stamp_of(self, trial: str) -> str:
        """Of a trial's files; "": of the search's own, and of the trials that its run shows, those that have ended."""
        if trial:
            return self.stamps.get(trial, "")
        ended = [self._stamp_of(trial.name) for trial in self.trials if trial.state != "running"]
        return _short(" ".join([self.stamps[""], *ended]))

    def _is_sent(self, trial: str) -> bool:
        return self.runs.get(trial, {}).get("stamp") == self._stamp_of(trial)

    def _note(self, trial: str, run_id: str) -> None:
        self.runs[trial] = {"run_id": run_id, "stamp": self._stamp_of(trial)}
        self._write_journal()

    def _write_journal(self) -> None:
        journal = {"store": self.store, "created": self.search.created, "runs": self.runs}
        write_json(self.folder / JOURNAL, journal)


def find_run(client: MlflowClient, experiment_id: str, search: Search, trial: str) -> Run | None:
    """The oldest run of the trial that is not deleted; ``trial`` "": of the search itself."""
    tags = {CREATED_TAG: search.created, **_kind(trial)}
    found = client.search_runs(
        [experiment_id],
        " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()),
        order_by=["attributes.start_time", "attributes.run_id"],
    )
    return next((run for run in found if run.data.tags[SEARCH_TAG] == search.name), None)


def _kind(trial: str) -> dict[str, str]:
    return {KIND_TAG: "trial", TRIAL_TAG: trial} if trial else {KIND_TAG: "search"}


def _epoch_metrics(trial: Trial) -> list[Metric]:
    """Stamped with the time at which the epoch ended, so that sending one again changes nothing."""
    metrics, ended = [], _milliseconds(trial.started)
    for epoch in trial.epochs:
        ended += int(1000 * epoch.get("seconds", 0))
        metrics += [
            Metric(key, float(value), ended, epoch["epoch"])
            for key, value in epoch.items()
            if key != "epoch" and isinstance(value, int | float)
        ]
    return metrics


def _best_metric(trial: Trial) -> list[Metric]:
    """The best dev F1, which lists of runs can be sorted by; its step is the epoch of the checkpoint."""
    if not trial.epochs:
        return []
    best = max(trial.epochs, key=lambda epoch: epoch["dev_f1"])
    return [Metric(BEST_F1, best["dev_f1"], _milliseconds(trial.ended or trial.started), best["epoch"])]


def description(trials: list[Trial]) -> str:
    """Of the search's run, in Markdown: the trials that have ended, the best first, as many as a tag can hold."""
    ended = [trial for trial in trials if trial.state != "running"]
    if not ended:
        return "No trial has ended yet."
    ranked = sorted(ended, key=lambda trial: (-(trial.best_f1 or 0.0), trial.name))
    varied = list(dict.fromkeys(path for trial in ranked for path in trial.params))
    heads = ["trial", "dev F1", "epochs", "state", *(path.split(".", 1)[-1] for path in varied)]
    lines = [_table_row(heads), _table_row(["---"] * len(heads))]
    left = NOTE_LENGTH - len("\n".join(lines))
    for shown, trial in enumerate(ranked):
        f1 = "" if trial.best_f1 is None else f"{trial.best_f1:.4f}"
        state = f"{trial.state}: {trial.error}"[:120] if trial.error else trial.state
        values = [shortly(trial.params.get(path, "")) for path in varied]
        row = _table_row([trial.name, f1, str(len(trial.epochs)), state, *values])
        left -= len(row) + 1
        if left < 0:
            return "\n".join([*lines, "", f"{len(ranked) - shown} more trials are in the runs below."])
        lines.append(row)
    return "\n".join(lines)


def _table_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _dataset_input(search: Search) -> DatasetInput:
    part = search.config.get("dataset", {})
    source = json.dumps({"uri": str(part.get("train") or part.get("folder") or part.get("kind"))})
    dataset = Dataset(search.dataset, search.dataset_fingerprint, source_type="local", source=source)
    return DatasetInput(dataset, [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "training")])


def _write_config(folder: Path, config: dict) -> None:
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def _write_pictures(folder: Path, trial: Trial, source: Path, config: dict) -> None:
    figures.learning_curves([trial]).savefig(folder / "learning_curves.png")
    if not (source / DEV_PREDICTIONS).is_file():
        return
    predictions = pd.read_parquet(source / DEV_PREDICTIONS)
    names, labels = config["dataset"]["labels"], predictions.label.to_numpy()
    probabilities = np.stack(predictions.probabilities.to_list())
    figures.confusion_matrix(labels, probabilities.argmax(1), names).savefig(folder / "confusion_matrix.png")
    figures.reliability(labels, probabilities).savefig(folder / "reliability.png")
    errors = figures.error_table(predictions, names)
    errors.to_csv(folder / "errors.csv", index=False, encoding="utf-8-sig")  # the mark tells Excel that it is UTF-8
    (folder / "errors.html").write_text(figures.error_page(errors), encoding="utf-8")


def _with_params(config: dict, params: dict) -> dict:
    """The whole configuration of a trial: the search's, with what the trial varies."""
    config = copy.deepcopy(config)
    for path, value in params.items():
        section, key = path.split(".")
        config[section][key] = value
    return config


def _flatten(config: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text[:6000]


def _read_journal(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _stamps(folder: Path) -> dict[str, str]:
    """By trial, and "" for the search: changes whenever a file does that the run is made of."""
    trials = [file.parent for file in (folder / "trials").glob(f"*/{TRIAL}")]
    return {"": _stamp(folder / SEARCH)} | {
        trial.name: _stamp(trial / TRIAL, trial / EPOCHS, trial / DEV_PREDICTIONS) for trial in trials
    }


def _stamp(*files: Path) -> str:
    stats = [file.stat() if file.exists() else None for file in files]
    return _short(" ".join(f"{stat.st_mtime_ns}:{stat.st_size}" if stat else "-" for stat in stats))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _milliseconds(moment: str) -> int:
    return int(1000 * datetime.fromisoformat(moment).timestamp())
