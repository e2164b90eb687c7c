"""The model repository on disk: staged beside it, renamed in, withdrawn, and what config.pbtxt names.

    lock the repository           one exporter at a time
    stage beside it               `.<repository>.staging-…`: same file system, invisible to Triton
    rename the version folder in  a version is there whole or not at all
    replace config.pbtxt          what Triton loads when it starts

A kill between two steps leaves the old version serving; the next export clears the stage. release.py has the order of
the steps, serving.py the file that makes a version answer.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.errors import RepositoryAway, RepositoryBusy, RepositoryError
from export.serving import (
    MODEL,
    Serving,
    flush,
    in_one_sentence,
    move_durably,
    read_serving,
    serving_file,
    version_folder,
    write_durably,
)
from export.triton_config import build_config, read_config, to_text


@dataclass(frozen=True)
class Stage:
    """A locked repository and a private folder beside it; ``version_folder`` becomes ``<repository>/sentiment/<N>``."""

    repository: Path
    folder: Path
    version: int

    @property
    def version_folder(self) -> Path:
        return self.folder / str(self.version)

    @property
    def published_folder(self) -> Path:
        return version_folder(self.repository, self.version)


@contextmanager
def open_stage(repository: Path, version: int | None = None, *, known: bool = False) -> Iterator[Stage]:
    """Lock ``repository`` and stage the next version, or the one asked for.

    A repository that is missing is made, unless it is ``known``, which it is when serving.json has been read there.

    Raises:
        RepositoryError: another export is at work, the version is taken, serving.json cannot be read, the disk is full
            or refuses, or what is known is gone.
    """
    with in_one_sentence(repository):
        repository = repository.resolve()
        made = not known and _make_folder(repository)
        try:
            with _locked(repository):
                for left_behind in repository.parent.glob(f".{repository.name}.staging-*"):
                    shutil.rmtree(left_behind)
                serving = read_serving(repository)
                if known and serving is None:
                    raise RepositoryAway(gone(repository))
                number = _choose_version(repository, serving, version)
                folder = Path(tempfile.mkdtemp(prefix=f".{repository.name}.staging-", dir=repository.parent))
                try:
                    stage = Stage(repository, folder, number)
                    stage.version_folder.mkdir()
                    yield stage
                finally:
                    shutil.rmtree(folder)
        finally:
            if made and not any(repository.iterdir()):
                repository.rmdir()


def gone(repository: Path) -> str:
    return f"{serving_file(repository)} was there and is gone; bring the repository back, it is not made anew"


def check_labels(repository: Path, labels: int) -> None:
    """All versions are loaded under one config.pbtxt, which states the number of labels.

    Raises:
        RepositoryError: the repository serves a model with another number of labels.
    """
    file = repository / MODEL / "config.pbtxt"
    if not file.exists() or read_serving(repository) is None:
        return
    served = list(read_config(file).output[0].dims)
    if served != [labels]:
        raise RepositoryError(
            f"{repository} serves a model with {served[0]} labels, the checkpoint has {labels}; "
            "publish it into a repository of its own, named with --repository here and with "
            "NUNCHI_MODEL_REPOSITORY where it is served"
        )


def rename_in(stage: Stage) -> None:
    """Make the staged version durable and put it where Triton looks."""
    flush_folder(stage.version_folder)
    model_folder = stage.repository / MODEL
    model_folder.mkdir(exist_ok=True)
    stage.version_folder.rename(stage.published_folder)
    flush(model_folder)


def take_out(stage: Stage) -> None:
    """Undo `rename_in`; the stage takes the folder along when it closes."""
    with suppress(FileNotFoundError):  # it never got there
        stage.published_folder.rename(stage.version_folder)


def configuration(repository: Path, labels: int, versions: list[int]) -> ModelConfig:
    """What is served with now, for ``versions``: with any other difference Triton would load all of them anew."""
    file = repository / MODEL / "config.pbtxt"
    if not file.exists() or read_serving(repository) is None:
        return build_config(labels, versions)
    config = read_config(file)
    config.ClearField("version_policy")
    config.version_policy.specific.versions.extend(versions)
    return config


def write_config(stage: Stage, config: ModelConfig) -> None:
    """Written in the stage, not beside it: any stranger in the model folder makes Triton reload all versions."""
    draft = stage.folder / "config.pbtxt"
    write_durably(draft, to_text(config))
    move_durably(draft, stage.repository / MODEL / "config.pbtxt")


def flush_folder(folder: Path) -> None:
    """Make the folder and its files durable, and readable by the user Triton runs as."""
    for file in sorted(folder.iterdir()):
        file.chmod(0o644)
        flush(file)
    folder.chmod(0o755)
    flush(folder)


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
        raise RepositoryBusy(f"another export is writing to {repository}; wait until it has ended") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _choose_version(repository: Path, serving: Serving | None, asked: int | None) -> int:
    """A number above every version that is there or that serving.json remembers: numbers are never used again."""
    folder = repository / MODEL
    there = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    highest = max([*there, *(serving.numbers() if serving else [])], default=0)
    if asked is None:
        return highest + 1
    if asked <= highest:
        raise RepositoryError(
            f"version {asked} is not above the versions of {repository}, which go up to {highest} and are never "
            f"used again; leave --version out to publish {highest + 1}"
        )
    return asked
