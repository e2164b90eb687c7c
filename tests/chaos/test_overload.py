"""Three times what the stack can do is offered, for a minute: it does what it can, refuses the rest, stays well.

What it can is found by callers who ask again as soon as they are answered, before and after, as machines wander.  Three
times as many questions take a generator far more time than those callers take, so where figures count, half of the
cores are the generators' alone: else they would take from the stack what is then missing from its goodput.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from loadtest.traffic import Oracle, Outcome, Traffic
from tests.chaos.processes import fate_of, replica_memory
from tests.chaos.versions import two_versions
from tests.stack_process import Stack

SCENARIO = "overload"
CALM_RATE = 50.0  # goes on before, during and after
CALLERS = 48  # of the closed loop: enough to keep every stage busy
GENERATORS = 2  # processes
TIMES_CAPACITY = 3


class Health:
    """Asks /healthz and /readyz all the time, as an orchestrator would."""

    def __init__(self, url: str) -> None:
        self.seen: dict[str, Counter[int]] = {"/healthz": Counter(), "/readyz": Counter()}
        self.slowest = 0.0
        self._url = url

    @contextmanager
    def asked(self, period: float = 0.25) -> Iterator["Health"]:
        stop = threading.Event()
        asking = threading.Thread(target=self._ask, args=(stop, period))
        asking.start()
        try:
            yield self
        finally:
            stop.set()
            asking.join()

    def _ask(self, stop: threading.Event, period: float) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not stop.wait(period):
                for path, seen in self.seen.items():
                    began = time.monotonic()
                    try:
                        seen[client.get(path).status_code] += 1
                    except httpx.TransportError:
                        seen[0] += 1
                    self.slowest = max(self.slowest, time.monotonic() - began)


def capacity_of(stack, oracle: Oracle, seconds: float) -> float:
    """Right answers per second that the stack gives to callers who never pause."""
    with Traffic(stack.url, oracle, rate=None, callers=CALLERS, processes=GENERATORS) as closed:
        began = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
    assert not closed.failures(), fate_of(closed.failures())
    return closed.goodput(began + seconds / 4, ended)


@pytest.fixture
def stack(request, full, running_stack, tmp_path) -> Iterator[Stack]:
    """The stack on half of the cores and this process, generators and all, on the others; on the same in short."""
    if not full:
        yield request.getfixturevalue("shipped_stack")
        return
    cores = sorted(os.sched_getaffinity(0))
    half = max(len(cores) // 2, 1)
    os.sched_setaffinity(0, cores[:half])
    try:
        with running_stack(two_versions(tmp_path / "models")) as stack:
            os.sched_setaffinity(0, cores[half:] or cores)
            yield stack
    finally:
        os.sched_setaffinity(0, cores)


def test_three_times_the_capacity_is_answered_or_refused_and_the_stack_stays_well(stack, full, figures):
    oracle = Oracle.of(stack.repository)
    find, load, overload, after = (20, 20, 60, 15) if full else (3, 3, 5, 3)
    capacity = capacity_of(stack, oracle, find)
    at_80, _ = _offer(stack, oracle, 0.8 * capacity, load)
    before = replica_memory(stack)
    with (
        Traffic(stack.url, oracle, CALM_RATE, processes=1) as calm,
        Health(stack.url).asked() as health,
    ):
        flood, (began, ended) = _offer(stack, oracle, TIMES_CAPACITY * capacity, overload)
        during = replica_memory(stack)
        time.sleep(after)
        over = time.monotonic()
    can = [capacity, capacity_of(stack, oracle, find)]
    flooded = flood.outcomes + calm.since(began, ended)
    refused = [each for each in flooded if each.status == 429]
    unwell = [each.due for each in calm.since(ended) if not each.right]

    def record(figure: str, value: float | str, unit: str = "", note: str = "") -> None:
        figures.record(SCENARIO, figure, value, unit, note)

    shared = "on half of the cores, generators on the others" if full else "sharing the cores with the generators"
    record("capacity before, after", ", ".join(f"{each:.0f}" for each in can), "req/s", f"{CALLERS} callers; {shared}")
    record("offered", len(flood.outcomes) / (ended - began), "req/s", f"for {ended - began:.0f} s")
    goodput = flood.goodput(began + 1, ended) + calm.goodput(began + 1, ended)
    record("goodput / capacity", goodput / np.mean(can), "", f"{goodput:.0f} of {np.mean(can):.0f}; wanted ≥ 0.9")
    p99_at_80, p99 = at_80.percentile(99), flood.percentile(99)
    record("p99 at 80 % load", 1e3 * p99_at_80, "ms", f"generator's lag p99 {1e3 * at_80.lag():.1f} ms")
    record("p99 of accepted", 1e3 * p99, "ms", f"generator's lag p99 {1e3 * flood.lag():.1f} ms")
    record("p99 of accepted / p99 at 80 %", p99 / p99_at_80, "", "wanted ≤ 3")
    record("refused", 100 * len(refused) / len(flooded), "%", _waits(refused))
    record("memory of the replica", (during - before) / 2**20, "MiB", f"more than the {before / 2**20:.0f} before")
    record("slowest /healthz or /readyz", 1e3 * health.slowest, "ms", f"readyz: {dict(health.seen['/readyz'])}")
    record("normal again after", max(unwell, default=ended) - ended, "s", f"at {CALM_RATE:.0f} req/s; wanted < 5")

    assert {(each.status, each.retry_after is None) for each in refused} <= {(429, False)}
    strange = [each for each in flooded if each.status not in (200, 429)]
    assert not strange, fate_of(strange)
    assert all(each.right for each in flooded if each.status == 200)
    assert set(health.seen["/healthz"]) == {200}, health.seen
    assert set(health.seen["/readyz"]) <= {200, 503}, health.seen
    assert refused, "there was no overload"
    assert max(each.done for each in calm.outcomes if each.right) > over - 1, "it does not answer again"
    assert not calm.failures(), fate_of(calm.failures())


def _offer(stack, oracle: Oracle, rate: float, seconds: float) -> tuple[Traffic, tuple[float, float]]:
    """The traffic, answered to the end, and when its offering began and ended."""
    with Traffic(stack.url, oracle, rate, processes=GENERATORS) as traffic:
        began = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
    return traffic, (began, ended)


def _waits(refused: list[Outcome]) -> str:
    waits = [each.retry_after for each in refused if each.retry_after is not None]
    if not waits:
        return "no Retry-After"
    return f"Retry-After {min(waits):g} to {max(waits):g} s, median {np.median(waits):g}"
