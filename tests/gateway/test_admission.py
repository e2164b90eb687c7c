"""The two doors, alone.  How much is let in is tried on models that exist as their timing only, in their own time."""

import asyncio
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import quantiles

import pytest

import gateway.admission
from gateway.admission import (
    BATCHES_AT_TRITON,
    BULK_AT_ONCE,
    BULK_FIRST,
    BULK_TEXTS,
    CROWD,
    CROWD_SECONDS,
    EXPECTED_SECONDS,
    FEW,
    FEW_SECONDS,
    LEAST,
    LINE_SECONDS,
    LONGEST_RETRY_SECONDS,
    MANY_SECONDS,
    RETRY_SPREAD,
    SMALL,
    STALL_WORK_SECONDS,
    Admission,
    Gate,
)
from gateway.errors import Overloaded

BATCH = 64
LIMIT = BATCHES_AT_TRITON * BATCH


CONNECTIONS = itertools.count()


def enter(admission: Admission, texts: int):
    """By a caller of its own."""
    admission.callers.asks(next(CONNECTIONS))
    place = admission.let_in(texts)
    place.__enter__()
    return place


def test_admission_counts_texts_and_says_no_beyond_the_limit():
    admission = Admission(10)
    with admission.let_in(6):
        with pytest.raises(Overloaded, match=r"6 texts are being answered and the limit is 10 now, so 5 more"):
            admission.let_in(5).__enter__()
        with admission.let_in(4):
            assert admission.texts == 10
    assert admission.texts == 0


def test_admission_frees_the_places_of_what_failed():
    admission = Admission(10)
    with pytest.raises(ZeroDivisionError), admission.let_in(10):
        raise ZeroDivisionError
    with admission.let_in(10):
        pass


def test_a_request_that_is_alone_is_let_in_however_large():
    admission = Admission(1024)
    with admission.let_in(1024):
        assert not admission.has_room(1)
    with admission.let_in(1):
        assert not admission.has_room(1024)


def test_bulk_and_small_requests_do_not_take_each_others_places():
    admission = Admission(4096)
    bulk = [enter(admission, 1024) for _ in range(BULK_AT_ONCE)]
    assert not admission.has_room(SMALL + 1)
    small = [enter(admission, 1) for _ in range(LEAST)]
    with pytest.raises(Overloaded):
        while True:
            small.append(enter(admission, 1))
    assert LEAST <= len(small) <= FEW
    bulk.pop().__exit__(None, None, None)
    assert admission.has_room(1024) and not admission.has_room(1)


