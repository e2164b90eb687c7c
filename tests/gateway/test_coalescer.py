"""What is ready in the same turn goes to Triton in one call, and nobody notices who travelled with whom."""

import asyncio
import time

import numpy as np
import pytest

from gateway.admission import SMALL
from gateway.bundle import read_bundle
from gateway.coalescer import Coalescer
from gateway.errors import ModelUnavailable
from gateway.triton import Triton
from tests.gateway.test_triton import asked

pytestmark = pytest.mark.anyio

TRACED = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Slow:
    """Where Triton's answers must be held back or broken: logits are the first id of a row and its negative."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[list[int]], str]] = []
        self.cancelled: list[str] = []
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self, bundle, rows, *, until, request_id, metadata):
        self.calls.append((list(rows), request_id))
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise
        if self.error:
            raise self.error
        return np.array([[row[0], -row[0]] for row in rows], np.float32)


class Asking:
    """`ask(name, *first ids)` starts a request of so many rows."""

    def __init__(self, bundle) -> None:
        self.triton = Slow()
        self.sent: list[int] = []
        self.bundle = bundle
        self._coalescer = Coalescer(self.triton, self.sent.append)

    def ask(self, name, *ids, bundle=None, metadata=(), until=30.0):
        return asyncio.create_task(
            self._coalescer.logits(
                bundle or self.bundle,
                [[each] for each in ids],
                until=time.monotonic() + until,
                request_id=name,
                metadata=metadata,
            )
        )

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.triton.calls]


@pytest.fixture
async def asking(shared_repository):
    return Asking(read_bundle(shared_repository))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_gets_its_own_logits_from_few_calls_of_the_real_triton(shared_repository, shared_triton):
    bundle = read_bundle(shared_repository)
    requests = [[[2, 4 + number, 3]] * (1 + number % 3) for number in range(20)]
    until = time.monotonic() + 30
    sent: list[int] = []
    async with Triton(f"127.0.0.1:{shared_triton.grpc_port}") as triton:
        alone = [await triton.logits(bundle, rows, until=until) for rows in requests]
        before = asked(shared_triton)
        coalescer = Coalescer(triton, sent.append)
        together = await asyncio.gather(
            *(coalescer.logits(bundle, rows, until=until, request_id="", metadata=()) for rows in requests)
        )
    assert asked(shared_triton) - before == len(sent) == 2
    assert sum(sent) == sum(map(len, requests))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


async def test_who_comes_while_nothing_is_under_way_goes_alone_and_at_once(asking):
    first = asking.ask("first", 7)
    await turns()
    others = [asking.ask(name, number) for number, name in enumerate("abc")]
    await turns()
    later = asking.ask("later", 9)
    await turns()
    assert asking.names == ["first", "a,b,c", "later"]
    asking.triton.may_answer.set()
    assert [(await each)[0, 0] for each in (first, *others, later)] == [7, 0, 1, 2, 9]
    assert asking.sent == [1, 3, 1]


async def test_versions_traces_and_bulk_go_by_themselves(asking, shared_repository):
    other = read_bundle(shared_repository)
    asking.ask("first", 7)
    await turns()
    asking.ask("a", 1)
    asking.ask("of another version", 2, bundle=other)
    asking.ask("traced", 3, metadata=TRACED)
    asking.ask("bulk", *range(SMALL + 1))
    asking.ask("b", 4)
    await turns()
    assert sorted(asking.names) == ["a,b", "bulk", "first", "of another version", "traced"]
    asking.triton.may_answer.set()


async def test_a_call_holds_what_the_model_takes(asking):
    most = asking.bundle.max_batch_size
    asking.ask("first", 7)
    await turns()
    requests = [asking.ask("", *[number] * 3) for number in range(most)]
    asking.triton.may_answer.set()
    answers = await asyncio.gather(*requests)
    assert [each[:, 0].tolist() for each in answers] == [[number] * 3 for number in range(most)]
    assert max(asking.sent) == most - most % 3
    assert len(asking.sent) == 1 + -(-most // (most // 3))


async def test_one_who_leaves_harms_nobody_and_the_last_ends_the_call(asking):
    asking.ask("first", 7)
    await turns()
    left, stays = asking.ask("left", 1), asking.ask("stays", 2)
    left_at_once, gone = asking.ask("left at once", 3), asking.ask("gone", 4)
    await asyncio.sleep(0)
    left_at_once.cancel()
    await turns()
    left.cancel()
    await turns()
    assert not asking.triton.cancelled
    stays.cancel()
    await turns()
    assert not asking.triton.cancelled
    gone.cancel()
    await turns()
    assert asking.triton.cancelled == ["left,stays,left at once,gone"]


async def test_a_call_of_those_who_left_before_it_is_never_made(asking):
    asking.ask("first", 7)
    await turns()
    left = asking.ask("left", 1)
    await asyncio.sleep(0)
    left.cancel()
    await turns()
    assert asking.names == ["first"]


async def test_the_others_of_a_call_are_answered_when_one_is(asking):
    asking.ask("first", 7)
    await turns()
    left, stays = asking.ask("left", 1), asking.ask("stays", 2)
    await turns()
    left.cancel()
    asking.triton.may_answer.set()
    assert (await stays).tolist() == [[2, -2]]
    assert not asking.triton.cancelled


async def test_a_failure_is_everybodys(asking):
    first = asking.ask("first", 7)
    await turns()
    requests = [first, asking.ask("", 1), asking.ask("", 2)]
    await turns()
    asking.triton.error = ModelUnavailable("gone")
    asking.triton.may_answer.set()
    assert await asyncio.gather(*requests, return_exceptions=True) == [asking.triton.error] * 3


async def test_numbers_that_are_not_finite_are_only_their_owners(asking):
    asking.ask("first", 7)
    await turns()
    bad, good = asking.ask("", float("nan")), asking.ask("", 2)
    asking.triton.may_answer.set()
    with pytest.raises(ModelUnavailable, match="finite"):
        await bad
    assert (await good).tolist() == [[2, -2]]
