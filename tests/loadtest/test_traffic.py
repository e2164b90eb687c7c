"""The generator against small real HTTP servers that delay, refuse, lie and hang up: each is told apart."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from aiohttp import web

from loadtest.traffic import Oracle, Traffic
from tests.bundles import set_serving, write_bundle
from tests.stack_process import ROOT
from tests.triton_process import free_ports

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def server(handler: Handler) -> Iterator[str]:
    """Its address; `handler` answers POST /v1/predict in a thread with a loop of its own."""
    (port,) = free_ports(1)
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/predict", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()

    async def end() -> None:
        await runner.cleanup()
        hanging = asyncio.all_tasks() - {asyncio.current_task()}
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    repository = tmp_path_factory.mktemp("models") / "model_repository"
    write_bundle(repository, 1, dialect=1)
    write_bundle(repository, 2, dialect=2)
    return repository


def answer(repository, text: str, version: int, *, tokens_of: int | None = None) -> dict:
    """What the gateway says: the golden row of `version`, its length perhaps that of another."""

    def row(number: int) -> dict:
        manifest = json.loads((repository / f"sentiment/{number}/manifest.json").read_text(encoding="utf-8"))
        return next(row for row in manifest["golden"] if row["text"] == text)

    probabilities = row(version)["probabilities"]
    winner = probabilities.index(max(probabilities))
    return {
        "prediction": ("negative", "positive")[winner],
        "label": ("부정", "긍정")[winner],
        "confidence": max(probabilities),
        "truncated": False,
        "input_tokens": len(row(tokens_of or version)["input_ids"]),
        "probs": dict(zip(("negative", "positive"), probabilities, strict=True)),
        "model_version": str(version),
    }


def golden(repository, version: int = 1, change: Callable[[dict], None] = lambda body: None, **options) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        body = answer(repository, (await request.json())["text"], version, **options)
        change(body)
        return web.json_response(body, headers={"x-model-version": str(version)})

    return handler


def outcomes_of(repository, handler: Handler, count: int = 10, **options) -> list:
    with server(handler) as url, Traffic(url, Oracle.of(repository), 200, **options) as traffic:
        deadline = time.monotonic() + 10
        while len(traffic.outcomes) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return traffic.outcomes


def test_right_answers_are_right_whichever_version_gives_them(repository):
    for version in (1, 2):
        outcomes = outcomes_of(repository, golden(repository, version), count=40)
        assert all(each.right and each.status == 200 and each.code == "ok" for each in outcomes)
        assert {each.version for each in outcomes} == {str(version)}


def lie(key: str, value: object) -> Callable[[dict], None]:
    return lambda body: body.update({key: value})


def nudge(body: dict) -> None:
    """By a little more than the tolerance of 0.02."""
    shift = 0.025 if body["probs"]["negative"] < 0.5 else -0.025
    body["probs"] = {"negative": body["probs"]["negative"] + shift, "positive": body["probs"]["positive"] - shift}


def swap_names(body: dict) -> None:
    body["probs"] = {"positive": body["probs"]["negative"], "negative": body["probs"]["positive"]}


def other_label(body: dict) -> None:
    body["label"] = {"부정": "긍정", "긍정": "부정"}[body["label"]]


def forget(body: dict) -> None:
    del body["probs"]


@pytest.mark.parametrize(
    "change",
    [nudge, swap_names, other_label, forget, lie("input_tokens", 1), lie("model_version", "2"),
     lie("prediction", "neutral")],
)  # fmt: skip
def test_an_answer_that_is_not_the_golden_one_is_wrong(repository, change):
    outcomes = outcomes_of(repository, golden(repository, 1, change))
    assert {(each.status, each.right) for each in outcomes} == {(200, False)}


def test_a_tokenizer_of_one_version_with_the_model_of_another_is_wrong(repository):
    assert {each.right for each in outcomes_of(repository, golden(repository, 1, tokens_of=2))} == {False}
    assert Oracle.of(repository).tells_apart("1", "2") > 0.5
    assert Oracle.of(repository).tells_apart("1", "1") == 0


def test_a_version_that_nobody_published_is_wrong_and_one_published_meanwhile_is_learnt(tmp_path):
    repository = tmp_path / "models"
    write_bundle(repository, 1)
    oracle = Oracle.of(repository)
    text = oracle.texts[0]
    assert not oracle.judge(text, "2", {"model_version": "2"})
    assert not oracle.judge(text, None, {})
    write_bundle(repository, 2, dialect=2)
    set_serving(repository, 2, previous=1)
    assert oracle.judge(text, "2", answer(repository, text, 2))


def test_refusals_as_promised_are_no_failures_and_others_are(repository):
    turn = iter(range(1_000_000))

    async def refuse(request: web.Request) -> web.Response:
        status, headers = [(429, {"retry-after": "2"}), (503, {"retry-after": "1"}), (504, {}),
                           (429, {}), (503, {"retry-after": "soon"}), (500, {})][next(turn) % 6]  # fmt: skip
        return web.json_response({"code": f"c{status}"}, status=status, headers=headers)

    with server(refuse) as url, Traffic(url, Oracle.of(repository), 200) as traffic:
        while len(traffic.outcomes) < 12:
            time.sleep(0.01)
    assert {(each.status, each.code, each.retry_after) for each in traffic.refusals()} == {
        (429, "c429", 2.0),
        (503, "c503", 1.0),
        (504, "c504", None),
    }
    assert {(each.status, each.retry_after) for each in traffic.failures()} == {(429, None), (503, None), (500, None)}
    assert len(traffic.refusals()) + len(traffic.failures()) == len(traffic.outcomes)
    assert all(each.right is None for each in traffic.outcomes)


def test_a_cut_connection_and_a_silent_server_are_failures_with_their_names(repository):
    async def cut(request: web.Request) -> web.Response:
        request.transport.abort()
        return web.Response()

    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    assert {(each.status, each.right) for each in outcomes_of(repository, cut)} == {(0, None)}
    outcomes = outcomes_of(repository, hang, timeout=0.3)
    assert {(each.status, each.code) for each in outcomes} == {(0, "TimeoutError")}
    assert all(0.25 < each.seconds < 5 for each in outcomes)


def test_latency_counts_from_the_due_time_also_while_the_server_stands_still(repository):
    """Sent one after the other, all but one request would be quick: the generator would have waited with the server."""
    right = golden(repository)
    standing = asyncio.Lock()
    first = iter([True])

    async def stall_once(request: web.Request) -> web.StreamResponse:
        async with standing:
            if next(first, False):
                await asyncio.sleep(1)
        return await right(request)

    with server(stall_once) as url, Traffic(url, Oracle.of(repository), 100) as traffic:
        traffic.wait_for(150, time.monotonic() - 1, 20)
    slow = [each for each in traffic.outcomes if each.seconds > 0.5]
    assert 30 <= len(slow) <= 75  # half a second's worth at 100 per second
    assert traffic.percentile(50) < 0.5 < traffic.percentile(90)
    assert traffic.lag(90) < 0.3, "it waited with the server"
    dues = sorted(each.due for each in traffic.outcomes)
    assert all(abs(later - sooner - 0.01) < 1e-6 for sooner, later in pairwise(dues))


def test_a_generator_that_cannot_keep_up_says_so(repository):
    """Its thread is starved by other work of this process, and the server is not to blame."""
    stop = threading.Event()

    def be_busy() -> None:
        while not stop.is_set():
            sum(range(2_000_000))

    with server(golden(repository)) as url, Traffic(url, Oracle.of(repository), 300) as traffic:
        traffic.wait_for(30, time.monotonic(), 20)
        calm = traffic.lag()
        busy = threading.Thread(target=be_busy)
        began = time.monotonic()
        busy.start()
        time.sleep(1)
        stop.set()
        busy.join()
    assert traffic.lag(99, after=began) > max(3 * calm, 0.02)
    assert all(each.seconds >= each.sent - each.due for each in traffic.outcomes), "being late is hidden"
    assert "of this generator" in traffic.table()


@pytest.mark.parametrize("processes", [0, 2])
def test_the_closed_loop_asks_again_as_soon_as_it_is_answered(repository, processes):
    right = golden(repository)

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return await right(request)

    with (
        server(slow) as url,
        Traffic(url, Oracle.of(repository), rate=None, callers=4, processes=processes) as traffic,
    ):
        began = time.monotonic()
        time.sleep(1)
        ended = time.monotonic()
    assert 20 < traffic.goodput(began, ended) < 4 / 0.05
    assert not traffic.failures()


def test_worker_processes_keep_the_rate_together_and_lose_no_outcome(repository):
    with server(golden(repository)) as url, Traffic(url, Oracle.of(repository), 100, processes=2) as traffic:
        began = time.monotonic()
        taken = traffic.wait_for(100, began, 20)
    assert 0.5 < taken < 5
    assert not traffic.failures()
    elapsed = max(each.due for each in traffic.outcomes) - min(each.due for each in traffic.outcomes)
    assert len(traffic.outcomes) == pytest.approx(100 * elapsed, abs=0.1 * 100 * elapsed + 2)


def test_waiting_for_answers_that_do_not_come_says_what_came_instead(repository):
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"code": "overloaded"}, status=429, headers={"retry-after": "1"})

    with (
        server(refuse) as url,
        Traffic(url, Oracle.of(repository), 50) as traffic,
        pytest.raises(TimeoutError, match=r"0 right answers within 0\.3 s, not 5") as told,
    ):
        traffic.wait_for(5, time.monotonic(), 0.3)
    assert "429 overloaded" in str(told.value)


def command(repository, url: str, *options: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NUNCHI_MODEL_REPOSITORY": str(repository), "NUNCHI_API_KEY": "k"}
    environment["NUNCHI_GATEWAY_PORT"] = url.rpartition(":")[2]
    arguments = [sys.executable, "-m", "loadtest.traffic", "--rate", "100", "--seconds", "0.5", *options]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command_prints_a_table_and_ends_with_one_where_requests_failed(repository):
    right = golden(repository)

    async def for_those_with_a_key(request: web.Request) -> web.StreamResponse:
        assert request.headers["authorization"] == "Bearer k"
        return await right(request)

    with server(for_those_with_a_key) as url:
        done = command(repository, url)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert list(lines) == ["sent", "right", "refused", "failed", "latency", "lag", "versions"]
    assert "(1: " in lines["versions"]
    with server(golden(repository, 1, nudge)) as url:
        done = command(repository, url)
    assert (done.returncode, "wrong: " in done.stdout) == (1, True)


def test_as_a_smoke_test_it_asks_for_one_version_and_says_what_it_saw(repository):
    with server(golden(repository, 1)) as url:
        done = command(repository, url, "--version", "1", "--json")
        other = command(repository, url, "--version", "2", "--json")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["right"] == seen["sent"] == seen["versions"]["1"] > 0
    assert (seen["refused"], seen["failed"]) == (0, 0)
    assert 0 < seen["p50_ms"] <= seen["p99_ms"]
    assert (other.returncode, other.stderr) == (1, "error: version 2 was to answer alone, not 1\n")


def test_the_command_without_a_stack_or_a_repository_is_one_sentence(repository, tmp_path):
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    done = command(repository, url)
    assert done.returncode == 2
    assert done.stderr == f"error: nothing answers at {url}; start the stack with make up\n"
    done = command(tmp_path, url)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/serving.json cannot be read")
