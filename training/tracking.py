"""A search as MLflow shows it: one run for the search, below it one run per trial, and the model of the best.

    python -m training.tracking upload SEARCH_FOLDER      brings in what was not written while MLflow was away
    python -m training.tracking serve                     MLflow's pages, in the foreground (make mlflow)

The folder (training.search) is the truth and MLflow a projection of it (training.projection), made as often as one
likes, during the search or after it. A server that is away stops no search.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import Map
from sqlalchemy.exc import SQLAlchemyError

from training.errors import TrackingError, TrainingError
from training.projection import BEST_F1, ENVIRONMENT, Projection, find_run
from training.search import CHECKPOINT, read_search, trial_folder
from training.settings import Settings, read_settings

log = logging.getLogger(__name__)

EXPERIMENT = "nunchi"
MODEL = "sentiment"
CHECKPOINT_TAG = "nunchi.checkpoint"
RUNTIME = ["mlflow", "torch", "transformers", "tokenizers", "pandas"]
EXAMPLE = ["다시 보고 싶은 영화", "돈 아깝고 시간 아깝다"]
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string")]),  # without a name: a list, a Series and any one column will do
    outputs=Schema(
        [ColSpec("string", "prediction"), ColSpec("string", "label"), ColSpec("double", "confidence"),
         ColSpec(Map("double"), "probs")]
    ),
)  # fmt: skip

HURRIED = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
PATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_patience: dict[str, str] = {}
"""What `asking` has put into the environment."""

PAUSE, LONGEST_PAUSE = 30.0, 300.0
"""Seconds until MLflow is tried again, doubled each time."""

DATABASES = ("sqlite:", "postgresql:", "mysql:", "mssql:")


@dataclass
class Absence:
    """MLflow could not be written to; before ``until`` (monotonic seconds) nobody asks again."""

    until: float
    pause: float


_absences: dict[Path, Absence] = {}


def connect(settings: Settings) -> MlflowClient:
    """The client of the tracking server or of ``var/mlflow.db``, which is made at first use, as is the experiment.

    Raises:
        TrackingError: MLflow does not answer within 4 seconds, or refuses.
    """
    _quieten()
    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.tracking_uri)
    with asking(f"MLflow at {_without_password(settings.tracking_uri)} cannot be used", HURRIED):
        with _database_to_itself(settings):
            client = MlflowClient(settings.tracking_uri)
            _experiment_id(client, settings)
        return client


def project(search_folder: Path, settings: Settings) -> str | None:
    """Make MLflow equal to the folder; the id of the search's run.

    None when that cannot be done now: said once, with the command that does it later, and tried again after a pause.
    A server that is away costs 4 seconds; one that falls silent while a finished search is written may cost minutes,
    as it is the last call. Nothing but a broken search folder raises.
    """
    search = read_search(search_folder)
    _note_environment(search_folder)
    absence = _absences.get(search_folder)
    if absence and time.monotonic() < absence.until and not search.finished:
        return None
    try:
        with _folder_to_itself(search_folder, wait=False):
            run_id = _bring(search_folder, settings, PATIENT if search.finished else HURRIED, trusting=True)
    except TrackingError as exc:
        level = logging.DEBUG if absence else logging.WARNING
        log.log(level, "%s. Nothing is lost: %s brings it to MLflow later", exc, _upload_command(search_folder))
        pause = min(2 * absence.pause, LONGEST_PAUSE) if absence else PAUSE
        _absences[search_folder] = Absence(time.monotonic() + pause, pause)
        return None
    if _absences.pop(search_folder, None):
        log.info("MLflow is back, and has all of %s", search.name)
    return run_id


def upload(search_folder: Path, settings: Settings, *, trusting: bool = False) -> str:
    """As `project`, with patience; what was noted as sent is believed only if ``trusting``.

    Another process that is bringing the folder is waited for.

    Raises:
        TrackingError: MLflow cannot be reached, or went away; call again, nothing is sent twice.
    """
    read_search(search_folder)  # before anything is written into a folder that is none
    _note_environment(search_folder)
    with _folder_to_itself(search_folder, wait=True):
        return _bring(search_folder, settings, PATIENT, trusting=trusting)


def _bring(search_folder: Path, settings: Settings, patience: dict[str, str], *, trusting: bool) -> str:
    """Runs first, then the model of the best trial, which comes once the search is over."""
    projection = Projection(search_folder, settings.tracking_uri, trusting=trusting)
    search = projection.search
    if not search.finished and not projection.has_news():
        return projection.run_id()
    client = connect(settings)
    with asking(f"MLflow has not taken all of {search.name}", patience):
        projection.bring(client, _experiment_id(client, settings))
    checkpoint = trial_folder(search_folder, search.best or "") / CHECKPOINT
    if search.finished and search.best and checkpoint.is_dir():
        log_model(projection.run_id(search.best), checkpoint, settings)
    return projection.run_id()


def run_id_of(search_folder: Path, trial: str, settings: Settings) -> str:
    """The MLflow run of a trial.

    Raises:
        TrackingError: MLflow cannot be reached, or does not hold the trial.
    """
    client = connect(settings)
    with asking(f"MLflow cannot be asked for trial {trial}"):
        run = find_run(client, _experiment_id(client, settings), read_search(search_folder), trial)
    if run is None:
        raise TrackingError(
            f"MLflow has no run of trial {trial} of {search_folder.name}; "
            f"{_upload_command(search_folder)} brings it there"
        )
    return run.info.run_id


def log_model(run_id: str, checkpoint: Path, settings: Settings) -> str:
    """Store the checkpoint, with tokenizer and signature, as the model of a run; its ``models:/…`` URI.

    A checkpoint that the run already holds is not stored again; a half stored one is replaced.

    Raises:
        TrackingError: MLflow cannot be reached, or does not take it.
    """
    client = connect(settings)
    with _folder_to_itself(checkpoint, wait=True), asking(f"MLflow has not stored the model of run {run_id}"):
        run, digest = client.get_run(run_id), _digest(checkpoint)
        for model in _models_of(client, run):
            if model.status != LoggedModelStatus.READY:
                client.delete_logged_model(model.model_id)
            elif model.tags.get(CHECKPOINT_TAG) == digest:
                return model.model_uri
        best = client.get_metric_history(run_id, BEST_F1)
        model = client.create_logged_model(
            run.info.experiment_id,
            name=MODEL,
            source_run_id=run_id,
            tags={CHECKPOINT_TAG: digest},
            params=run.data.params,
        )
        return Model.log(
            artifact_path=None,
            name=MODEL,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=model.model_id,
            step=best[-1].step if best else 0,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"checkpoint": str(checkpoint)},
            signature=SIGNATURE,
            input_example=EXAMPLE,
            pip_requirements=[f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in RUNTIME],
        ).model_uri


def checkpoint_of(model_uri: str, target: Path, settings: Settings) -> Path:
    """Download the Hugging Face folder of a logged model to ``target``, which must not exist: whole, or not at all.

    Raises:
        TrackingError: MLflow cannot be reached, has no such model, or gives back other files than were stored.
    """
    client = connect(settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        with asking(f"{model_uri} cannot be read from MLflow"):
            model = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=scratch))
            facts = Model.load(model)
            stored = client.get_logged_model(facts.model_id).tags.get(CHECKPOINT_TAG)
        folder = model / facts.flavors[mlflow.pyfunc.FLAVOR_NAME]["artifacts"]["checkpoint"]["path"]
        if _digest(folder) != stored:
            raise TrackingError(f"{model_uri} is damaged in MLflow's store: its files are not those that were logged")
        folder.rename(target)
    return target


def _models_of(client: MlflowClient, run: Run) -> list:
    """Every logged model that came from the run, half stored ones included."""
    return client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}' and name = '{MODEL}'"
    )


def _experiment_id(client: MlflowClient, settings: Settings) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        local = settings.tracking_uri.startswith(DATABASES)  # a server has an artifact store of its own
        place = settings.artifact_root.as_uri() if local else None
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=place)
        except MlflowException:
            experiment = client.get_experiment_by_name(EXPERIMENT)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {EXPERIMENT} is deleted in MLflow; "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id} brings it back"
        )
    return experiment.experiment_id


def _note_environment(folder: Path) -> None:
    """The packages of the process that searches: an upload may be made from another."""
    file = folder / ENVIRONMENT
    if file.exists():
        return
    packages = {f"{package.name}=={package.version}" for package in importlib.metadata.distributions()}
    lines = [f"# Python {platform.python_version()} on {platform.platform()}", *sorted(packages, key=str.lower)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _digest(folder: Path) -> str:
    """Of the names and contents of all files below."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file.open("rb") as content:
            digest.update(f"{file.relative_to(folder).as_posix()} ".encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _upload_command(folder: Path) -> str:
    return f"python -m training.tracking upload {shlex.quote(str(folder))}"


def _without_password(text: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


@contextlib.contextmanager
def asking(failure: str, patience: dict[str, str] = PATIENT) -> Iterator[None]:
    """Ask MLflow with that patience: without it, a server that is away costs a quarter of an hour per request.

    MLflow reads its patience from the environment at each request; what a person has set there stays. Of one within
    another, the inner counts.

    Raises:
        TrackingError: ``failure``, and why.
    """
    before = dict(_patience)
    ours = {name: value for name, value in patience.items() if os.environ.get(name) == before.get(name)}
    _patience.update(ours)
    os.environ.update(ours)
    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as exc:
        reason = _without_password((str(exc).splitlines() or [type(exc).__name__])[0])[:300]
        raise TrackingError(f"{failure} ({reason})") from exc
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in ours if name in before})
        _patience.clear()
        _patience.update(before)


