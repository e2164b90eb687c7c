"""Small requests that become ready in the same turn of the event loop ask Triton in one call.

Triton merges calls into batches, but each still costs its call: on this side, at Triton and on the way to the stub and
back, for a text of the shipped model together more than the model itself.  Nobody waits for anybody: who comes while no
call is under way leaves at once, the others at the end of the turn that made them ready.  The more there is to do, the
longer the turns, and the more go together.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gateway.admission import SMALL
from gateway.bundle import Bundle
from gateway.triton import Metadata, Triton, finite


class Party(NamedTuple):
    """Some of the rows of a call, and who waits for their logits."""

    rows: slice
    logits: asyncio.Future[np.ndarray]


@dataclass(slots=True, eq=False)
class Call:
    bundle: Bundle
    rows: list[list[int]] = field(default_factory=list)
    parties: list[Party] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    until: float = 0.0
    waiting: int = 0
    task: asyncio.Task[None] | None = None

    def join(self, rows: list[list[int]], until: float, request_id: str) -> asyncio.Future[np.ndarray]:
        party = Party(slice(len(self.rows), len(self.rows) + len(rows)), asyncio.get_running_loop().create_future())
        self.rows += rows
        self.parties.append(party)
        self.request_ids.append(request_id)
        self.until = max(self.until, until)
        self.waiting += 1
        return party.logits

    def leave(self) -> None:
        """The last to leave ends the call, at Triton too."""
        self.waiting -= 1
        if not self.waiting and self.task:
            self.task.cancel()


class Coalescer:
    """`sent(rows)` is told of each call."""

    def __init__(self, triton: Triton, sent: Callable[[int], None]) -> None:
        self._triton = triton
        self._sent = sent
        self._under_way = 0
        self._gathering: dict[Bundle, Call] = {}  # of this turn

    async def logits(
        self, bundle: Bundle, rows: list[list[int]], *, until: float, request_id: str, metadata: Metadata
    ) -> np.ndarray:
        """As `Triton.logits`.  What has metadata goes alone, for that is of one request."""
        if metadata or not self._under_way or len(rows) > min(SMALL, bundle.max_batch_size):
            return finite(await self._ask(bundle, rows, until, request_id, metadata))
        call = self._gathering.get(bundle)
        if call is None or len(call.rows) + len(rows) > bundle.max_batch_size:
            call = self._gathering[bundle] = Call(bundle)
            asyncio.get_running_loop().call_soon(self._send, call)
        logits = call.join(rows, until, request_id)
        try:
            return finite(await logits)
        finally:
            call.leave()

    def _send(self, call: Call) -> None:
        if self._gathering.get(call.bundle) is call:
            del self._gathering[call.bundle]
        if call.waiting:
            call.task = asyncio.create_task(self._answer(call))

    async def _answer(self, call: Call) -> None:
        try:
            # In Triton's log and traces the call has the ids of all of them.
            logits = await self._ask(call.bundle, call.rows, call.until, ",".join(call.request_ids), ())
        except Exception as error:
            for party in call.parties:
                if not party.logits.done():
                    party.logits.set_exception(error)
        else:
            for party in call.parties:
                if not party.logits.done():
                    party.logits.set_result(logits[party.rows])

    async def _ask(
        self, bundle: Bundle, rows: list[list[int]], until: float, request_id: str, metadata: Metadata
    ) -> np.ndarray:
        self._sent(len(rows))
        self._under_way += 1
        try:
            return await self._triton.ask(bundle, rows, until=until, request_id=request_id, metadata=metadata)
        finally:
            self._under_way -= 1
