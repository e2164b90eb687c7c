"""A rolling restart of the gateway under constant traffic: nobody notices, whether connections are kept or not."""

import subprocess
import time

import psutil
import pytest

from deploy.settings import ROOT
from loadtest.traffic import Oracle, Traffic
from tests.chaos.processes import fate_of

RATE = 50.0
HEADERS = {"kept connections": {}, "a connection per request": {"connection": "close"}}


@pytest.fixture(scope="module")
def stack(running_stack):
    with running_stack() as stack:
        yield stack


def restart(stack, **environment) -> subprocess.CompletedProcess:
    environment = stack.environment | environment
    return subprocess.run(stack.command("restart"), cwd=ROOT, env=environment, capture_output=True, text=True)


def gateway_of(stack) -> psutil.Process:
    """The guardian of the gateway that `up` runs."""
    (gateway,) = (each for each in stack.descendants("-m gateway --socket") if each.ppid() == stack.process.pid)
    return gateway


def test_not_one_request_fails_while_the_gateway_is_replaced(stack, full, figures):
    oracle = Oracle.of(stack.repository)
    before = gateway_of(stack)
    with (
        Traffic(stack.url, oracle, RATE) as kept,
        Traffic(stack.url, oracle, RATE, headers=HEADERS["a connection per request"]) as once,
    ):
        began = time.monotonic()
        for _ in range(5 if full else 1):
            done = restart(stack)
            assert done.returncode == 0, done.stderr
        seconds = time.monotonic() - began
        for traffic in (kept, once):
            traffic.wait_for(20, time.monotonic(), 10)
    assert gateway_of(stack) != before and not before.is_running()
    for name, traffic in zip(HEADERS, (kept, once), strict=True):
        assert all(each.right for each in traffic.outcomes), fate_of(traffic.outcomes)
        figures.record(
            "rolling restart of the gateway", f"failed requests, {name}", 0, note=f"of {len(traffic.outcomes)}"
        )
        figures.record("rolling restart of the gateway", f"slowest, {name}", 1e3 * traffic.percentile(100), "ms")
    figures.record("rolling restart of the gateway", "duration", seconds / (5 if full else 1), "s")


def test_a_gateway_that_does_not_come_up_leaves_the_old_one_in_place(stack):
    before = gateway_of(stack)
    serving = stack.repository / "serving.json"
    whole = serving.read_bytes()
    with Traffic(stack.url, Oracle.of(stack.repository), RATE) as traffic:
        serving.write_text("{")
        done = restart(stack)
        serving.write_bytes(whole)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert (
        "serving.json" in sentence and "JSON" in sentence and sentence.endswith("the gateway that was running goes on")
    )
    assert gateway_of(stack) == before
    assert all(each.right for each in traffic.outcomes), fate_of(traffic.outcomes)


def test_without_a_stack_there_is_nothing_to_restart(stack, tmp_path):
    done = restart(stack, NUNCHI_VAR=str(tmp_path))
    assert (done.returncode, done.stderr) == (2, "error: nothing is running; start it with make up\n")
