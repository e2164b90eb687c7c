"""Follows the Champion of the registry: `python -m export --watch` releases it whenever it changes.

An MLflow that is away is asked again, less and less often. A Champion that was refused, or that a rollback has left, is
not tried again until the alias moves; one that met another command, or no Triton, is.
"""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.build import Order
from export.champion import find_published, release_champion
from export.errors import ExportError, RepositoryBusy, TritonAway
from export.gateway import Gateway
from export.release import Released, is_same, is_serving, let_go
from export.serving import Serving, read_serving
from export.settings import Settings
from training.errors import TrackingError, TrainingError
from training.registry import Registry, Version
from training.settings import read_settings as read_training_settings

log = logging.getLogger("export.watch")

POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class Watch:
    """One look after the other at who is Champion; `step` returns the seconds until the next."""

    def __init__(self, repository: Path, settings: Settings, order: Order, soak_seconds: float) -> None:
        self._repository = repository
        self._settings = settings
        self._order = order
        self._soak_seconds = soak_seconds
        self._registry = Registry(read_training_settings())
        self._done: tuple[int, str] | None = None  # the Champion that is dealt with, by number and run
        self._pause = POLL_SECONDS
        self._complaint = ""
        self._soaking: tuple[Serving, float] | None = None  # what was released, and until when

    def step(self) -> float:
        self._end_soak()
        try:
            champion = self._registry.champion()
            if champion and (champion.number, champion.run_id) != self._done:
                self._release(champion)
                self._done = champion.number, champion.run_id
        except (TrackingError, RepositoryBusy, TritonAway) as exc:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            if str(exc) != self._complaint:
                log.warning("%s; asking again", exc)
            self._complaint = str(exc)
        else:
            if self._complaint:
                log.info("going on")
            self._pause, self._complaint = POLL_SECONDS, ""
        return self._pause

    def _release(self, champion: Version) -> None:
        """A refusal is told, and is the end of it for this Champion."""
        seen = time.monotonic()
        try:
            if self._was_left(champion):
                log.info("version %d of the registry was rolled back here, and is not released again", champion.number)
                return
            released = release_champion(self._repository, self._settings, self._order, self._registry, champion)
        except (TrackingError, RepositoryBusy, TritonAway):
            raise
        except (ExportError, TrainingError) as exc:
            log.error("error: version %d of the registry is refused: %s", champion.number, exc)
            return
        if released:
            self._tell(champion, released, seen)

    def _tell(self, champion: Version, released: Released, seen: float) -> None:
        number = released.serving.version
        if released.live and Gateway(self._settings).listens():
            log.info("version %d of the registry answers as version %d, %.1f s after its alias was seen to move",
                     champion.number, number, time.monotonic() - seen)  # fmt: skip
        else:
            log.info("version %d of the registry is published as version %d", champion.number, number)
        if released.live:
            self._soaking = released.serving, time.monotonic() + self._soak_seconds

    def _was_left(self, champion: Version) -> bool:
        serving = read_serving(self._repository)
        published = find_published(self._repository, champion) if serving and serving.rolled_back else None
        return (
            published is not None
            and published.name == str(serving.rolled_back)
            and not is_serving(self._repository, serving.rolled_back)
        )

    def _end_soak(self) -> None:
        if self._soaking is None:
            return
        serving, until = self._soaking
        if not is_same(read_serving(self._repository), serving):
            self._soaking = None
        elif time.monotonic() >= until:
            self._soaking = None
            let_go(self._repository, self._settings, serving)


def watch(repository: Path, settings: Settings, order: Order, soak_seconds: float) -> None:
    """Until Ctrl-C or SIGTERM; a release that is under way then is undone."""
    watching = Watch(repository, settings, order, soak_seconds)
    with _sigterm_like_ctrl_c():
        try:
            import export.convert  # noqa: F401  torch and transformers: seconds that a release need not wait for

            log.info("watching the Champion of the registry")
            while True:
                time.sleep(watching.step())
        except KeyboardInterrupt:
            log.info("stopped watching")


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
