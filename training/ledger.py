"""Who is what in the registry, kept so that a kill at any moment leaves it right or says what was under way.

MLflow is the truth: the alias ``champion`` says who is it, and switching it is the one step that makes a Champion. The
tag ``stage`` on every version and the alias ``candidate``, on the newest Candidate, follow. The file
``var/model_registry.json`` is a projection for readers without MLflow.

Whoever changes the registry holds ``var/registry.lock``, writes into the file what is ``pending``, changes MLflow, and
writes the file anew. After a crash the file says pending, and whoever takes the lock next finishes what had begun or
finds that nothing had. The lock binds the processes of one ``var`` folder: two machines that share an MLflow server
should promote from one of them.
"""

import fcntl
import functools
import json
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from training import tracking
from training.errors import RegistryBusy, RegistryError
from training.search import now, write_json
from training.settings import Settings

log = logging.getLogger(__name__)

Stage = Literal["Candidate", "Champion", "Archived"]
LOCK_SECONDS = 30


@dataclass(frozen=True)
class Version:
    """``metrics`` are `training.evaluate.Metrics` on the test part; ``tags`` is everything MLflow keeps on it."""

    number: int
    stage: Stage
    run_id: str
    model_uri: str
    created: str
    metrics: dict
    tags: dict[str, str] = field(repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(json.loads(self.tags.get("labels", "[]")))

    @property
    def previous_champion(self) -> int | None:
        """Who was Champion before this one last became it."""
        number = self.tags.get("previous_champion")
        return int(number) if number else None

    @property
    def forced(self) -> bool:
        return self.tags.get("forced") == "true"

    def as_dict(self) -> dict:
        """As model_registry.json shows it."""
        shown_otherwise = {"stage", "metrics", "labels"}
        tags = {key: value for key, value in sorted(self.tags.items()) if key not in shown_otherwise}
        return {**asdict(self), "labels": list(self.labels), "tags": tags}


class Ledger:
    """Raises, in every method: TrackingError when MLflow cannot be reached."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.model = settings.registered_model

    @functools.cached_property
    def client(self) -> MlflowClient:
        return tracking.connect(self.settings)

    def versions(self) -> list[Version]:
        """In the order of their numbers; none while nothing was ever registered."""
        if self.settings.mlflow_tracking_uri is None and not (self.settings.var / "mlflow.db").is_file():
            return []
        with self._asking():
            try:
                champion = self.client.get_registered_model(self.model).aliases.get("champion")
            except MlflowException as exc:
                if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise
            found = self.client.search_model_versions(f"name='{self.model}'")
        return sorted((_version(each, champion) for each in found), key=lambda version: version.number)

    def version(self, number: int) -> Version:
        """Raises:
        RegistryError: there is no such version.
        """
        versions = self.versions()
        for version in versions:
            if version.number == number:
                return version
        there_are = ", ".join(str(version.number) for version in versions) or "none yet"
        raise RegistryError(f"the registry {self.model!r} has no version {number}; there are: {there_are}")

    def champion(self) -> Version | None:
        return next((version for version in self.versions() if version.stage == "Champion"), None)

    def create(self, model_uri: str, run_id: str, tags: dict[str, str]) -> Version:
        """A new Candidate, with its tags in the one transaction that makes it.

        Raises:
            RegistryError: the run's model is registered already.
        """
        with self.lock():
            self.refuse_registered(run_id)
            with self._pending(f"register {tags['search']}/{tags['trial']}"):
                if not self.client.search_registered_models(f"name='{self.model}'"):
                    self.client.create_registered_model(self.model)
                tags = {"stage": "Candidate", **tags}
                created = self.client.create_model_version(self.model, model_uri, run_id, tags)
        return self.version(int(created.version))

    def refuse_registered(self, run_id: str) -> None:
        """Raises:
        RegistryError: the run's model is a version already.
        """
        for version in self.versions():
            if version.run_id == run_id:
                raise RegistryError(
                    f"this model is version {version.number} already ({version.stage}); promote that one, or register "
                    "another trial with --trial"
                )

    def tag(self, operation: str, number: int, tags: dict[str, str]) -> None:
        with self.lock(), self._pending(operation):
            self._set_tags(self.version(number), tags)

    def archive(self, number: int) -> Version:
        """Raises:
        RegistryError: it is the Champion, or archived already.
        """
        with self.lock():
            version = self.version(number)
            if version.stage == "Champion":
                raise RegistryError(f"version {number} is the Champion; promote another or roll back first")
            if version.stage == "Archived":
                raise RegistryError(f"version {number} is archived already")
            with self._pending(f"archive {number}"):
                self._set_tags(version, {"stage": "Archived"})
        return self.version(number)

    def crown(self, operation: str, number: int, *, instead_of: int | None, tags: dict | None = None) -> Version:
        """Make ``number`` the Champion, if ``instead_of`` still is; that one is archived.

        ``tags``: what is then to be said of the new one; None deletes a tag.

        Raises:
            RegistryError: another is the Champion by now.
        """
        with self.lock():
            champion = self.champion()
            current = champion.number if champion else None
            if current != instead_of:
                raise RegistryError(
                    f"cannot {operation}: the Champion is {_call(current)} by now, and was {_call(instead_of)} when "
                    "this began; look at python -m training.registry list, and try again"
                )
            self.version(number)  # it may have been deleted meanwhile
            previous = str(instead_of) if instead_of else None
            tags = {"champion_since": now(), "previous_champion": previous, **(tags or {})}
            with self._pending(operation, champion=number, tags=tags):
                self.client.set_registered_model_alias(self.model, "champion", str(number))
        return self.version(number)

    def rebuild(self) -> Path:
        """Write the file from MLflow alone, whatever it holds; tags and aliases are put in order as well."""
        with locked(self._lock_file, seconds=LOCK_SECONDS), self._asking():
            self._finish({})
        return self.settings.registry_file

    @contextmanager
    def lock(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """One writer at a time; what a killed one has left is put in order first.

        Raises:
            RegistryBusy: another process has held the lock for that long.
        """
        with locked(self._lock_file, seconds=seconds), self._asking():
            left = self._read_file()
            if left and left["pending"]:
                log.warning("%s was interrupted; putting the registry in order", left["pending"]["operation"])
                self._of(left["model"])._finish(left["pending"])
            if left is None or left["model"] != self.model:
                self._finish({})
            yield

    def _asking(self) -> AbstractContextManager[None]:
        return tracking.asking(f"the registry {self.model!r} cannot be asked or changed now")

    def _of(self, model: str) -> "Ledger":
        """Another registry may have used this var folder last, and was killed."""
        return self if model == self.model else Ledger(self.settings.model_copy(update={"registered_model": model}))

    @property
    def _lock_file(self) -> Path:
        return self.settings.var / "registry.lock"

    @contextmanager
    def _pending(self, operation: str, *, champion: int | None = None, tags: dict | None = None) -> Iterator[None]:
        """Say in the file what is about to change, let it change, and finish it. Only under the lock.

        ``champion`` and ``tags``: who is to become it, and what is then to be said of that version.
        """
        pending = {"operation": operation, "champion": champion, "tags": tags or {}}
        self._write_file(pending)
        yield
        self._finish(pending)

    def _finish(self, pending: dict) -> None:
        """Bring tags, the alias candidate and the file in line with the alias champion, and with ``stage`` below it."""
        versions = self.versions()
        champion = next((version for version in versions if version.stage == "Champion"), None)
        if champion and champion.number == pending.get("champion"):
            self._set_tags(champion, pending["tags"])
        elif champion and champion.tags.get("stage") != "Champion":
            # Crowned outside of this module, or the file was lost meanwhile: who stepped down still says Champion.
            before = [version for version in versions if version.tags.get("stage") == "Champion"]
            last = max(before, key=lambda version: version.tags.get("champion_since", ""), default=None)
            previous = str(last.number) if last else None
            self._set_tags(champion, {"champion_since": now(), "previous_champion": previous})
        for version in versions:
            self._set_tags(version, {"stage": version.stage})
        if versions:
            self._point_at_candidate(_newest_candidate(versions))
        self._write_file(None)

    def _point_at_candidate(self, number: int | None) -> None:
        pointed_at = self.client.get_registered_model(self.model).aliases.get("candidate")
        if number is None and pointed_at is not None:
            self.client.delete_registered_model_alias(self.model, "candidate")
        elif number is not None and str(number) != str(pointed_at):
            self.client.set_registered_model_alias(self.model, "candidate", str(number))

    def _set_tags(self, version: Version, tags: dict[str, str | None]) -> None:
        """Those that differ; None deletes."""
        for key, value in tags.items():
            if value is not None and version.tags.get(key) != value:
                self.client.set_model_version_tag(self.model, str(version.number), key, value)
            elif value is None and key in version.tags:
                self.client.delete_model_version_tag(self.model, str(version.number), key)

    def _read_file(self) -> dict | None:
        """None when there is no file yet, or none that this module has written."""
        try:
            document = json.loads(self.settings.registry_file.read_text(encoding="utf-8"))
            pending = document["pending"]
            known = isinstance(document["model"], str) and (pending is None or {"operation", "tags"} <= pending.keys())
            return document if known else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _write_file(self, pending: dict | None) -> None:
        versions = self.versions()
        document = {
            "model": self.model,
            "pending": pending,
            "champion": next((version.number for version in versions if version.stage == "Champion"), None),
            "candidate": _newest_candidate(versions),
            "versions": [version.as_dict() for version in versions],
        }
        write_json(self.settings.registry_file, document)


@contextmanager
def locked(file: Path, *, seconds: float) -> Iterator[None]:
    """Hold an exclusive lock on the file, which is made if need be; the kernel frees it when the process dies.

    Raises:
        RegistryBusy: another process has held it for that long.
        RegistryError: there can be no such file.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = file.open("a")
    except OSError as exc:
        raise RegistryError(f"{file} cannot be written ({exc.strerror}); name another folder with NUNCHI_VAR") from exc
    with opened as stream:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RegistryBusy(
                        f"another command has held {file} for {seconds:g} s; wait until it has ended, and try again"
                    ) from None
                time.sleep(0.05)
        yield


def _version(found: ModelVersion, champion: str | None) -> Version:
    stage = found.tags.get("stage", "Candidate")
    if champion is not None and int(found.version) == int(champion):
        stage = "Champion"
    elif stage == "Champion":  # it has stepped down, and the tag does not say so yet
        stage = "Archived"
    return Version(
        number=int(found.version),
        stage=stage,
        run_id=found.run_id,
        model_uri=found.source,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        metrics=json.loads(found.tags.get("metrics", "{}")),
        tags=dict(found.tags),
    )


def _newest_candidate(versions: list[Version]) -> int | None:
    return max((version.number for version in versions if version.stage == "Candidate"), default=None)


def _call(number: int | None) -> str:
    return f"version {number}" if number else "nobody"