def test_callers_with_a_full_batch_each_are_let_in_together(world):
    """At first by a guess, then a second's work of bulk; at least as many as Triton and the gate hold."""
    for rate in (5000, 20):
        world_ = world(*MODELS["a small model"], most=8192)
        admission = world_.admission
        assert len(enter_all(admission, BATCH)) == BULK_FIRST // BATCH
        for _ in range(4000 // rate + 100):  # one after the other, with pauses that say nothing of the model
            with admission.let_in(BATCH):
                world_.now += BATCH / rate
            world_.now += 0.1
        batches = enter_all(admission, BATCH)
        assert len(batches) == max(BULK_TEXTS, rate) // BATCH
        assert admission.has_room(1)
        assert int(admission.refusal(BATCH).headers["Retry-After"]) <= 1 + BULK_TEXTS // 20 + RETRY_SPREAD
        batches.pop().__exit__(None, None, None)
        assert admission.has_room(BATCH)


def test_before_any_bulk_was_answered_the_pace_of_single_texts_says_how_much_is_a_second(world):
    world = world(*MODELS["one of KcBERT's size"])
    world.offer(200, 30)
    assert len(enter_all(world.admission, BATCH)) == BULK_TEXTS // BATCH


def enter_all(admission: Admission, texts: int) -> list:
    """As many requests of so many texts as there is room for."""
    places = []
    while admission.has_room(texts):
        places.append(enter(admission, texts))
    return places


def test_bulk_leaves_room_for_small_requests_below_the_upper_bound():
    admission = Admission(2048)
    with admission.let_in(1024):
        assert not admission.has_room(1024)
        assert admission.has_room(2048 - 1024 - LEAST)
        assert admission.has_room(1)


def test_those_refused_together_come_back_at_different_times():
    admission = Admission(1)
    with admission.let_in(1):
        waits = [int(admission.refusal(1).headers["Retry-After"]) for _ in range(100)]
    assert set(waits) == set(range(1, 1 + RETRY_SPREAD))


@dataclass
class World:
    """A model that answers n texts at once in about a + b·n seconds, and callers, who keep their connections.

    Of those that are free the one used last is taken, as clients do.
    """

    a: float
    b: float
    admission: Admission
    now: float = 1000.0
    stalled_until: float = 0.0
    halt: float = 0.0  # seconds at the beginning of each in which nothing runs: neither model nor event loop
    deaf: float = 0.0  # seconds at the beginning of each in which the event loop has no time to look at answers
    _line: deque = field(default_factory=deque)
    _batch: list = field(default_factory=list)
    _heap: list = field(default_factory=list)
    _free: list[int] = field(default_factory=list)  # connections
    _answered_at: float = math.inf
    _luck: random.Random = field(default_factory=lambda: random.Random(1))

    def offer(self, rate: float, seconds: float) -> tuple[list[float], int]:
        """Requests of one text for so long, whatever comes of those before.

        Returns the seconds of those answered in this time, and how many were refused.
        """
        took, refused, end = [], 0, self.now + seconds
        arrives = self.now + self._luck.expovariate(rate)
        while min(arrives, self._answered_at) < end:
            self.now = self._awake(min(arrives, self._answered_at))
            if arrives < self._answered_at:
                arrives += self._luck.expovariate(rate)
                refused += not self._ask(self._free.pop() if self._free else next(CONNECTIONS))
            took += self._work()
        self.now = end
        return took, refused

    def ask_in_turn(self, callers: int, seconds: float) -> tuple[list[float], int]:
        """The same of callers who ask again as soon as they are answered, or refused (20 ms later)."""
        took, refused, end = [], 0, self.now + seconds
        mine = {next(CONNECTIONS) for _ in range(callers)}
        asks = [(self.now, connection) for connection in mine]
        while min(asks[0][0] if asks else math.inf, self._answered_at) < end:
            self.now = self._awake(min(asks[0][0] if asks else math.inf, self._answered_at))
            if asks and asks[0][0] <= self.now:
                _, connection = heapq.heappop(asks)
                if not self._ask(connection):
                    refused += 1
                    self._free.remove(connection)
                    heapq.heappush(asks, (self.now + 0.02, connection))
            took += self._work()
            for connection in mine.intersection(self._free):
                self._free.remove(connection)
                heapq.heappush(asks, (self.now, connection))
        for connection in mine:
            self.admission.callers.leaves(connection)
        self.now = end
        return took, refused

    def _ask(self, connection: int) -> bool:
        self.admission.callers.asks(connection)
        place = self.admission.let_in(1)
        try:
            place.__enter__()
        except Overloaded:
            self._free.append(connection)
            return False
        self._line.append((self.now, place, connection))
        return True

    def _work(self) -> list[float]:
        """What the model does now: the seconds that those took who are answered."""
        took = []
        if self.now >= self._answered_at:
            self._heap += self._batch
            self._batch, self._answered_at = [], math.inf
        if self.now % 1.0 >= self.deaf:
            for came, place, connection in self._heap:
                place.__exit__(None, None, None)
                self._free.append(connection)
                took.append(self.now - came)
            self._heap.clear()
        if not self._batch and self._line:
            self._batch = [self._line.popleft() for _ in range(min(len(self._line), BATCH))]
            needed = (self.a + self.b * len(self._batch)) * self._luck.uniform(0.8, 1.2)
            self._answered_at = max(self.now, self.stalled_until) + needed
        return took

    def _awake(self, moment: float) -> float:
        return moment + max(0.0, self.halt - moment % 1.0)


@pytest.fixture
def world(monkeypatch) -> Callable[..., World]:
    """Makes a world whose time is the time of admission.py."""

    def make(a: float, b: float, most: int = 2048) -> World:
        clock = []
        monkeypatch.setattr(gateway.admission, "monotonic", lambda: clock[0].now if clock else 1000.0)
        clock.append(World(a, b, Admission(most)))
        return clock[0]

    return make


def p99(seconds: list[float]) -> float:
    return quantiles(seconds, n=100)[98]


MODELS = {
    "a small model": (0.0012, 0.0011),
    "one of KcBERT's size": (0.0085, 0.0087),
    "long texts, nothing to gain by batches": (0.0005, 0.08),
    "an accelerator": (0.005, 0.0002),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_at_three_times_the_capacity_the_model_is_busy_and_nobody_waits_long(world, model):
    world = world(*model)
    capacity = BATCH / (model[0] + model[1] * BATCH)
    seconds = 5000 / capacity
    world.offer(0.02 * capacity, 100 / capacity)
    world.offer(2 * capacity, 10 + seconds)  # somebody found out the capacity
    world.offer(0.5 * capacity, 100 / capacity)
    busy, refused = world.offer(0.8 * capacity, seconds)
    assert refused < 0.002 * len(busy)
    world.offer(3 * capacity, 0.5 * seconds)
    accepted, refused = world.offer(3 * capacity, seconds)
    assert len(accepted) > 0.9 * capacity * seconds
    assert refused > 1.8 * len(accepted)
    assert p99(accepted) < 3 * p99(busy)
    world.offer(0.5 * capacity, 5)
    calm, refused = world.offer(0.5 * capacity, 0.2 * seconds)
    assert refused == 0
    assert p99(calm) < p99(busy)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_few_callers_who_wait_for_their_answers_are_never_refused(world, model):
    """However long they go on, and from a cold start; each refusal would come back as another question at once."""
    world = world(*model)
    capacity = BATCH / (model[0] + model[1] * BATCH)
    for callers in (LEAST, 2 * LEAST, int(0.4 * FEW_SECONDS * capacity)):
        took, refused = world.ask_in_turn(callers, LINE_SECONDS + 2000 / capacity)
        assert took and not refused


def test_few_callers_are_not_refused_before_the_model_is_known(world):
    assert world(*MODELS["a small model"]).ask_in_turn(FEW, LINE_SECONDS + 2)[1] == 0


def test_too_many_callers_are_refused_and_fewer_not_until_they_are_known_to_be_few(world):
    world = world(*MODELS["a small model"])
    world.ask_in_turn(LEAST, 5)
    took, refused = world.ask_in_turn(2000, 4)  # for whom each would wait for two seconds
    assert refused and p99(took) < 0.5
    world.now += MANY_SECONDS
    assert world.ask_in_turn(FEW, 20)[1] == 0


def test_the_limit_grows_for_a_model_that_needs_more_at_once(world):
    world = world(*MODELS["an accelerator"])
    assert world.admission.limit == LEAST
    world.offer(10, 2)
    world.offer(9000, 5)
    assert world.admission.limit > 3 * LEAST


@pytest.mark.parametrize("faster", [True, False])
def test_the_limit_follows_a_new_model_under_an_overload_that_never_ends(world, faster):
    slow, fast = (0.02, 0.0016), (0.005, 0.0003)
    before, after = (slow, fast) if faster else (fast, slow)
    world = world(*before)
    world.offer(6000, 10)
    stale = world.admission.limit
    world.a, world.b = after  # promoted
    world.offer(6000, 15)
    took, _ = world.offer(6000, 10)
    assert world.admission.pace.rate == pytest.approx(len(took) / 10, rel=0.1)
    assert (world.admission.limit > 1.5 * stale) if faster else (world.admission.limit < stale / 1.5)


def test_a_burst_is_let_in_until_it_has_proven_to_be_a_crowd(world):
    world = world(*MODELS["a small model"])
    world.offer(2000, 5)
    world.offer(20, 5)
    assert world.offer(300, 0.2)[1] == 0
    places = []
    while world.admission.has_room(1):
        places.append(enter(world.admission, 1))
    rate = world.admission.pace.rate
    assert world.admission.limit < len(places) < world.admission.limit + CROWD * 2 * CROWD_SECONDS * rate


def test_a_crowd_makes_nobody_wait_long_from_its_first_moments_on(world):
    world = world(*MODELS["a small model"])
    world.offer(2000, 5)
    world.offer(50, 5)
    took, refused = world.offer(3000, 1)
    assert refused and sum(each > 0.1 for each in took) < 0.35 * len(took)
    took, _ = world.offer(3000, 20)
    assert max(took) < 2 * world.admission.pace.tolerated_seconds


def test_a_model_that_is_slower_for_a_moment_keeps_its_callers(world):
    world = world(*MODELS["a small model"])
    world.offer(2000, 5)
    world.offer(600, 5)
    a, b = world.a, world.b
    world.a, world.b = 2 * a, 2 * b  # 450 a second
    took, refused = world.offer(600, 0.8)
    assert refused == 0 and max(took) > 1.5 * world.admission.pace.tolerated_seconds
    world.a, world.b = a, b
    assert world.offer(600, 1)[1] == 0
    took, refused = world.offer(600, 5)
    assert refused == 0 and p99(took) < world.admission.pace.tolerated_seconds


@pytest.mark.parametrize("silence", [0.3, 0.5, 0.8, 1.5])
def test_a_model_that_is_silent_for_a_moment_keeps_its_callers(world, silence):
    """At two thirds of what it can do, and long after anybody has seen how much that is."""
    world = world(*MODELS["a small model"])
    world.offer(2000, 5)
    world.offer(620, 60)  # of 900
    for _ in range(5):
        world.stalled_until = world.now + silence
        took, refused = world.offer(620, 8)
        assert refused == 0 and max(took) < 1.2 * silence + 0.2
    assert world.admission.texts < LEAST


@pytest.mark.parametrize("halt", [0.1, 0.15, 0.2])
def test_what_gathers_while_the_whole_machine_stands_still_is_no_crowd(world, halt):
    world = world(*MODELS["a small model"])
    world.offer(2000, 5)
    world.offer(50, 5)
    world.halt = halt
    took, refused = world.offer(600, 60)  # of 900
    assert refused == 0 and p99(took) < 2 * halt + world.admission.pace.tolerated_seconds


@pytest.mark.parametrize("deaf", [0.5, 0.8])
def test_answers_that_lie_in_a_heap_do_not_make_the_model_faster(world, deaf):
    """As they do in the first second of a crowd, which takes all the time of the event loop."""
    world = world(*MODELS["a small model"])
    world.offer(2000, 5)
    for _ in range(3):
        world.offer(620, 4)
        world.deaf = deaf
        world.offer(2700, 1)
        world.deaf = 0.0
        world.offer(2700, 2)
    assert world.admission.pace.rate < 950  # of 900


def test_a_little_more_than_the_model_can_do_makes_no_line_that_stands(world):
    world = world(*MODELS["a small model"])
    world.offer(2000, 5)
    world.offer(50, 5)
    world.offer(1100, LINE_SECONDS + 2)  # of 900
    took, refused = world.offer(1100, 20)
    assert refused and max(took) < 2 * world.admission.pace.tolerated_seconds


def test_those_who_are_expected_have_their_place_until_they_are_too_late(world):
    admission = (world := world(*MODELS["a small model"], most=LEAST)).admission
    places = []
    while admission.has_room(1):
        places.append(enter(admission, 1))
    while admission.texts > admission.limit - 10:
        places.pop().__exit__(None, None, None)
    for round in range(2):
        passed = 0
        while admission.has_room(1):
            admission.expect()
            passed += 1
        assert passed == 10
        if round == 0:
            world.now += EXPECTED_SECONDS + 0.01  # they never come
    inside = [enter(admission, 1) for _ in range(10)]  # each finds what it was promised
    assert not admission.has_room(1)
    inside.pop().__exit__(None, None, None)
    assert admission.has_room(1)


def test_a_crowd_of_late_bodies_leaves_room(world):
    admission = world(*MODELS["a small model"]).admission
    with admission.let_in(1):
        for _ in range(100):
            admission.expect()
        assert admission.has_room(1) and admission.has_room(SMALL)


def test_a_stall_is_waited_for_and_leaves_no_line_behind(world):
    world = world(*MODELS["a small model"])
    world.offer(50, 10)
    world.stalled_until = world.now + 10
    took, refused = world.offer(50, 12)
    assert refused == 0 and max(took) > 9
    took, refused = world.offer(50, 5)
    assert refused == 0 and max(took) < 0.1


def test_an_overload_on_top_of_a_stall_is_bounded_and_over_soon_after(world):
    world = world(*MODELS["a small model"], most=100_000)
    world.offer(50, 10)
    world.offer(2400, 3)
    world.stalled_until = world.now + 10
    world.offer(2400, 9.9)
    assert world.admission.texts < STALL_WORK_SECONDS * 1000
    world.offer(2400, 5)
    took, _ = world.offer(2400, 5)
    assert p99(took) < 0.1 and len(took) > 0.9 * 5 * 800


def test_what_waits_now_decides_when_to_come_back(world):
    world = world(0.5, 0.5)
    world.offer(6, 300)
    wait = world.admission.texts / world.admission.pace.rate
    assert wait > 5
    wait = min(wait, LONGEST_RETRY_SECONDS)
    assert wait <= int(world.admission.refusal(1).headers["Retry-After"]) <= wait + 1 + RETRY_SPREAD
    world.admission._small *= 10
    assert int(world.admission.refusal(1).headers["Retry-After"]) >= LONGEST_RETRY_SECONDS


class Line:
    """Tasks that go through a gate and stay until they are let out."""

    def __init__(self) -> None:
        self.gate = Gate(BATCHES_AT_TRITON)
        self.inside: list[str] = []
        self.out: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task] = {}

    async def comes(self, name: str, rows: int) -> None:
        async def stay() -> None:
            async with self.gate.passed(rows, BATCH):
                self.inside.append(name)
                try:
                    await self.out[name].wait()
                finally:
                    self.inside.remove(name)

        self.out[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(stay())
        await asyncio.sleep(0)

    async def leaves(self, name: str) -> None:
        self.out[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)

    async def gives_up(self, name: str) -> None:
        self.tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.tasks[name]
        await asyncio.sleep(0)


def test_the_gate_lets_a_few_batches_past_and_then_one_by_one_in_order():
    async def scenario() -> None:
        line = Line()
        await line.comes("big", LIMIT - 1)
        await line.comes("one", 1)
        await line.comes("two", 2)
        await line.comes("late", 1)
        assert line.inside == ["big", "one"]
        await line.leaves("one")  # one place is free, but it is the turn of "two", who needs two
        assert line.inside == ["big"]
        await line.leaves("big")
        assert line.inside == ["two", "late"]

    asyncio.run(scenario())


def test_a_request_that_gives_up_in_the_line_holds_nobody_up():
    async def scenario() -> None:
        line = Line()
        await line.comes("big", LIMIT - 1)
        await line.comes("two", 2)
        await line.comes("one", 1)
        assert line.inside == ["big"]
        await line.gives_up("two")
        assert line.inside == ["big", "one"]
        await line.gives_up("big")
        await line.comes("all", LIMIT - 1)
        assert line.inside == ["one", "all"]

    asyncio.run(scenario())


def test_a_request_that_gives_up_in_the_moment_it_is_called_passes_its_place_on():
    async def scenario() -> None:
        line = Line()
        await line.comes("big", LIMIT)
        await line.comes("first", LIMIT)
        await line.comes("second", LIMIT)
        line.out["big"].set()
        await asyncio.sleep(0)  # "big" has left and called "first", which has not run yet
        line.tasks["first"].cancel()
        await asyncio.gather(line.tasks["first"], return_exceptions=True)
        await asyncio.sleep(0)
        assert line.inside == ["second"]

    asyncio.run(scenario())


def test_a_request_that_gives_up_in_the_moment_another_leaves_is_skipped():
    async def scenario() -> None:
        line = Line()
        await line.comes("big", LIMIT)
        await line.comes("first", LIMIT)
        await line.comes("second", LIMIT)
        line.out["big"].set()
        line.tasks["first"].cancel()
        results = await asyncio.gather(line.tasks["big"], line.tasks["first"], return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        await asyncio.sleep(0)
        assert line.inside == ["second"]

    asyncio.run(scenario())


def test_a_request_larger_than_the_gate_passes_alone():
    async def scenario() -> None:
        line = Line()
        await line.comes("huge", LIMIT + 1)
        await line.comes("one", 1)
        assert line.inside == ["huge"]
        await line.leaves("huge")
        assert line.inside == ["one"]

    asyncio.run(scenario())


def test_those_who_are_turned_away_at_the_desk_take_nobodys_place(world):
    """A tenth has a wrong key: they pass the door, and never come in."""
    world = world(*MODELS["a small model"])
    luck, refused, came = random.Random(2), 0, 0
    with world.admission.let_in(1):
        for _ in range(5000):
            world.now += 1 / 1600
            if not world.admission.has_room(1):
                refused += 1
                continue
            world.admission.expect()
            if luck.random() < 0.1:
                with pytest.raises(Overloaded), world.admission.awaited():
                    raise Overloaded("a wrong key would do")
            else:
                with world.admission.let_in(1):
                    came += 1
    assert refused == 0 and came > 4000


def test_late_bodies_take_nobodys_place_for_long(world):
    world = world(*MODELS["a small model"])
    with world.admission.let_in(1):
        for _ in range(30):
            world.admission.expect()  # never heard of again
        refused = 0
        for _ in range(1000):
            world.now += 1 / 800
            if world.admission.has_room(1):
                world.admission.expect()
                with world.admission.let_in(1):
                    pass
            else:
                refused += 1
        assert refused == 0


def test_the_time_in_which_nobody_asks_is_no_part_of_the_pace(world):
    """Bursts that reach the limit, at a quarter of what the model can do."""
    world = world(0.002, 0.0005)
    capacity = BATCH / (0.002 + 0.0005 * BATCH)
    refused = 0
    for _ in range(100):
        _, more = world.offer(4 * capacity, 0.05)
        refused += more
        world.offer(1, 0.15)
    assert world.admission.pace.rate > 0.7 * capacity
