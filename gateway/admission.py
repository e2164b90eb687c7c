"""Two doors.  `Admission` says no to what would only wait; `Gate` keeps a short line in front of Triton.

How many texts to let in at one time follows from what the model does now, not from a number somebody chose.  By
Little's law, texts in flight = answers per second x seconds each takes, so a bound on the time is a bound on the
texts: `limit` is what the model finishes in SLOWDOWN times the time it takes for a request that is alone.  A model that
merges its requests takes about a + b·n seconds for n texts at once, and there this limit keeps at least 1 - 1/SLOWDOWN
of its capacity, however large or fast the model is.  Both figures are measured as BBR (Cardwell et al., ACM Queue 14,
2016) measures a path: the rate only while the model has enough to do, the time alone only while there is no line, for
which a line that has stood for PROBE_SECONDS is let run empty once.  That a short burst may pass while a standing line
may not is from CoDel (RFC 8289); small requests and bulk have limits of their own, as the partitions of Netflix'
concurrency-limits.

Triton's own queue has no bound and forgets nobody, so the gateway decides what enters it: at most a few full batches
at a time.  Whatever waits at the gate costs nothing when its client leaves or its deadline passes, and a canary that
goes past the gate finds Triton at most those few batches away even when the gateway is full.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from statistics import median
from time import monotonic

from gateway.errors import Overloaded

SMALL = 16  # texts of a request that is not bulk
LEAST = 64  # texts: the limit of small requests never falls below, whatever was measured
BULK_AT_ONCE = 2  # requests: one being answered, one behind it
SLOWDOWN = 12.0  # a let-in request may take so many times as long as alone
BURST_SECONDS = 0.1  # of work, and one request more, may wait beyond the limit once in a while
BURST_BACK = 0.01  # of what is answered is allowed for the next burst
STALL_SECONDS = 1.0  # without any answer, and it is not too much work that is the matter
STALL_WORK_SECONDS = 3.0  # of work that may gather in a stall
WINDOW_SECONDS = 0.5  # over which the rate is measured, at least
WINDOW_TURNS = 8  # and at least so many times what a request takes, for answers come in batches
FULL_SECONDS = 0.25  # since the limit was reached, and the model still counts as busy: it answers in batches
RATE_GAIN = 0.5  # how much of the newest window goes into the rate
ALONE_KEPT = 9  # requests, whose median is the time alone
PROBE_SECONDS = 30.0  # without a request that was alone: then the line is let run empty for
PROBES = 5  # of them (most of those kept), or for
PROBE_PATIENCE_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 30
RETRY_SPREAD = 3  # those refused together come back in so many different seconds

BATCHES_AT_TRITON = 4  # two keep one instance busy; the rest is for more instances


class Pace:
    """What the model does now, as the small requests see it: seconds when alone, texts per second when busy."""

    def __init__(self) -> None:
        self._alone: deque[float] = deque(maxlen=ALONE_KEPT)
        self._busy_rate = 0.0
        self._answered = 0
        self._window_began = monotonic()
        self.seconds_alone: float | None = None
        self.rate: float | None = None
        self.measured_at = monotonic()

    @property
    def limit(self) -> float:
        """Texts that are finished in SLOWDOWN times the time alone; LEAST until that is known."""
        return self.tolerated_seconds * self.rate if self.rate else LEAST

    @property
    def tolerated_seconds(self) -> float:
        """What a request may take when as many are let in as the limit allows."""
        if self.rate is None:
            return 0.0
        return max(SLOWDOWN * self.seconds_alone, LEAST / self.rate)

    def was_alone(self, seconds: float, now: float) -> None:
        self._alone.append(seconds)
        self.seconds_alone = median(self._alone)
        self.measured_at = now
        self._update()

    def restart(self, now: float) -> None:
        """The model is not kept busy with small requests: what it answers now says nothing about what it could."""
        self._window_began = now
        self._answered = 0

    def answered(self, texts: int, now: float) -> None:
        self._answered += texts
        seconds = now - self._window_began
        window = max(WINDOW_SECONDS, WINDOW_TURNS * self.tolerated_seconds)
        if seconds < window:
            return
        if seconds < window + STALL_SECONDS:
            rate = self._answered / seconds
            self._busy_rate += RATE_GAIN * (rate - self._busy_rate) if self._busy_rate else rate
            self._update()
        self.restart(now)

    def _update(self) -> None:
        if self.seconds_alone:
            self.rate = max(self._busy_rate, 1 / self.seconds_alone)  # one after the other it can do in any case


class Admission:
    """Counts the texts being answered, and lets in what will not have to wait too long.

    Texts, not requests: a batch of 500 is 500 times the work.  Never more than `most` at one time, except a request
    that is alone, which is let in however large.  Small requests (up to SMALL texts) are bound by the pace of the
    model; of bulk, BULK_AT_ONCE requests are let in, or more if they fit the same limit.  Neither takes the other's
    places.  While the model stands still, requests wait for it rather than being refused: a stall is not an overload.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.pace = Pace()
        self._small = 0
        self._bulk = 0
        self._bulk_requests = 0
        self._entries = 0
        self._burst = 0.0  # texts let in beyond the limit lately
        self._last_answer = monotonic()
        self._last_full = -math.inf
        self._probing_since: float | None = None
        self._probes = 0
        self._refused = 0

    @property
    def texts(self) -> int:
        return self._small + self._bulk

    @property
    def limit(self) -> int:
        """Texts of small requests let in at one time, as things are."""
        return min(self.most, round(self.pace.limit))

    @contextmanager
    def let_in(self, texts: int) -> Iterator[None]:
        """Overloaded when these texts would wait too long, else the place for them."""
        if not self.has_room(texts):
            raise self.refusal(texts)
        began = monotonic()
        alone = self.texts == 0
        self._enter(texts, began, alone)
        entry = self._entries
        answered = False
        try:
            yield
            answered = True
        finally:
            self._leave(texts)
            if answered:
                self._learn(texts, began, alone and entry == self._entries)

    def has_room(self, texts: int) -> bool:
        """Whether so many would be let in now; the same answer `let_in` acts on, for whoever can refuse earlier."""
        if self.texts == 0:
            return True
        if self._probing_since is not None and not self._probe_is_over():
            return False
        if texts > SMALL:
            kept_for_small = min(LEAST, self.most // 2)
            few = self._bulk_requests < BULK_AT_ONCE or self._bulk + texts <= self.limit
            return few and self.texts + texts <= self.most - kept_for_small
        over = min(texts, self._small + texts - self.limit)
        return self.texts + texts <= self.most and (over <= 0 or self._may_exceed(over))

    def refusal(self, texts: int) -> Overloaded:
        """The error for texts that found no room.  Each sets another of RETRY_SPREAD seconds to come back."""
        self._last_full = monotonic()
        self._begin_probe_when_due()
        wait = math.ceil(self.texts / self.pace.rate) if self.pace.rate else 1
        seconds = min(max(wait, 1), LONGEST_RETRY_SECONDS) + self._refused % RETRY_SPREAD
        self._refused += 1
        limit = self.limit if texts <= SMALL else self.most
        return Overloaded(
            f"{self.texts} texts are being answered and the limit is {limit} now, so {texts} more would wait too long; "
            f"try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )

    def _may_exceed(self, texts: int) -> bool:
        """Whether so many may be let in beyond the limit: a burst now and then, and what waits for a stall to end."""
        rate = self.pace.rate
        if self._stands_still():
            return not rate or self._small + texts <= STALL_WORK_SECONDS * rate
        return self._burst + texts <= SMALL + (BURST_SECONDS * rate if rate else LEAST)

    def _stands_still(self) -> bool:
        """Nothing is answered although there is something to answer; of bulk one cannot tell, it takes its time."""
        return not self._bulk and monotonic() - self._last_answer > STALL_SECONDS + self.pace.tolerated_seconds

    def _enter(self, texts: int, now: float, alone: bool) -> None:
        self._entries += 1
        if alone:
            self._last_answer = now  # there was nothing to answer
            if self._probing_since is None:
                self._burst = 0.0
        if texts > SMALL:
            self._bulk += texts
            self._bulk_requests += 1
        else:
            self._small += texts
            over = min(texts, self._small - self.limit)
            if over > 0 and not self._stands_still():
                self._burst += over
        if self._small >= self.limit:
            self._last_full = now
        if self._bulk or now - self._last_full > max(FULL_SECONDS, self.pace.tolerated_seconds):
            self.pace.restart(now)

    def _leave(self, texts: int) -> None:
        if texts > SMALL:
            self._bulk -= texts
            self._bulk_requests -= 1
        else:
            self._small -= texts

    def _learn(self, texts: int, began: float, was_alone: bool) -> None:
        now = monotonic()
        self._last_answer = now
        if texts > SMALL:
            return
        self._burst = max(0.0, self._burst - BURST_BACK * texts)
        self.pace.answered(texts, now)
        if was_alone:
            self.pace.was_alone(now - began, now)
            self._probes += 1

    def _begin_probe_when_due(self) -> None:
        now = monotonic()
        if self._probing_since is None and not self._bulk and now - self.pace.measured_at > PROBE_SECONDS:
            self._probing_since, self._probes = now, 0

    def _probe_is_over(self) -> bool:
        now = monotonic()
        if self._probes < PROBES and now - self._probing_since < PROBE_PATIENCE_SECONDS:
            return False
        self._probing_since = None
        self.pace.measured_at = now  # also where it was in vain: the next is due as much later
        return True


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
