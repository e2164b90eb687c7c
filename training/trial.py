"""One trial of a search, as it runs on a node of the Ray cluster: started by `training.tune`, never by hand.

The node has to see the files that the driver sees, under the same paths: the dataset, the encoder where it is a folder,
and the folder of the search. So on several machines, keep them on a shared file system.
"""

import gc
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray.train
import ray.tune

from training.config import TrainingConfig
from training.data import Dataset, open_dataset
from training.errors import DatasetError, TrainingError
from training.search import now, read_trial, write_trial

# The driver imports this module for its names alone, and torch and transformers take eight seconds: they are imported
# where they are used.

LOG = "trial.log"


@dataclass(frozen=True)
class Task:
    """What a node needs to know of a trial; ``config`` is the trial's own, with its values put in, as JSON."""

    folder: str
    config: str
    cache: str
    fingerprint: str
    gpus_per_worker: float


def run_trial(proposal: dict) -> None:
    """What Ray Tune calls, with a Task as a dict under ``task``. Goes on from the last whole epoch in its folder.

    A trial that cannot succeed is recorded as failed, with the reason; whatever else ends it is raised, and Tune starts
    it again, on another node if this one is lost.
    """
    import torch
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    task = proposal["task"]
    folder = Path(task["folder"])
    config = TrainingConfig.model_validate(json.loads(task["config"]))
    workers = config.tune.workers_per_trial
    if workers == 1:
        # Ray Train's local mode: it learns in this process. A worker of its own would cost 6 s and 0.5 GB per trial.
        scaling, run = ray.train.ScalingConfig(num_workers=0), None
    else:
        resources = {"CPU": config.tune.cpus_per_worker, "GPU": task["gpus_per_worker"]}
        scaling = ray.train.ScalingConfig(
            num_workers=workers, use_gpu=task["gpus_per_worker"] > 0, resources_per_worker=resources
        )
        run = ray.train.RunConfig(name="workers", storage_path=str(folder / "ray"), callbacks=[TuneReportCallback()])
    trainer = TorchTrainer(learn, train_loop_config=task, scaling_config=scaling, run_config=run)
    for figures in read_trial(folder).epochs:  # a trial that goes on: this run of it has not heard of them
        if figures["epoch"] < config.train.epochs:
            ray.tune.report(figures)
    try:
        trainer.fit()
    except Exception:
        if read_trial(folder).state != "failed":
            raise
    finally:
        gc.collect()  # the process may be used for the next trial
        torch.cuda.empty_cache()


def learn(task: dict) -> None:
    """What each worker of the trial runs. Its log is ``trial.log`` in the trial's folder."""
    from training.finetune import finetune

    task = Task(**task)
    folder = Path(task.folder)
    config = TrainingConfig.model_validate(json.loads(task.config))
    alone = config.tune.workers_per_trial == 1
    report = ray.tune.report if alone else ray.train.report
    last: list[dict] = []

    def after_epoch(figures: dict) -> None:
        # At the last epoch's report Tune ends the trial, so that one waits until the checkpoint is settled.
        last[:] = [figures] if figures["epoch"] == config.train.epochs else []
        if not last:
            report(figures)

    with _log_file(folder / LOG):
        try:
            finetune(config, _dataset(config, task), folder, callbacks=[after_epoch], resume=True)
        except Exception as exc:
            if isinstance(exc, TrainingError) or _out_of_memory(exc):
                _record_failure(folder, exc)
            else:
                logging.getLogger("training").exception("the trial broke off")
            raise
    for figures in last:
        report(figures)


def _dataset(config: TrainingConfig, task: Task) -> Dataset:
    dataset = open_dataset(config.dataset, cache=Path(task.cache))
    if dataset.fingerprint != task.fingerprint:
        raise DatasetError(
            f"on {socket.gethostname()} the dataset has the fingerprint {dataset.fingerprint}, where the search was "
            f"started {task.fingerprint}; the nodes of the cluster have to read the same files, from a shared folder"
        )
    return dataset


def _out_of_memory(exc: Exception) -> bool:
    """Torch raises a plain RuntimeError where it is the CPU's memory."""
    import torch

    return isinstance(exc, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(exc)


def _record_failure(folder: Path, exc: Exception) -> None:
    error = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    if not isinstance(exc, TrainingError):
        error = f"out of memory: {error}; take a smaller train.batch_size or model.max_length"
    write_trial(folder, replace(read_trial(folder), state="failed", ended=now(), error=error))


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    training = logging.getLogger("training")
    training.setLevel(logging.INFO)
    training.addHandler(handler)
    try:
        yield
    finally:
        training.removeHandler(handler)
        handler.close()
