"""serving.json: which version answers. One small file, replaced whole, by the commands of this room alone.

Who writes it holds a lock for the milliseconds that takes, on the model's folder, and says what it expects to replace.
So a rollback need not wait for an export that holds the repository for minutes, and neither undoes the other unseen.
Imports next to nothing: a rollback must not wait for it.
"""

import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from export.errors import RepositoryAway, RepositoryBusy, RepositoryError, RepositoryFull

MODEL = "sentiment"
MODES = ("shadow", "canary")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Candidate:
    """A version beside the one that serves; ``share``, above 0 and up to 1, is the part of the traffic it gets."""

    version: int
    mode: str
    share: float
    since: str


@dataclass(frozen=True)
class Serving:
    """``rolled_back``: the version that a rollback has left; --watch does not release that one again."""

    version: int
    previous: int | None
    since: str
    rolled_back: int | None = None
    candidate: Candidate | None = None

    def numbers(self) -> list[int]:
        """Every version it remembers."""
        named = (self.version, self.previous, self.rolled_back, self.candidate and self.candidate.version)
        return [number for number in named if number]

    def to_json(self) -> str:
        document = {"model": MODEL, **dataclasses.asdict(self)}
        optional = {key: document.pop(key) for key in ("rolled_back", "candidate")}
        return json.dumps(document | {key: value for key, value in optional.items() if value}) + "\n"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def serving_file(repository: Path) -> Path:
    return repository / "serving.json"


def version_folder(repository: Path, version: int) -> Path:
    return repository / MODEL / str(version)


def read_serving(repository: Path) -> Serving | None:
    """None when there is none.

    Raises:
        RepositoryError: it does not say which version serves.
        RepositoryAway: it cannot be read.
    """
    file = serving_file(repository)
    try:
        with in_one_sentence(repository):
            if not file.exists():
                return None
            text = file.read_text(encoding="utf-8")
        document = json.loads(text)
        candidate = document.get("candidate")
        return Serving(
            version=int(document["version"]),
            previous=document.get("previous"),
            since=document.get("since", ""),
            rolled_back=document.get("rolled_back"),
            candidate=Candidate(**candidate) if candidate else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise RepositoryError(f"{file} does not say which version serves ({exc}); restore it") from exc


def replace_serving(
    repository: Path, before: Serving | None, after: Serving, still: Callable[[], bool] = lambda: True
) -> bool:
    """Durably, and all at once; False, and nothing is done, if ``still`` says no under the lock.

    Raises:
        RepositoryBusy: it no longer says ``before``.
        RepositoryAway, RepositoryFull: it cannot be written.
    """
    with in_one_sentence(repository), locked(repository, before):
        if not still():
            return False
        draft = repository.parent / f".{repository.name}.serving.json"  # outside: strangers inside make Triton reload
        try:
            write_durably(draft, after.to_json())
            move_durably(draft, serving_file(repository))
        finally:
            draft.unlink(missing_ok=True)
        return True


@contextmanager
def locked(repository: Path, expected: Serving | None) -> Iterator[None]:
    """Nobody else writes serving.json meanwhile, and it says what is expected.

    Raises:
        RepositoryBusy: it says something else.
    """
    with alone(repository) as found:
        if found != expected:
            raise RepositoryBusy(changed(repository, found))
        yield


@contextmanager
def alone(repository: Path) -> Iterator[Serving | None]:
    """Nobody else writes serving.json meanwhile; what it says."""
    descriptor = os.open(repository / MODEL, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield read_serving(repository)
    finally:
        os.close(descriptor)


def changed(repository: Path, found: Serving | None) -> str:
    """What to tell the command that was overtaken."""
    version = found.version if found else "nothing"
    return (
        f"another command has changed {serving_file(repository)} meanwhile, which names {version} now; "
        "look at it, and try again"
    )


@contextmanager
def in_one_sentence(repository: Path) -> Iterator[None]:
    """What the disk refuses, as an error of this room.

    Raises:
        RepositoryFull, RepositoryAway: by the kind of the refusal.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in DISK_FULL:
            raise RepositoryFull(
                f"{repository.parent} has no room left ({exc.strerror}); make room there, nothing was changed"
            ) from exc
        raise RepositoryAway(
            f"{exc.filename or repository} cannot be used ({exc.strerror}); let this user read and write "
            f"{repository} and the folder around it"
        ) from exc


def write_durably(draft: Path, text: str) -> None:
    draft.write_text(text, encoding="utf-8")
    draft.chmod(0o644)
    flush(draft)


def move_durably(draft: Path, file: Path) -> None:
    os.replace(draft, file)
    flush(file.parent)


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
