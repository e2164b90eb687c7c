"""Follows the Champion of the registry: `python -m export --watch` releases it whenever it changes.

An MLflow that is away is asked again, less and less often. A Champion that was refused, or that a rollback has left, is
not tried again until the alias moves; one that met another command, a full disk, a repository that is away, or no
Triton, is. One that takes Triton away with it three times in a row is refused.
"""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export.build import Order
from export.champion import find_published, release_champion
from export.errors import (
    ExportError,
    RepositoryAway,
    RepositoryBusy,
    RepositoryError,
    RepositoryFull,
    TritonAway,
    TritonLost,
)
from export.gateway import Gateway
from export.publish import gone
from export.release import Released, is_same, let_go, serves_still
from export.serving import Serving, read_serving
from export.settings import Settings
from export.triton import Triton
from training.errors import TrackingError, TrainingError
from training.registry import Registry, Version
from training.settings import read_settings as read_training_settings

log = logging.getLogger("export.watch")

POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
LOSSES = 3  # so often Triton may go away during the proof of a Champion
PASSING = (TrackingError, RepositoryBusy, RepositoryAway, RepositoryFull, TritonAway)


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
        self._known = False  # the repository has been seen, so it is never made anew
        self._looked = False
        self._seen: tuple[int, str] | None = None  # the Champion at the last look
        self._as_it_moved: Serving | None = None  # what served when the alias was seen to move
        self._losses = 0  # of Triton, during the proof of this Champion

    def step(self) -> float:
        try:
            self._look_at_repository()
            self._end_soak()
            champion = self._registry.champion()
            self._look_at_alias((champion.number, champion.run_id) if champion else None)
            if champion and self._seen != self._done:
                self._release(champion)
                self._done = self._seen
        except (*PASSING, RepositoryError) as exc:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            if str(exc) != self._complaint:
                log.warning("%s; asking again", exc)
            self._complaint = str(exc)
        else:
            if self._complaint:
                log.info("going on")
            self._pause, self._complaint = POLL_SECONDS, ""
        return self._pause

    def _look_at_repository(self) -> None:
        """Raises:
        RepositoryError: it cannot be read, or was there and is gone.
        """
        there = read_serving(self._repository) is not None
        if self._known and not there:
            raise RepositoryAway(gone(self._repository))
        self._known = there

    def _look_at_alias(self, found: tuple[int, str] | None) -> None:
        """A move that is seen is meant, whatever a rollback has left before it."""
        if self._looked and found == self._seen:
            return
        self._as_it_moved = read_serving(self._repository) if self._looked else None
        self._looked, self._seen, self._losses = True, found, 0
        self._done = None

    def _release(self, champion: Version) -> None:
        """A refusal is told, and is the end of it for this Champion."""
        seen = time.monotonic()
        try:
            if self._was_left(champion):
                log.info("version %d of the registry was rolled back here, and is not released again", champion.number)
                return
            self._wait_for_lost_triton()
            released = release_champion(
                self._repository, self._settings, self._order, self._registry, champion, known=self._known
            )
        except TritonLost as exc:
            self._losses += 1
            if self._losses < LOSSES:
                raise
            log.error("error: version %d of the registry is refused, as Triton went away each of the %d times it was "
                      "to prove it: %s", champion.number, LOSSES, exc)  # fmt: skip
            return
        except PASSING:
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
        """By a rollback before the watch began, or since the alias was seen to move."""
        serving = read_serving(self._repository)
        if serving is None or not serving.rolled_back:
            return False
        if self._as_it_moved and is_same(serving, self._as_it_moved):
            return False
        published = find_published(self._repository, champion)
        return published is not None and published.name == str(serving.rolled_back)

    def _wait_for_lost_triton(self) -> None:
        """Where no gateway runs, a Triton that is restarting would be taken for none at all.

        Raises:
            TritonAway: it went away during a proof, and is not back.
        """
        if self._losses:
            with Triton(self._settings) as triton:
                if not triton.listens():
                    raise TritonAway(f"Triton at {triton.address} went away during a proof, and is not back")

    def _end_soak(self) -> None:
        if self._soaking is None:
            return
        serving, until = self._soaking
        if not serves_still(self._repository, serving):
            self._soaking = None
        elif time.monotonic() >= until:
            with suppress(RepositoryBusy):  # whoever is at work leaves sooner or later
                let_go(self._repository, self._settings, serving)
                self._soaking = None


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
