"""The checkpoint of a registered version as a folder on this machine: downloaded once, verified each time."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from training import tracking
from training.ledger import Version, locked
from training.record import FILE as RECORD
from training.settings import Settings

FETCHED = "fetched.json"
DOWNLOAD_SECONDS = 1800


def fetch(version: Version, settings: Settings) -> Path:
    """``var/registry/<number>/``: the Hugging Face folder. Its training.json says what only the registry knows.

    That is the test ``metrics``, ``mlflow_run`` and ``registry_version``.

    Raises:
        TrackingError: MLflow cannot be reached, or has lost the model.
    """
    folder = settings.var / "registry" / str(version.number)
    with locked(folder.with_name(f"{version.number}.lock"), seconds=DOWNLOAD_SECONDS):
        if not _is_whole(folder, version):
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{version.number}.") as scratch:
                download = tracking.checkpoint_of(version.model_uri, Path(scratch) / "checkpoint", settings)
                _write_facts(download, version)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(download, folder)
    return folder


def _write_facts(folder: Path, version: Version) -> None:
    """What the registry knows goes into training.json; FETCHED notes whose files these are, and their sums."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    record |= {"metrics": version.metrics, "mlflow_run": version.run_id, "registry_version": str(version.number)}
    (folder / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    fetched = {"model_uri": version.model_uri, "run_id": version.run_id, "sha256": _sums(folder)}
    (folder / FETCHED).write_text(json.dumps(fetched, indent=2) + "\n", encoding="utf-8")


def _is_whole(folder: Path, version: Version) -> bool:
    """Whether the folder holds this very model, whole; a number may come back when a registry is made afresh."""
    try:
        fetched = json.loads((folder / FETCHED).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return fetched == {"model_uri": version.model_uri, "run_id": version.run_id, "sha256": _sums(folder)}


def _sums(folder: Path) -> dict[str, str]:
    sums = {}
    for file in sorted(folder.iterdir()):
        if file.name != FETCHED:
            with file.open("rb") as stream:
                sums[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return sums
