"""Faults under constant traffic: callers get a right answer, or 503 or 504 with Retry-After, and soon answers again.

A request that a killed gateway process was working on is cut, which no process can answer for; so those are counted,
and there may be no more of them than were in flight.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtest.traffic import Oracle, Traffic
from tests.chaos.processes import fate_of
from tests.stack_process import Stack

RATE = 50.0
BEFORE_SECONDS = 1.0  # of undisturbed traffic
DEADLINE_SECONDS = 15.0  # of a request, by the gateway's default
HEALED_SECONDS = 10.0  # from the end of the cause to the last request that fell due and was not answered
MOST_CUT = 10
RAY_SECONDS = 60.0
IN_A_ROW = 50  # right answers, without another in between, that make a service whole

STUB, TRITON, REPLICA = "triton_python_backend_stub", "bin/tritonserver", "ServeReplica"
CONTROLLER, PROXY, RAYLET, GCS = "ServeController", "ProxyActor", "raylet/raylet", "gcs_server"
GUARDIAN, SUPERVISOR = "-m gateway --socket", "-m server"


@pytest.fixture(scope="module")
def stack(running_stack):
    """MLflow is gone from the beginning: nothing listens where its settings point."""
    with running_stack(NUNCHI_MLFLOW_TRACKING_URI="http://127.0.0.1:9") as stack:
        yield stack


def signal_all(stack: Stack, name: str, number: int) -> None:
    """Ray brings back its proxy, which nobody uses, when it likes; so it may take a while until there is one again."""
    until = time.monotonic() + RAY_SECONDS
    while not (victims := stack.descendants(name)):
        assert time.monotonic() < until, f"there is no {name}"
        time.sleep(0.1)
    for victim in victims:
        os.kill(victim.pid, number)


@contextmanager
def stopped(stack: Stack, name: str) -> Iterator[None]:
    """SIGSTOP; SIGCONT in the end for those that are still there."""
    victims = stack.descendants(name)
    assert victims, f"there is no {name}"
    for victim in victims:
        victim.suspend()
    yield
    for victim in victims:
        if victim.is_running():
            victim.resume()


@contextmanager
def away(repository: Path) -> Iterator[None]:
    """Unreadable for everybody, also for root, whom no mode would stop."""
    elsewhere = repository.with_name("away")
    repository.rename(elsewhere)
    yield
    elsewhere.rename(repository)


def wait_until_whole(traffic: Traffic, ended: float) -> float:
    """Seconds from `ended` to the moment after which every request that fell due was answered right."""
    deadline = time.monotonic() + HEALED_SECONDS + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        asked = sorted(traffic.since(ended))
        failed = [index for index, each in enumerate(asked) if not each.right]
        after = asked[failed[-1] + 1 :] if failed else asked
        if len(after) >= IN_A_ROW:
            return max(0.0, asked[failed[-1]].due - ended) if failed else 0.0
        time.sleep(0.1)
    raise AssertionError(f"not whole again: {fate_of(traffic.since(ended))}")


def check(traffic: Traffic, most_cut: int) -> tuple[int, int]:
    """(refused, cut) of a stream whose every outcome is what a caller may be shown."""
    outcomes = list(traffic.outcomes)
    cut = [each for each in outcomes if each.status == 0]
    refused = [each for each in outcomes if each.status in (503, 504)]
    assert {each.status for each in outcomes} <= {0, 200, 503, 504}, fate_of(outcomes)
    assert all(each.right for each in outcomes if each.status == 200), "a wrong answer"
    assert all(each.retry_after for each in refused), "a refusal that does not say when to come back"
    assert len(cut) <= most_cut, fate_of(cut)
    assert max(each.seconds for each in outcomes) < DEADLINE_SECONDS + 1, "a caller hung"
    return len(refused), len(cut)


def suffer(stack: Stack, cause: Callable[[], None], *, most_cut: int = 0) -> tuple[float, int, int]:
    """(recovery in seconds, refused, cut): `cause` happens to a stack under traffic, and ends."""
    with Traffic(stack.url, Oracle.of(stack.repository), RATE) as traffic:
        traffic.wait_for(int(RATE * BEFORE_SECONDS), time.monotonic(), 20)
        cause()
        recovery = wait_until_whole(traffic, time.monotonic())
    assert recovery < HEALED_SECONDS
    return recovery, *check(traffic, most_cut)


def record(figures, scenario: str, suffered: list[tuple[float, int, int]]) -> None:
    recovery, refused, cut = (max(each) for each in zip(*suffered, strict=True))
    note = f"{refused} refused, {cut} cut, at most of {len(suffered)}"
    figures.record(scenario, "whole again after", recovery, "s", note)


@pytest.mark.parametrize(
    ("name", "scenario", "most_cut"),
    [
        pytest.param(STUB, "kill -9 of Triton's stub", 0),
        pytest.param(TRITON, "kill -9 of tritonserver", 0),
        pytest.param(SUPERVISOR, "kill -9 of python -m server", 0, marks=pytest.mark.full),
        pytest.param(REPLICA, "kill -9 of the gateway's replica", MOST_CUT),
        pytest.param(CONTROLLER, "kill -9 of Ray Serve's controller", 0),
        pytest.param(PROXY, "kill -9 of Ray Serve's proxy", 0, marks=pytest.mark.full),
        pytest.param(RAYLET, "kill -9 of Ray's raylet", MOST_CUT, marks=pytest.mark.full),
        pytest.param(GCS, "kill -9 of Ray's gcs_server", MOST_CUT, marks=pytest.mark.full),
        pytest.param(GUARDIAN, "kill -9 of python -m gateway", MOST_CUT, marks=pytest.mark.full),
    ],
)
def test_a_process_is_killed(stack, full, figures, name, scenario, most_cut):
    def cause() -> None:
        signal_all(stack, name, signal.SIGKILL)

    record(figures, scenario, [suffer(stack, cause, most_cut=most_cut) for _ in range(3 if full else 1)])


@pytest.mark.parametrize(("name", "scenario"), [(TRITON, "tritonserver"), (STUB, "Triton's stub")])
def test_a_process_stands_still(stack, full, figures, name, scenario):
    seconds = 10.0 if full else 3.0

    def cause() -> None:
        with stopped(stack, name):
            time.sleep(seconds)

    suffered = [suffer(stack, cause) for _ in range(3 if full else 1)]
    record(figures, f"{scenario} stopped (SIGSTOP) for {seconds:g} s", suffered)


def test_the_repository_cannot_be_read(stack, full, figures):
    """What is loaded goes on without one refusal; the supervisor says so once."""
    seconds = 10.0 if full else 3.0
    log = stack.var / "log" / "server.log"

    def cause() -> None:
        with away(stack.repository):
            time.sleep(seconds)

    before = log.read_text(encoding="utf-8").count("serving.json is not followed")
    suffered = suffer(stack, cause)
    assert suffered[1:] == (0, 0)
    assert log.read_text(encoding="utf-8").count("serving.json is not followed") == before + 1
    record(figures, f"model repository unreadable for {seconds:g} s", [suffered])


def test_triton_dies_while_the_repository_cannot_be_read(stack, full, figures):
    """It is started again and again until it can be; nobody has to mend anything."""
    seconds = 10.0 if full else 4.0

    def cause() -> None:
        with away(stack.repository):
            signal_all(stack, TRITON, signal.SIGKILL)
            time.sleep(seconds)

    record(figures, f"tritonserver killed, repository unreadable for {seconds:g} s", [suffer(stack, cause)])
