"""Which trials run, and what is written of them: Optuna's proposals, ASHA's rungs and the driver's side of Ray Tune."""

import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from training.config import TrainingConfig, UniformRange, override
from training.errors import ConfigRefused
from training.search import (
    CHECKPOINT,
    TRIAL,
    WORK,
    Trial,
    duration,
    now,
    read_trial,
    read_trials,
    said,
    trial_folder,
    write_trial,
)
from training.trial import LOG, Task, run_trial

log = logging.getLogger(__name__)

RETRIES = 2  # of a trial whose node or process died
METRIC, TIME = "dev_f1", "epoch"


def run_trials(
    search_folder: Path,
    config: TrainingConfig,
    *,
    fingerprint: str,
    cache: Path,
    concurrent: int,
    gpus_per_worker: float,
) -> None:
    """Run what the search still lacks of ``config.tune.trials`` on the Ray that is connected."""
    known = read_trials(search_folder)
    over = [trial for trial in known if trial.state != "running"]
    lacking = config.tune.trials - len(over)
    if lacking <= 0:
        return
    common = {"cache": str(cache), "fingerprint": fingerprint, "gpus_per_worker": gpus_per_worker}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the Recorder tells it in one line
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    proposals = Proposals(search_folder, config, known, common)
    one_process = config.tune.workers_per_trial == 1
    # The workers of a trial with several ask for their own share; its first process waits for them on the head node.
    share = {"cpu": config.tune.cpus_per_worker, "gpu": gpus_per_worker}
    resources = share if one_process else {"node:__internal_head__": 0.001}
    tuner = tune.Tuner(
        tune.with_resources(run_trial, resources),
        tune_config=tune.TuneConfig(
            num_samples=lacking,
            max_concurrent_trials=concurrent,
            search_alg=proposals,
            scheduler=asha(config, over),
            reuse_actors=one_process,  # importing torch and transformers anew takes 8 s
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(search_folder),
            callbacks=[Recorder(search_folder, config, concurrent)],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    tuner.fit()


class Proposals(OptunaSearch):
    """Optuna's proposals as tasks, each with a name and a folder.

    A resumed search begins with the trials that were cut off, and Optuna knows how the others went.
    """

    def __init__(self, search_folder: Path, config: TrainingConfig, known: list[Trial], common: dict):
        self.search_folder = search_folder
        self.config = config
        self.common = common
        self.cut_off = [trial for trial in known if trial.state == "running"]
        self.numbered = len(known)
        self.folders: dict[str, Path] = {}
        super().__init__(
            space=distributions(config),
            metric=METRIC,
            mode="max",
            points_to_evaluate=[trial.params for trial in self.cut_off],
            seed=config.tune.seed + len(known),  # with the same seed it would propose the known ones again
        )
        for trial in known:
            if trial.state != "running":
                failed = trial.best_f1 is None
                self.add_evaluated_point(trial.params, trial.best_f1, error=failed)

    def suggest(self, trial_id: str) -> dict:
        params = super().suggest(trial_id)
        if self.cut_off:
            trial = self.cut_off.pop(0)
            name, params = trial.name, trial.params
        else:
            self.numbered += 1
            name = f"trial-{self.numbered:02}"
        self.folders[trial_id] = trial_folder(self.search_folder, name)
        task = Task(
            folder=str(self.folders[trial_id]),
            config=override(self.config, params).model_dump_json(),
            **self.common,
        )
        return {"task": asdict(task), "params": params}

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        """Optuna hears of a trial when it has ended."""

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        best = read_trial(self.folders[trial_id]).best_f1
        super().on_trial_complete(trial_id, None if best is None else {METRIC: best}, error)


class Recorder(tune.Callback):
    """Keeps every ``trial.json`` and says how the search goes."""

    def __init__(self, search_folder: Path, config: TrainingConfig, concurrent: int):
        self.search_folder = search_folder
        self.config = config
        self.concurrent = concurrent
        self.heard: set[tuple[str, int]] = set()

    def on_trial_start(self, iteration, trials, trial, **info):
        folder = self._folder(trial)
        if not (folder / TRIAL).is_file():
            write_trial(folder, Trial(name=_name(trial), params=trial.config["params"], started=now()))
            log.info("%s starts with %s", _name(trial), said(trial.config["params"]))

    def on_trial_recover(self, iteration, trials, trial, **info):
        log.warning("%s broke off (%s); it goes on from its last epoch", _name(trial), self._keep_error(trial))

    def on_trial_result(self, iteration, trials, trial, result, **info):
        heard = (_name(trial), result[TIME])
        if heard in self.heard:
            return
        self.heard.add(heard)
        self._say(trial, result)

    def on_trial_complete(self, iteration, trials, trial, **info):
        folder = self._folder(trial)
        record = read_trial(folder)
        if record.state != "failed":
            record = replace(record, ended=now(), **self._outcome(record, folder))
            write_trial(folder, record)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        best = "" if record.best_f1 is None else f", best dev F1 {record.best_f1:.4f}"
        log.info("%s %s after %s epochs%s%s", record.name, record.state, len(record.epochs), best,
                 f": {record.error}" if record.error else "")  # fmt: skip

    def on_trial_error(self, iteration, trials, trial, **info):
        folder = self._folder(trial)
        error = f"broke off {RETRIES + 1} times, at last with: {self._keep_error(trial)}; see {folder / LOG}"
        write_trial(folder, replace(read_trial(folder), state="failed", ended=now(), error=error))
        log.warning("%s %s", _name(trial), error)

    def _keep_error(self, trial: TuneTrial) -> str:
        """Ray's account of it goes to the trial's log; returns its first line."""
        error = trial.get_pickled_error()
        if error is None:
            return "its process or its node ended"
        with (self._folder(trial) / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{error}\n")
        cause = getattr(error, "cause", None) or error
        return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"

    def _outcome(self, record: Trial, folder: Path) -> dict:
        if not (folder / CHECKPOINT / "config.json").is_file():
            return {"state": "failed", "error": "stopped before it had learned to answer more than one class"}
        wanted = override(self.config, record.params).train.epochs
        return {"state": "finished" if record.epochs[-1]["epoch"] >= wanted else "stopped"}

    def _folder(self, trial: TuneTrial) -> Path:
        return trial_folder(self.search_folder, _name(trial))

    def _say(self, trial: TuneTrial, result: dict) -> None:
        everyone = read_trials(self.search_folder)
        best = max((each for each in everyone if each.best_f1 is not None), key=lambda each: each.best_f1)
        ended = sum(each.state != "running" for each in everyone)
        log.info(
            "%s epoch %s/%s: dev F1 %.4f, loss %.4f on train and %.4f on dev, %s; best %.4f (%s); "
            "%s of %s trials ended, at most %s left",
            _name(trial), result[TIME], self.config.train.epochs, result[METRIC], result["train_loss"],
            result["dev_loss"], duration(result["seconds"]), best.best_f1, best.name, ended, self.config.tune.trials,
            duration(self._seconds_left(everyone)),
        )  # fmt: skip

    def _seconds_left(self, trials: list[Trial]) -> float:
        """If every trial ran to its end; ASHA spares some."""
        seconds = [epoch["seconds"] for trial in trials for epoch in trial.epochs]
        done = sum(len(trial.epochs) for trial in trials)
        saved = sum(self.config.train.epochs - len(trial.epochs) for trial in trials if trial.state != "running")
        epochs = self.config.tune.trials * self.config.train.epochs - done - saved
        return epochs * sum(seconds) / len(seconds) / self.concurrent


def distributions(config: TrainingConfig) -> dict[str, BaseDistribution]:
    """The search space as Optuna takes it.

    Raises:
        ConfigRefused: nothing varies.
    """
    if not config.tune.space:
        raise ConfigRefused(
            "tune.space is empty, so all trials would be the same; name a value to vary, or train once with "
            "python -m training.trainer"
        )
    return {
        path: FloatDistribution(varied.low, varied.high, log=varied.log)
        if isinstance(varied, UniformRange)
        else CategoricalDistribution(varied.choices)
        for path, varied in config.tune.space.items()
    }


def asha(config: TrainingConfig, over: list[Trial]) -> ASHAScheduler:
    """ASHA that has already seen the trials ``over``."""
    epochs = config.tune.space.get("train.epochs")
    scheduler = ASHAScheduler(
        time_attr=TIME,
        metric=METRIC,
        mode="max",
        max_t=max(epochs.choices) if epochs else config.train.epochs,
        grace_period=config.tune.grace_epochs,
        reduction_factor=config.tune.reduction_factor,
    )
    for trial in over:
        seen = TuneTrial("seen", stub=True, trial_id=trial.name)
        scheduler.on_trial_add(None, seen)
        for epoch in trial.epochs:
            scheduler.on_trial_result(None, seen, epoch)
    return scheduler


def _name(trial: TuneTrial) -> str:
    return Path(trial.config["task"]["folder"]).name
