"""The batch job: many texts through the gateway, each answered once, whatever happens on the way.

Texts go out in order, several requests at a time.  A request that got no answer is asked again: after a pause where
the gateway is busy or away, in halves where it was too much at once, without the one text that was refused.  Answers
are kept by the place of their text, so nothing is lost or doubled.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Literal

from ui.errors import Busy, Failed, GatewayAway, GatewayError, TextRefused
from ui.gateway import Gateway, Prediction

REQUESTS_AT_ONCE = 2  # so many of bulk does the gateway let in, whatever else it does
TEXTS_AT_ONCE = 256
BYTES_AT_ONCE = 400_000  # of text; a request may have 1,000,000, and JSON escapes make it longer
AWAY_SECONDS = 2.0  # between two tries to reach a gateway that is gone
FAILURES = 5  # texts in a row: then it is the gateway that fails, and not the texts
RATE_SECONDS = 10.0  # of the latest work, from which the remaining time follows

State = Literal["ready", "running", "paused", "stopped", "done"]


class Run:
    """`await run.work()` works until all is done, `stop` is called, or an error stays that waiting does not mend; after
    the latter two it goes on where it was when called again.

    ``answers``: by place, with the version that gave them; ``refused``: places set aside, and why.  ``waiting_for`` is
    the error that it waits out now, until ``again_at`` (monotonic seconds).
    """

    def __init__(self, gateway: Gateway, texts: Sequence[str], lane: asyncio.Semaphore) -> None:
        """``lane`` has REQUESTS_AT_ONCE places, for all runs of a page together: they take turns."""
        self.texts = texts
        self.answers: dict[int, tuple[Prediction, str]] = {}
        self.refused: dict[int, GatewayError] = {}
        self.state: State = "ready"
        self.waiting_for: GatewayError | None = None
        self.again_at = 0.0
        self._gateway = gateway
        self._lane = lane
        self._pending: deque[list[int]] = deque(_chunks(texts))
        self._go = asyncio.Event()
        self._go.set()
        self._work: asyncio.Task[None] | None = None
        self._marks: deque[tuple[float, int]] = deque()
        self._most = TEXTS_AT_ONCE
        self._failed: list[int] = []  # places set aside since the last answer

    @property
    def total(self) -> int:
        return len(self.texts)

    @property
    def done(self) -> int:
        """Texts answered or set aside."""
        return len(self.answers) + len(self.refused)

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the latest RATE_SECONDS; None where that is not known."""
        if self.state != "running" or self.waiting_for or len(self._marks) < 2:
            return None
        (began, done_then), (latest, done) = self._marks[0], self._marks[-1]
        if done == done_then or latest == began:
            return None
        return (self.total - done) * (latest - began) / (done - done_then)

    async def work(self) -> None:
        """Raises NotAllowed, and Failed where the gateway fails at one text after the other."""
        self.state = "running"
        self._go.set()
        self._marks.clear()
        self._mark()
        self._work = asyncio.ensure_future(self._work_at_once())
        try:
            await asyncio.wait([self._work])
            if not self._work.cancelled():
                self._work.result()
        finally:
            self._work.cancel()
            self.waiting_for = None
            self.state = "done" if self.done == self.total else "stopped"

    def pause(self) -> None:
        """What is on its way is still taken in; nothing more is sent."""
        if self.state == "running":
            self.state = "paused"
            self._go.clear()

    def resume(self) -> None:
        if self.state == "paused":
            self.state = "running"
            self._marks.clear()
            self._mark()
            self._go.set()

    def stop(self) -> None:
        """At once; what is on its way is forgotten, and asked again if the work goes on."""
        if self._work:
            self._work.cancel()

    async def _work_at_once(self) -> None:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(REQUESTS_AT_ONCE):
                    workers.create_task(self._take_turns())
        except ExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _take_turns(self) -> None:
        while True:
            await self._go.wait()
            async with self._lane:
                if not self._go.is_set():
                    continue
                if not self._pending:
                    return
                with self._taken() as chunk:
                    pause = await self._ask(chunk)
            if pause:
                await asyncio.sleep(pause)

    @contextmanager
    def _taken(self) -> Iterator[list[int]]:
        """The next chunk; what of it has found neither answer nor refusal goes back to the front."""
        chunk = self._pending.popleft()
        if len(chunk) > self._most:
            self._split(chunk, self._most)
        try:
            yield chunk
        finally:
            left = [place for place in chunk if place not in self.answers and place not in self.refused]
            if left:
                self._pending.appendleft(left)

    async def _ask(self, chunk: list[int]) -> float:
        """Ask for the chunk; return the seconds to wait before the next question."""
        try:
            answer = await self._gateway.predict_batch([self.texts[place] for place in chunk])
        except TextRefused as error:
            self._set_aside_or_halve(chunk, error, error.row)
        except Failed as error:
            self._count_failure(chunk, error)
            self._set_aside_or_halve(chunk, error)
        except Busy as error:
            if error.code == "deadline_exceeded":
                self._most = max(1, len(chunk) // 2)
            return self._wait(error, error.retry_after)
        except GatewayAway as error:
            return self._wait(error, AWAY_SECONDS)
        else:
            for place, prediction in zip(chunk, answer.predictions, strict=True):
                self.answers[place] = (prediction, answer.version)
            self.waiting_for = None
            self._failed.clear()
            self._mark()
        return 0.0

    def _set_aside_or_halve(self, chunk: list[int], error: GatewayError, row: int | None = None) -> None:
        if row is None and len(chunk) > 1:
            self._split(chunk, len(chunk) // 2)
        else:
            self.refused[chunk[row or 0]] = error

    def _split(self, chunk: list[int], size: int) -> None:
        """What is beyond ``size`` becomes the next chunk."""
        self._pending.appendleft(chunk[size:])
        del chunk[size:]

    def _count_failure(self, chunk: list[int], error: Failed) -> None:
        if len(chunk) > 1:
            return
        self._failed.append(chunk[0])
        if len(self._failed) < FAILURES:
            return
        for place in self._failed:  # they are asked again when the work goes on
            if self.refused.pop(place, None):
                self._pending.appendleft([place])
        self._failed.clear()
        raise error

    def _wait(self, error: GatewayError, seconds: float) -> float:
        self.waiting_for = error
        self.again_at = monotonic() + seconds
        self._marks.clear()
        return seconds

    def _mark(self) -> None:
        now = monotonic()
        self._marks.append((now, self.done))
        while now - self._marks[0][0] > RATE_SECONDS:
            self._marks.popleft()


def _chunks(texts: Sequence[str]) -> Iterator[list[int]]:
    """Places in order, up to TEXTS_AT_ONCE and BYTES_AT_ONCE together."""
    chunk: list[int] = []
    size = 0
    for place, text in enumerate(texts):
        length = len(text.encode())
        if chunk and (len(chunk) == TEXTS_AT_ONCE or size + length > BYTES_AT_ONCE):
            yield chunk
            chunk, size = [], 0
        chunk.append(place)
        size += length
    if chunk:
        yield chunk
