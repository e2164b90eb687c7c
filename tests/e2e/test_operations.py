"""Operations through the API of a whole running stack: the commands of the project, Ray, the real Triton."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.chaos.versions import two_versions
from tests.gateway.gateway_process import wait_until
from tests.stack_process import Stack, new_stack

ADMIN_KEY = "an-admin-key-of-the-tests"


@pytest.fixture(scope="module")
def operated(tmp_path_factory) -> Iterator[Stack]:
    """Versions 1 and 2 of the shipped model are loaded; 1 serves, and 2 served before."""
    folder = tmp_path_factory.mktemp("operated")
    stack = new_stack(folder / "stack", two_versions(folder / "models"), NUNCHI_ADMIN_KEY=ADMIN_KEY)
    stack.start()
    stack.wait_ready()
    yield stack
    stack.end()


@pytest.fixture
def operator(operated) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=operated.url, headers={"x-admin-key": ADMIN_KEY}, timeout=30) as client:
        yield client


def begin(operator: httpx.Client, what: str, **more: object) -> str:
    answer = operator.post("/v1/operations", json={"what": what, **more})
    assert answer.status_code == 202, answer.text
    return f"/v1/operations/{answer.json()['id']}"


def ended(operator: httpx.Client, address: str) -> dict:
    deadline = time.monotonic() + 60
    while (operation := operator.get(address).json())["state"] == "running":
        assert time.monotonic() < deadline, operation
        time.sleep(0.05)
    return operation


def test_a_rollback_by_the_api_answers_under_load_without_a_lost_request(operated, operator):
    heard: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=operated.url, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/v1/predict", json={"text": "다시 보고 싶은 영화"})
                heard.append((answer.status_code, answer.headers["x-model-version"]))

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for each in callers:
        each.start()
    try:
        time.sleep(0.5)
        operation = ended(operator, begin(operator, "rollback"))
        time.sleep(0.5)
    finally:
        stop.set()
        for each in callers:
            each.join()
    assert operation["state"] == "done", operation
    assert "the gateway answers with it" in operation["result"]
    assert {status for status, _ in heard} == {200}
    assert list(dict.fromkeys(version for _, version in heard)) == ["1", "2"]
    log = (operated.var / "log" / "gateway.log").read_text(encoding="utf-8")
    assert "python -m export.rollback begins" in log and "rollback done" in log
    assert ADMIN_KEY not in log


def test_a_command_that_fails_has_failed_under_ray_too(operator):
    operation = ended(operator, begin(operator, "candidate-end"))
    assert operation["state"] == "failed"
    assert "names no candidate" in operation["lines"][-1]


def test_a_command_dies_with_the_gateway_that_runs_it(operated, operator):
    begin(operator, "candidate-start", mode="shadow", share=0.1)
    wait_until(lambda: operated.descendants("export.candidate start"), 20, "the command runs")
    (replica,) = operated.descendants("ServeReplica")
    replica.kill()
    wait_until(lambda: not operated.descendants("export.candidate start"), 5, "it has died too")
