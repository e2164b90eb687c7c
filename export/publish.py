"""Puts a finished version where Triton looks, in steps that each leave a repository that can be served.

    1. lock the repository           one exporter at a time
    2. stage beside it               `.<repository>.staging-…`: same file system, invisible to Triton
    3. rename the version folder in  a version is there whole or not at all
    4. replace config.pbtxt          loads the previous version and the new one
    5. replace serving.json          the new version answers

A kill between two steps leaves the old version serving; the next export clears the stage and takes the next number.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from export.bundle import flush, flush_folder, verify_bundle
from export.errors import RepositoryError
from export.manifest import MODEL, Manifest
from export.triton_config import build_config, read_config, to_text


@dataclass(frozen=True)
class Stage:
    """A locked repository and a private folder beside it; ``version_folder`` becomes ``<repository>/sentiment/<N>``."""

    repository: Path
    folder: Path
    version: int
    serving: int | None

    @property
    def version_folder(self) -> Path:
        return self.folder / str(self.version)


@contextmanager
def open_stage(repository: Path, version: int | None = None) -> Iterator[Stage]:
    """Lock ``repository`` (made when it is missing) and stage the next version, or the one asked for.

    Raises:
        RepositoryError: another export is at work, the version is taken, or serving.json cannot be read.
    """
    repository = repository.resolve()
    made = _make_folder(repository)
    try:
        with _locked(repository):
            for left_behind in repository.parent.glob(f".{repository.name}.staging-*"):
                shutil.rmtree(left_behind)
            serving = read_serving(repository)
            number = _choose_version(repository, serving, version)
            folder = Path(tempfile.mkdtemp(prefix=f".{repository.name}.staging-", dir=repository.parent))
            try:
                stage = Stage(repository, folder, number, serving.get("version"))
                stage.version_folder.mkdir()
                yield stage
            finally:
                shutil.rmtree(folder)
    finally:
        if made and not any(repository.iterdir()):
            repository.rmdir()


def check_labels(stage: Stage, labels: int) -> None:
    """Both versions are loaded under one config.pbtxt, which states the number of labels.

    Raises:
        RepositoryError: the repository serves a model with another number of labels.
    """
    file = stage.repository / MODEL / "config.pbtxt"
    if not file.exists():
        return
    served = list(read_config(file).output[0].dims) if stage.serving else [labels]
    if served != [labels]:
        raise RepositoryError(
            f"{stage.repository} serves a model with {served[0]} labels, the checkpoint has {labels}; "
            "publish it into a repository of its own, named with --repository here and with "
            "NUNCHI_MODEL_REPOSITORY where it is served"
        )


def publish(stage: Stage, manifest: Manifest, since: datetime) -> Path:
    """Verify what was staged and make it the version that answers; returns its folder.

    Raises:
        BundleBroken: the staged files do not read back as they were written. Nothing is published.
    """
    flush_folder(stage.version_folder)
    verify_bundle(stage.version_folder)
    model_folder = stage.repository / MODEL
    model_folder.mkdir(exist_ok=True)
    previous = stage.serving if stage.serving and (model_folder / str(stage.serving)).is_dir() else None

    target = model_folder / str(stage.version)
    stage.version_folder.rename(target)
    flush(model_folder)
    _switch(stage, stage.version, previous, len(manifest.labels), since)
    return target


def publish_again(repository: Path, folder: Path, since: datetime) -> None:
    """Let ``folder``, a version that was published before and is whole, answer once more; nothing is copied."""
    with open_stage(repository) as stage:
        labels = len(verify_bundle(folder).labels)
        check_labels(stage, labels)
        _switch(stage, int(folder.name), stage.serving, labels, since)


def _switch(stage: Stage, version: int, previous: int | None, labels: int, since: datetime) -> None:
    loaded = [version] if previous is None else [previous, version]
    _replace(stage, stage.repository / MODEL / "config.pbtxt", to_text(build_config(labels, loaded)))
    serving = {"model": MODEL, "version": version, "previous": previous, "since": since.isoformat()}
    _replace(stage, stage.repository / "serving.json", json.dumps(serving) + "\n")


def _replace(stage: Stage, file: Path, text: str) -> None:
    """Written in the stage, not beside ``file``: any stranger in the model folder makes Triton reload all versions."""
    draft = stage.folder / file.name
    draft.write_text(text, encoding="utf-8")
    draft.chmod(0o644)
    flush(draft)
    os.replace(draft, file)
    flush(file.parent)


def _make_folder(repository: Path) -> bool:
    if repository.is_dir():
        return False
    try:
        repository.mkdir(parents=True)
    except OSError as exc:
        raise RepositoryError(f"{repository} cannot be made a folder ({exc.strerror}); name another one") from exc
    return True


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """The folder itself carries the lock, so there is no lock file to leave behind."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RepositoryError(f"another export is writing to {repository}; wait until it has ended") from None
    try:
        yield
    finally:
        os.close(descriptor)


def read_serving(repository: Path) -> dict:
    """serving.json; empty when there is none.

    Raises:
        RepositoryError: it does not say which version serves.
    """
    file = repository / "serving.json"
    if not file.exists():
        return {}
    try:
        serving = json.loads(file.read_text(encoding="utf-8"))
        int(serving["version"])
    except (ValueError, KeyError, TypeError) as exc:
        raise RepositoryError(f"{file} does not say which version serves ({exc}); restore it") from exc
    return serving


def _choose_version(repository: Path, serving: dict, asked: int | None) -> int:
    """A number above every version that is there or that serving.json remembers: numbers are never used again."""
    folder = repository / MODEL
    there = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    highest = max([*there, serving.get("version") or 0, serving.get("previous") or 0], default=0)
    if asked is None:
        return highest + 1
    if asked <= highest:
        raise RepositoryError(
            f"version {asked} is not above the versions of {repository}, which go up to {highest} and are never "
            f"used again; leave --version out to publish {highest + 1}"
        )
    return asked
