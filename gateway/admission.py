"""Two doors.  `Admission` says no to what would only wait; `Gate` keeps a short line in front of Triton.

How many texts to let in at one time follows from what the model does now, not from a number somebody chose.  By
Little's law, texts in flight = answers per second x seconds each takes, so a bound on the time is a bound on the
texts: `limit` is what the model finishes in WAIT_SECONDS, and at least LEAST, below which a model that merges its
requests would run half empty.  The rate is measured as BBR (Cardwell et al., ACM Queue 14, 2016) measures that of a
path: only while there is enough to do, and the best of the last windows counts, as whatever disturbs makes it smaller.
Small requests and bulk have limits of their own, as the partitions of Netflix' concurrency-limits.

Few callers are never refused: each connection asks one thing at a time, so no more can wait than there are connections,
and that is soon over.  To refuse one of them would only bring it back at once.

Beyond that a line may have two causes.  Where more comes than the model can do, whoever waits makes all others wait,
for as long as that lasts: the rest is refused at once.  Where no more comes than it usually can, it is the model that
is slower for a moment (a release loads beside it, another process has the cores), and the line goes by itself: it may
grow for a while, and the longer the longer the model is silent.

Triton's own queue has no bound and forgets nobody, so the gateway decides what enters it: at most a few full batches
at a time, and bulk through a gate of its own, so that its line is nobody else's.  Whatever waits at a gate costs
nothing when its client leaves or its deadline passes, and a canary that goes past the gates finds Triton at most those
few batches away even when the gateway is full.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from time import monotonic

from gateway.errors import Overloaded

SMALL = 16  # texts of a request that is not bulk
LEAST = 32  # texts: the limit of small requests never falls below, whatever was measured
BULK_AT_ONCE = 2  # requests of any size: one being answered, one behind it
BULK_TEXTS = 256  # of more but smaller ones: what those two have at Triton and at the gate (predict.CHUNKS_AT_ONCE)
BULK_SECONDS = 1.0  # of work of bulk, which waits behind bulk only and has the time
BULK_FIRST = 2048  # texts, where it is not known yet how much that is
WAIT_SECONDS = 0.05  # a let-in request may take: a good deal longer than alone, and still soon
FEW_SECONDS = 0.2  # of work: callers that could not wait longer even if all asked at one time are few
FEW = 128  # callers, where that is not known yet
CALLERS_SECONDS = 10.0  # in which, or in twice that, a connection has to have asked to count as a caller
MOST_CALLERS = 10_000  # that are told apart
MANY_SECONDS = 60.0  # since there were too many to be few; fewer may ask at one time because the others are refused
PATIENCE_SECONDS = 0.25  # of work may wait beyond the limit, when it is the model that is slow
LINE_SECONDS = 8.0  # for so long; then it is not for a moment that it is slow
CROWD = 1.5  # times the pace of the model, and it is not the model that is slow
CROWD_SECONDS = 0.2  # over which it is looked at how much comes, at least
HALT_SECONDS = 0.25  # of silence may have been a halt: of the machine, of a garbage collector, of the callers
CROWD_TEXTS = 16  # and so many texts at the pace of the model
SILENCE_SECONDS = 0.2  # without any answer, beyond what two turns take, and what has gathered may stay until it is gone
STALL_SECONDS = 1.0  # without any answer, and it is not too much work that is the matter
STALL_WORK_SECONDS = 3.0  # of work that may gather in a stall
WINDOW_SECONDS = 1.0  # over which the rate is measured, at least
WINDOW_TURNS = 8  # and at least so many times what a request may take, for answers come in batches
WINDOW_WAITS = 4  # and what one did take: so much of a window passes before an answer of it counts
FULL_SECONDS = 0.25  # since the limit was reached, and the model still counts as busy: it answers in batches
RATE_WINDOWS = 10  # of which the best is the rate
EXPECTED_MOST = LEAST // 2  # places promised at one time, so that a crowd of slow bodies does not take all
EXPECTED_SECONDS = 0.25  # after which whoever passed the door is not coming: its body is late, or was no prediction
LONGEST_RETRY_SECONDS = 30
RETRY_SPREAD = 3  # those refused together come back in so many different seconds

BATCHES_AT_TRITON = 4  # two keep one instance busy; the rest is for more instances
BULK_AT_TRITON = 2  # batches: what a small request finds in front of it there


class Pace:
    """Texts per second the model answers to requests of one kind when it has enough to do; None until that was seen.

    A window that took ``stall_seconds`` longer than it should says nothing.
    """

    def __init__(self, stall_seconds: float) -> None:
        self.rate: float | None = None
        self._stall_seconds = stall_seconds
        self._rates: deque[float] = deque(maxlen=RATE_WINDOWS)
        self._longest = 0.0  # of the seconds that answers took in this window
        self._answered = 0
        self._idle_seconds = 0.0
        self._window_began = monotonic()

    @property
    def limit(self) -> float:
        """Texts that are finished in WAIT_SECONDS; LEAST until that is known."""
        return max(LEAST, WAIT_SECONDS * self.rate) if self.rate else LEAST

    @property
    def tolerated_seconds(self) -> float:
        """What a request takes when as many are let in as the limit allows."""
        return self.limit / self.rate if self.rate else 0.0

    def restart(self, now: float) -> None:
        """The model is not kept busy with small requests: what it answers now says nothing about what it could."""
        self._window_began = now
        self._idle_seconds = 0.0
        self._answered = 0
        self._longest = 0.0

    def idled(self, since: float, now: float) -> None:
        """There was nothing to answer: that time is no part of the window."""
        self._idle_seconds += now - max(since, self._window_began)

    def answered(self, texts: int, came: float, now: float) -> None:
        """Texts that were let in at `came`.

        What came before the window may have been finished before it: after a moment in which this process had no time
        to look, answers lie in a heap.  Only the first estimate counts it, because any is better than none.
        """
        if came >= self._window_began or not self.rate:
            self._answered += texts
        self._longest = max(self._longest, now - came)
        seconds = now - self._window_began - self._idle_seconds
        window = WINDOW_SECONDS
        if self.rate:
            window = max(window, WINDOW_TURNS * self.tolerated_seconds, WINDOW_WAITS * self._longest)
        if seconds < window:
            return
        if seconds < window + self._stall_seconds:
            self._rates.append(self._answered / seconds)
            self.rate = max(self._rates)
        self.restart(now)


class Arrivals:
    """Texts of small requests per second that come, let in or not, over this window and the one before.

    Where nothing came for a moment, the machine or the callers may have stood still, and what comes next has gathered
    meanwhile: that moment, up to HALT_SECONDS, is part of the window that begins then.
    """

    def __init__(self) -> None:
        self._began = monotonic()
        self._ends = self._began + CROWD_SECONDS
        self._count = self._before = 0
        self._seconds_before = CROWD_SECONDS

    def came(self, texts: int, now: float, window: float) -> None:
        """``window`` in seconds."""
        if now >= self._ends:
            self._before, self._seconds_before = self._count, self._ends - self._began
            self._began, self._ends, self._count = now - min(now - self._ends, HALT_SECONDS), now + window, 0
        self._count += texts

    def rate(self, now: float) -> float:
        return (self._before + self._count) / (self._seconds_before + now - self._began)


class Callers:
    """How many connections asked lately, told apart by their numbers."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._before: set[int] = set()
        self._ends = -math.inf

    def __len__(self) -> int:
        return len(self._recent) + len(self._before)

    def asks(self, connection: int) -> None:
        now = monotonic()
        if now >= self._ends:
            self._before = self._recent if now < self._ends + CALLERS_SECONDS else set()
            self._recent = set()
            self._ends = now + CALLERS_SECONDS
        if connection not in self._recent and len(self._recent) < MOST_CALLERS:
            self._before.discard(connection)
            self._recent.add(connection)

    def leaves(self, connection: int) -> None:
        """Not to be said of one that brought a single request: who opens one for each is as many as the requests."""
        self._recent.discard(connection)
        self._before.discard(connection)


