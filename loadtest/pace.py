"""When requests are sent: by callers who each wait for their answer, or at a constant rate, answered or not."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

Ask = Callable[[float], Awaitable[None]]  # given the time.monotonic() at which the request is due; must not raise

STOP_CHECK_SECONDS = 0.1
TICK_SECONDS = 0.001  # the clock of the event loop; waiting for less would spin, at the cost of the server beside it
MOST_OPEN = 4096  # requests under way in one process: beyond them arrivals wait here, and that is lag


async def in_turn(ask: Ask, callers: int, stopped: Callable[[], bool]) -> None:
    """A closed loop: each caller asks its next question when the last is answered."""

    async def caller() -> None:
        while not stopped():
            await ask(time.monotonic())

    await asyncio.gather(*(caller() for _ in range(callers)))


async def at_rate(ask: Ask, rate: float, stopped: Callable[[], bool]) -> None:
    """An open loop: ``rate`` requests per second fall due, whatever happens to those before."""
    open_ = asyncio.Semaphore(MOST_OPEN)

    async def ask_and_leave(due: float) -> None:
        try:
            await ask(due)
        finally:
            open_.release()

    begin = time.monotonic()
    async with asyncio.TaskGroup() as asked:
        for number in itertools.count():
            due = begin + number / rate
            while (wait := due - time.monotonic()) > 0 and not stopped():
                await asyncio.sleep(min(max(wait, TICK_SECONDS), STOP_CHECK_SECONDS))
            if stopped():
                return
            await open_.acquire()
            asked.create_task(ask_and_leave(due))
            if number % 8 == 0:
                await asyncio.sleep(0)  # a generator that is behind still takes its answers