@contextlib.contextmanager
def _folder_to_itself(folder: Path, *, wait: bool) -> Iterator[None]:
    """Two processes that bring one folder at once would each make its runs.

    Raises:
        TrackingError: another one has it, and ``wait`` is not set.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise TrackingError(f"another process is bringing {folder.name} to MLflow") from None
            log.info("waiting for another process that is bringing %s to MLflow", folder.name)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _database_to_itself(settings: Settings) -> Iterator[None]:
    """MLflow makes the tables of a new SQLite file without a lock; two first users would both fail."""
    if not settings.tracking_uri.startswith("sqlite:///"):
        yield
        return
    lock = Path(f"{settings.tracking_uri.removeprefix('sqlite:///')}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _quieten() -> None:
    """No word to MLflow's makers, and none to the person at the keyboard about tables, links and progress."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(name, "true")
    for name in ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "MLFLOW_UV_AUTO_DETECT"):
        os.environ.setdefault(name, "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)


def serve(settings: Settings) -> None:
    """Become MLflow's server over what lies under ``var``; on loopback only. Does not return.

    Raises:
        TrackingError: another server is named, which has the pages.
    """
    if settings.mlflow_tracking_uri:
        raise TrackingError(
            f"NUNCHI_MLFLOW_TRACKING_URI names {_without_password(settings.tracking_uri)}; its pages are there, and "
            "unset it to see what lies under var"
        )
    connect(settings)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(settings.mlflow_port)]
    store = ["--backend-store-uri", settings.tracking_uri, "--default-artifact-root", str(settings.artifact_root)]
    os.execv(sys.executable, [*command, *store, "--workers", "1"])


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m training.tracking", description="A search in MLflow.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="upload | serve")
    command = commands.add_parser("upload", help="bring in what was not written while MLflow was away")
    command.add_argument("search", type=Path, help="the folder of a search, such as var/searches/NAME")
    commands.add_parser("serve", help="MLflow's pages over what lies under var, in the foreground")
    options = parser.parse_args(argv)
    try:
        settings = read_settings()
        if options.command == "serve":
            serve(settings)
        run_id = upload(options.search, settings)
    except TrainingError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    print(f"{options.search} is in MLflow at {_without_password(settings.tracking_uri)}: run {run_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
