"""The two doors, alone."""

import asyncio

import pytest

from gateway.admission import BATCHES_AT_TRITON, Admission, Gate
from gateway.errors import Overloaded

BATCH = 64
LIMIT = BATCHES_AT_TRITON * BATCH


def test_admission_counts_texts_and_says_no_beyond_the_limit():
    admission = Admission(10)
    with admission.let_in(6):
        with pytest.raises(Overloaded, match=r"6 texts are being answered and the limit is 10, so these 5"):
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


class Line:
    """Tasks that go through a gate and stay until they are let out."""

    def __init__(self) -> None:
        self.gate = Gate()
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