class Admission:
    """Counts the texts being answered, and lets in what will not have to wait too long.

    Texts, not requests: a batch of 500 is 500 times the work.  Never more than `most` at one time, except a request
    that is alone, which is let in however large.  Small requests (up to SMALL texts) are bound by the pace of the
    model; of bulk, BULK_AT_ONCE requests are let in, or more that are BULK_TEXTS together or done in BULK_SECONDS.
    Neither takes the other's places.  While the model stands still, requests wait for it rather than being refused: a
    stall is not an overload.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.pace = Pace(STALL_SECONDS)
        self._bulk_pace = Pace(math.inf)  # of a large batch one cannot tell whether it stalls or takes its time
        self.callers = Callers()
        self._many_until = -math.inf
        self._small = 0
        self._bulk = 0
        self._bulk_requests = 0
        # When those who passed the door did, and have not come in yet.
        self._expected: deque[float] = deque(maxlen=EXPECTED_MOST)
        self._arrivals = Arrivals()
        self._gathered = 0  # texts of small requests, while the model was silent
        self._last_answer = self._idle_since = self._bulk_idle_since = monotonic()
        self._last_full = self._full_since = -math.inf
        self._refused = 0

    @property
    def texts(self) -> int:
        return self._small + self._bulk

    @property
    def limit(self) -> int:
        """Texts of small requests let in at one time, as things are."""
        return min(self.most, round(self.pace.limit))

    @property
    def bulk_limit(self) -> int:
        """The same for bulk; the BULK_AT_ONCE requests may be larger."""
        rate = self._bulk_pace.rate or self.pace.rate
        return min(self.most, max(BULK_TEXTS, self.limit, round(BULK_SECONDS * rate) if rate else BULK_FIRST))

    @contextmanager
    def let_in(self, texts: int) -> Iterator[None]:
        """Overloaded when these texts would wait too long, else the place for them."""
        self._arrived()
        if not self._has_room(texts):
            raise self.refusal(texts)
        came = monotonic()
        self._enter(texts, came)
        answered = False
        try:
            yield
            answered = True
        finally:
            self._leave(texts)
            if answered:
                self._learn(texts, came, monotonic())

    def has_room(self, texts: int) -> bool:
        """Whether so many would be let in after all who are expected, for whoever can refuse before `let_in`."""
        now = monotonic()
        while self._expected and now - self._expected[0] > EXPECTED_SECONDS:
            self._expected.popleft()
        return self._has_room(texts, len(self._expected))

    def expect(self) -> None:
        """Somebody for whom there was room is on the way: the next one must not be promised the same place."""
        self._expected.append(monotonic())

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Around all that comes before `let_in`: who is turned away there needs the promised place no more."""
        try:
            yield
        except BaseException:
            self._arrived()
            raise

    def _arrived(self) -> None:
        """The youngest of those expected, so that those who never come grow old and are forgotten."""
        if self._expected:
            self._expected.pop()

    def _has_room(self, texts: int, expected: int = 0) -> bool:
        if self.texts + expected == 0:
            return True
        if texts > SMALL:
            kept_for_small = min(LEAST, self.most // 2)
            few = self._bulk_requests < BULK_AT_ONCE or self._bulk + texts <= self.bulk_limit
            return few and self.texts + texts <= self.most - kept_for_small
        small = self._small + expected + texts
        over = min(texts + expected, small - self.limit)
        return self.texts + expected + texts <= self.most and (over <= 0 or self._may_exceed(over))

    def refusal(self, texts: int) -> Overloaded:
        """The error for texts that found no room.  Each sets another of RETRY_SPREAD seconds to come back."""
        now = monotonic()
        self._is_full(now)
        self._came(texts, now)
        rate = self.pace.rate or self._bulk_pace.rate
        wait = math.ceil(self.texts / rate) if rate else 1
        seconds = min(max(wait, 1), LONGEST_RETRY_SECONDS) + self._refused % RETRY_SPREAD
        self._refused += 1
        limit = self.limit if texts <= SMALL else self.bulk_limit
        return Overloaded(
            f"{self.texts} texts are being answered and the limit is {limit} now, so {texts} more would wait too long; "
            f"try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )

    def _may_exceed(self, over: int) -> bool:
        """Whether so many more may wait beyond the limit, because it is not a crowd that has brought them there."""
        now, rate = monotonic(), self.pace.rate
        silent = self._silent_seconds(now)
        if silent > STALL_SECONDS + self.pace.tolerated_seconds:
            return not rate or self._small + over <= STALL_WORK_SECONDS * rate
        if self._callers_are_few(now) and self._small + over <= self._few:
            return True
        if rate and self._arrivals.rate(now) > CROWD * rate:
            return False
        if now - self._last_full <= FULL_SECONDS and now - self._full_since > LINE_SECONDS:
            return False
        line = max(0.0, self._small - self.limit) + over
        patience = SMALL + max(PATIENCE_SECONDS, silent) * rate if rate else LEAST
        return line <= patience + self._gathered

    @property
    def _few(self) -> float:
        """Callers, or texts, that do not wait long whatever they do."""
        return max(2 * LEAST, FEW_SECONDS * self.pace.rate) if self.pace.rate else FEW

    def _callers_are_few(self, now: float) -> bool:
        if len(self.callers) > self._few:
            self._many_until = now + MANY_SECONDS
        return now >= self._many_until

    def _is_full(self, now: float) -> None:
        if self._is_silent(now):
            self._gathered = self._small
        if self._is_silent(now) or now - self._last_full > FULL_SECONDS:
            self._full_since = now
        self._last_full = now

    def _came(self, texts: int, now: float) -> None:
        if texts <= SMALL:
            window = max(CROWD_SECONDS, CROWD_TEXTS / self.pace.rate) if self.pace.rate else CROWD_SECONDS
            self._arrivals.came(texts, now, window)

    def _silent_seconds(self, now: float) -> float:
        """Since the last answer, while there is something to answer; of bulk one cannot tell, it takes its time."""
        return 0.0 if self._bulk or not self._small else now - self._last_answer

    def _is_silent(self, now: float) -> bool:
        limit = SILENCE_SECONDS + 2 * self.pace.tolerated_seconds if self.pace.rate else STALL_SECONDS
        return self._silent_seconds(now) > limit

    def _enter(self, texts: int, now: float) -> None:
        self._came(texts, now)
        if self.texts == 0:
            self._last_answer = now  # there was nothing to answer
            self.pace.idled(self._idle_since, now)
        if texts > SMALL:
            if not self._bulk:
                self._bulk_pace.idled(self._bulk_idle_since, now)
            self._bulk += texts
            self._bulk_requests += 1
        else:
            self._small += texts
        if self._small >= self.limit:
            self._is_full(now)
        if self._bulk or now - self._last_full > max(FULL_SECONDS, self.pace.tolerated_seconds):
            self.pace.restart(now)

    def _leave(self, texts: int) -> None:
        if texts > SMALL:
            self._bulk -= texts
            self._bulk_requests -= 1
            if not self._bulk:
                self._bulk_idle_since = monotonic()
        else:
            self._small -= texts
        if self._small <= self.limit:
            self._gathered = 0
        if self.texts == 0:
            self._idle_since = monotonic()

    def _learn(self, texts: int, came: float, now: float) -> None:
        if self.pace.rate and self._is_silent(now):
            self.pace.restart(now)
        self._last_answer = now
        pace = self.pace if texts <= SMALL else self._bulk_pace
        pace.answered(texts, came, now)


class Gate:
    """First come, first served, by rows: at most so many full batches are past it."""

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._rows = 0
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def passed(self, rows: int, max_batch_size: int) -> AsyncIterator[None]:
        await self._enter(rows, self._batches * max_batch_size)
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
