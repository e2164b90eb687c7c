"""One turn of load on one door, and the figures of it."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import uvloop

from loadtest.doors import Door, Failed, Split
from loadtest.pace import at_rate, in_turn

PERCENTILES = (50, 75, 90, 95, 99, 99.9)


class Answered(NamedTuple):
    """Moments of time.monotonic(); ``failure`` is empty for an answer."""

    due: float
    done: float
    failure: str
    split: Split


@dataclass(frozen=True)
class Turn:
    """What happened to the requests that were answered (closed loop) or due (open loop) between ``begin`` and ``end``.

    One of ``callers`` (closed loop) and ``rate`` (requests per second, open loop) is None.
    """

    door: Door
    callers: int | None
    rate: float | None
    begin: float
    end: float
    requests: list[Answered]

    @property
    def answered(self) -> list[Answered]:
        return [request for request in self.requests if not request.failure]

    @property
    def failures(self) -> Counter[str]:
        return Counter(request.failure for request in self.requests if request.failure)

    @property
    def per_second(self) -> float:
        """Requests answered per second; of an open loop those that were due, so at most its rate."""
        return len(self.answered) / (self.end - self.begin)

    @property
    def milliseconds(self) -> np.ndarray:
        """FLOAT [answers], from due to the end of the answer."""
        return np.array([(request.done - request.due) * 1e3 for request in self.answered])


def run(
    door: Door, seconds: float, *, callers: int | None = None, rate: float | None = None, settle: float = 1.0
) -> Turn:
    """``callers``, or a ``rate``, for ``settle`` and then ``seconds``; the questions begin elsewhere each time."""
    return uvloop.run(_run(door, seconds, callers, rate, settle))


async def _run(door: Door, seconds: float, callers: int | None, rate: float | None, settle: float) -> Turn:
    start = int(time.monotonic() * 1e3) % len(door.questions)
    questions = itertools.cycle(door.questions[start:] + door.questions[:start])
    requests: list[Answered] = []
    async with door.opened() as ask:

        async def timed(due: float) -> None:
            failure, split = "", None
            try:
                split = await ask(next(questions))
            except Failed as exc:
                failure = str(exc)
                await asyncio.sleep(0.01)  # a door that refuses at once is not to be hammered
            requests.append(Answered(due, time.monotonic(), failure, split))

        begin = time.monotonic() + settle
        end = begin + seconds

        def stopped() -> bool:
            return time.monotonic() >= end

        await (in_turn(timed, callers, stopped) if rate is None else at_rate(timed, rate, stopped))
    place = Answered._fields.index("done" if rate is None else "due")
    return Turn(door, callers, rate, begin, end, [each for each in requests if begin <= each[place] < end])


def figures(turns: Sequence[Turn]) -> dict:
    """The turns of one door under one load as one row of the report; times in milliseconds.

    ``texts_per_second`` is the median of the turns, and ``turns`` has each; percentiles are of all answers together.
    """
    first = turns[0]
    rates = [turn.per_second * first.door.texts for turn in turns]
    times = np.concatenate([turn.milliseconds for turn in turns])
    failures = sum((turn.failures for turn in turns), Counter())
    splits = [request.split for turn in turns for request in turn.answered if request.split]
    percentiles = np.percentile(times, PERCENTILES) if len(times) else [None] * len(PERCENTILES)
    return {
        "door": first.door.name,
        "callers": first.callers,
        "rate": first.rate,
        "texts_per_request": first.door.texts,
        "requests": sum(len(turn.requests) for turn in turns),
        "failures": dict(failures),
        "texts_per_second": float(np.median(rates)),
        "turns": [float(rate) for rate in rates],
        "milliseconds": {
            f"p{q:g}": value if value is None else float(value)
            for q, value in zip(PERCENTILES, percentiles, strict=True)
        },
        "curve": np.percentile(times, range(101)).tolist() if len(times) else [],
        "split": {stage: float(np.mean([split[stage] for split in splits])) for stage in splits[0]} if splits else None,
    }
