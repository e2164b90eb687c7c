"""Two doors.  `Admission` says no to what would only wait; `Gate` keeps a short line in front of Triton.

Triton's own queue has no bound and forgets nobody, so the gateway decides what enters it: at most a few full batches
at a time.  Whatever waits at the gate costs nothing when its client leaves or its deadline passes, and a canary that
goes past the gate finds Triton at most those few batches away even when the gateway is full.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from gateway.errors import Overloaded

BATCHES_AT_TRITON = 4  # two keep one instance busy; the rest is for more instances


class Admission:
    """Counts the texts being answered.  Texts, not requests: a batch of 500 is 500 times the work."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.texts = 0

    @contextmanager
    def let_in(self, texts: int) -> Iterator[None]:
        if self.texts + texts > self.limit:
            raise Overloaded(
                f"{self.texts} texts are being answered and the limit is {self.limit}, so these {texts} have to wait; "
                "try again in a second"
            )
        self.texts += texts
        try:
            yield
        finally:
            self.texts -= texts


class Gate:
    """First come, first served, by rows: at most `BATCHES_AT_TRITON` full batches are past it."""

    def __init__(self) -> None:
        self._rows = 0
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def passed(self, rows: int, max_batch_size: int) -> AsyncIterator[None]:
        await self._enter(rows, BATCHES_AT_TRITON * max_batch_size)
        try:
            yield
        finally:
            self._rows -= rows
            self._call_next()

    async def _enter(self, rows: int, limit: int) -> None:
        if not self._waiting and self._fits(rows, limit):
            self._rows += rows
            return
        turn = asyncio.get_running_loop().create_future()
        place = (rows, limit, turn)
        self._waiting.append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # whoever left in this very moment has skipped it already
                    self._waiting.remove(place)
            else:  # called in the very moment it gave up
                self._rows -= rows
            self._call_next()
            raise

    def _fits(self, rows: int, limit: int) -> bool:
        return self._rows == 0 or self._rows + rows <= limit

    def _call_next(self) -> None:
        while self._waiting and self._fits(*self._waiting[0][:2]):
            rows, _, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._rows += rows
                turn.set_result(None)
