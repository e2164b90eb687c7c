"""The Champion in service: the one bundle that answers, proven through Triton, switched when serving.json changes.

A bundle goes live only after it was proven (proof.py).  Until the first one is, nothing is served; later a bundle that
fails leaves the old one in place, and one clear sentence in the log.  While serving.json names a version that is not
live, it is tried again, so Triton may come up late.  A new look at serving.json never waits for what an earlier one
began: a rollback overtakes a release that hangs.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from gateway.bundle import Bundle, Serving, read_serving, serving_path
from gateway.candidate import Candidate
from gateway.errors import BundleBroken, ModelMismatch, ModelUnavailable, RequestError
from gateway.proof import check_golden_row
from gateway.shelf import Shelf

POLL_SECONDS = 0.05  # how soon a changed serving.json is seen; a look costs a tenth of a millisecond
RETRY_SECONDS = 1.0  # how soon a bundle that Triton would not confirm is tried again
REREAD_SECONDS = 5.0  # how soon a bundle that is broken, or cannot be read now, is read again: hashing is work
READY_FOR_SECONDS = 1.0  # one canary answers every readiness question of a second

log = logging.getLogger(__name__)


class Champion:
    """Which bundle answers.  `run` keeps it up to date; `live` is read once per request."""

    def __init__(self, shelf: Shelf, candidate: Candidate, bundle: Bundle, on_change: Callable[[Bundle], None]) -> None:
        self._shelf = shelf
        self._candidate = candidate
        self._on_change = on_change
        self._named = bundle  # what will answer, as far as its files could be read
        self._proven: Bundle | None = None
        self._since = ""
        self._wanted: Serving | None = None  # what serving.json asks for
        self._seen: tuple[int, ...] = ()
        self._looking = asyncio.Lock()
        self._looked_at = 0.0
        self._attempt: asyncio.Task[None] | None = None
        self._next_try = 0.0
        self._in_doubt = False
        self._last_sentence = ""
        self._canary = asyncio.Lock()
        self._canary_until = 0.0
        self._canary_error: ModelUnavailable | None = None

    @property
    def named(self) -> Bundle:
        """The bundle to name in headers: the live one, or before there is one, the one it will be."""
        return self._proven or self._named

    @property
    def live(self) -> Bundle:
        """The bundle that answers; ModelUnavailable before the first one is proven."""
        if self._proven is None:
            raise ModelUnavailable("The model is not ready yet; try again in a moment")
        return self._proven

    @property
    def since(self) -> str:
        """When the live version was put in service, by serving.json (ISO 8601)."""
        return self._since

    @property
    def answering(self) -> str | None:
        """The live version; None before the first one is proven."""
        return self._proven and self._proven.version

    @property
    def serving(self) -> Serving | None:
        """serving.json as it was last read."""
        return self._wanted

    async def run(self) -> None:
        """Watch serving.json and Triton for ever."""
        try:
            while True:
                try:
                    await self._look()
                    self._try(now=False)
                except Exception:
                    log.exception("watching %s failed; trying again", serving_path(self._shelf.repository))
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._candidate.close()
            if self._attempt:
                self._attempt.cancel()

    async def refresh(self) -> None:
        """Look at serving.json now, and wait until what it asks for was tried once."""
        await self._look()
        self._try(now=True)
        if self._attempt:
            await asyncio.wait({self._attempt})

    def doubt(self) -> None:
        """Triton failed somebody: it may have been replaced, so the live bundle has to be proven again."""
        self._in_doubt = True

    async def check_ready(self) -> Bundle:
        """The live bundle, if a golden row through Triton came out right within the last second.

        One canary at a time: whoever asks meanwhile gets its result.
        """
        async with self._canary:
            if time.monotonic() >= self._canary_until:
                asked = self.live
                error = await self._send_canary(asked)
                if asked is self._proven:  # else it says nothing of the version that answers by now
                    self._canary_error = error
                    self._canary_until = time.monotonic() + READY_FOR_SECONDS
        if self._canary_error:
            raise ModelUnavailable(self._canary_error.detail)
        return self.live

    async def _send_canary(self, bundle: Bundle) -> ModelUnavailable | None:
        try:
            await check_golden_row(self._shelf.triton, bundle)
        except ModelMismatch:
            self.doubt()
            return ModelUnavailable("The model gives other answers than when it was published")
        except RequestError:
            self.doubt()
            return ModelUnavailable("The model server does not answer; try again in a moment")
        return None

    async def _look(self) -> None:
        """Read serving.json if it was replaced.  Callers that arrive while another is looking share the next look."""
        arrived = time.monotonic()
        async with self._looking:
            if self._looked_at >= arrived:
                return
            self._looked_at = time.monotonic()
            try:  # in a thread, so that a file system that hangs holds up nobody but this look
                signature, serving = await asyncio.to_thread(_read_if_new, self._shelf.repository, self._seen)
            except BundleBroken as error:
                self._say(f"keeping version {self.named.version}: {error}")
                return
            self._seen = signature
            if serving:
                self._want(serving)

    def _want(self, serving: Serving) -> None:
        before, self._wanted = self._wanted, serving
        if before is None or (before.model, before.version) != (serving.model, serving.version):
            self._next_try = 0.0
            if self._attempt:
                self._attempt.cancel()
                self._attempt = None
        if self._is_live(serving):
            self._since = serving.since.isoformat()
        self._candidate.follow(serving)

    def _is_live(self, serving: Serving) -> bool:
        live = self._proven
        return live is not None and (live.model, live.version) == (serving.model, str(serving.version))

    def _try(self, *, now: bool) -> None:
        """Begin an attempt at what serving.json asks for, if there is need of one and none is under way.

        `now` also tries again what failed a moment ago.
        """
        if self._wanted is None or (self._attempt and not self._attempt.done()):
            return
        if self._is_live(self._wanted) and not self._in_doubt:
            return
        if now or time.monotonic() >= self._next_try:
            self._attempt = asyncio.create_task(self._bring_up(self._wanted))

    async def _bring_up(self, wanted: Serving) -> None:
        in_doubt = self._is_live(wanted)
        try:
            if in_doubt:
                self._in_doubt = False
                self._next_try = time.monotonic() + RETRY_SECONDS  # a doubt that recurs is not looked into all the time
                bundle = self.live
                self._shelf.distrust(bundle)
            else:
                bundle = await self._shelf.fetch(wanted.model, wanted.version)
                self._named = bundle
            await self._shelf.prove(bundle)
        except BundleBroken as error:
            self._next_try = time.monotonic() + REREAD_SECONDS
            self._say(f"keeping version {self.named.version}: {error}")
        except ModelMismatch as error:
            if in_doubt:
                self._proven = None
            self._postpone(f"version {wanted.version} will not serve: {error}")
        except RequestError as error:
            self._in_doubt = in_doubt
            address = self._shelf.triton.address
            self._postpone(f"version {wanted.version} is waiting for Triton at {address}: {error.cause or error}")
        except Exception:
            self._next_try = time.monotonic() + REREAD_SECONDS
            log.exception("version %s could not be brought up; trying again", wanted.version)
        else:
            self._switch(bundle)

    def _switch(self, bundle: Bundle) -> None:
        """From here on the next request is answered by this bundle: tokenizer, labels and version in one assignment."""
        if self._proven is not bundle:
            log.info("version %s of %s answers", bundle.version, bundle.model)
        self._last_sentence = ""
        self._proven = bundle
        self._since = self._wanted.since.isoformat()
        self._canary_error, self._canary_until = None, 0.0
        self._on_change(bundle)

    def _postpone(self, sentence: str) -> None:
        self._next_try = time.monotonic() + RETRY_SECONDS
        still = f"; version {self._proven.version} goes on" if self._proven else ""
        self._say(sentence + still)

    def _say(self, sentence: str) -> None:
        """Log a sentence, once while it stays true."""
        if sentence != self._last_sentence:
            log.error(sentence)
            self._last_sentence = sentence


def _read_if_new(repository: Path, seen: tuple[int, ...]) -> tuple[tuple[int, ...], Serving | None]:
    """What tells one serving.json from the next, and its content if it is not the one `seen`; BundleBroken."""
    try:
        status = os.stat(serving_path(repository))
    except OSError:
        read_serving(repository)  # says what is the matter
        return (), None
    signature = status.st_ino, status.st_mtime_ns, status.st_size
    return signature, None if signature == seen else read_serving(repository)
