"""Clients that send slowly, read slowly, do nothing, or leave, in numbers: the others are answered as ever."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx

from loadtest.traffic import Oracle, Traffic
from tests.chaos.processes import fate_of

RATE = 50.0
SCENARIO = "slow clients"
IN_FLIGHT = re.compile(r"^nunchi_gateway_in_flight_texts (\S+)", re.MULTILINE)

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def idle(writer: asyncio.StreamWriter) -> None:
    """Connected, and nothing more."""


async def slow_body(writer: asyncio.StreamWriter) -> None:
    """Promises a body and gives a byte of it now and then, until it is cut off."""
    writer.write(head("/v1/predict", 10_000))
    for _ in range(1_000):
        writer.write(b" ")
        await asyncio.sleep(0.2)


async def slow_reader(writer: asyncio.StreamWriter) -> None:
    """Asks for far more than the buffers on the way hold, and takes none of it."""
    question = batch(20)
    writer.write(head("/v1/predict/batch", len(question)) + question)
    writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 500)


@contextmanager
def crowd(port: int, members: dict[Behaviour, int]) -> Iterator[None]:
    """So many clients of each kind, all of them connected, from a thread of their own; in the end they hang up."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    tasks: list[asyncio.Task] = []
    writers: list[asyncio.StreamWriter] = []

    async def gather() -> None:
        for behave, count in members.items():
            for _ in range(count):
                plug = socket.socket()
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                plug.setblocking(False)
                await loop.sock_connect(plug, ("127.0.0.1", port))
                _, writer = await asyncio.open_connection(sock=plug)
                writer.transport.pause_reading()
                writers.append(writer)
                tasks.append(asyncio.create_task(behave(writer)))

    async def dismiss() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(gather(), loop).result(60)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(dismiss(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_two_thousand_idle_a_hundred_slow_senders_and_slow_readers_hurt_nobody(shipped_stack, full, figures):
    stack, oracle = shipped_stack, Oracle.of(shipped_stack.repository)
    idlers, seconds = (2000, 30) if full else (500, 5)
    with Traffic(stack.url, oracle, RATE, processes=1) as traffic:
        traffic.wait_for(20, time.monotonic(), 20)
        before = time.monotonic()
        time.sleep(seconds)
        came = time.monotonic()
        with crowd(stack.ports["GATEWAY_PORT"], {idle: idlers, slow_body: 100, slow_reader: 20}):
            connected = time.monotonic()
            time.sleep(seconds)
            ready = httpx.get(f"{stack.url}/readyz", timeout=30).status_code
            left = time.monotonic()
        time.sleep(1)
    calm, crowded = traffic.percentile(99, before, came), traffic.percentile(99, connected, left)
    note = f"{idlers} idle, 100 slow bodies, 20 slow readers; generator's lag p99 {1e3 * traffic.lag():.1f} ms"
    figures.record(SCENARIO, "p99 without them", 1e3 * calm, "ms", f"{RATE:.0f} req/s")
    figures.record(SCENARIO, "p99 among them", 1e3 * crowded, "ms", note)
    figures.record(SCENARIO, "failed, wrong or refused", len(traffic.failures() + traffic.refusals()))
    assert not traffic.failures(), fate_of(traffic.failures())
    assert not traffic.refusals(), fate_of(traffic.refusals())
    assert ready == 200


def test_clients_that_leave_free_their_places(shipped_stack, figures):
    """Together they ask for more than is ever let in, and hang up at once."""
    stack, question = shipped_stack, batch(200)

    async def leave(writer: asyncio.StreamWriter) -> None:
        writer.write(head("/v1/predict/batch", len(question)) + question)

    with crowd(stack.ports["GATEWAY_PORT"], {leave: 50}):
        deadline = time.monotonic() + 20
        while in_flight(stack.url) < 200:
            assert time.monotonic() < deadline, "none of them was let in"
    hung_up = time.monotonic()
    while in_flight(stack.url) > 0:
        assert time.monotonic() < hung_up + 5, "the places of clients that left were not freed"
        time.sleep(0.02)
    figures.record(SCENARIO, "places of 50 clients that left were free after", time.monotonic() - hung_up, "s")
    with Traffic(stack.url, Oracle.of(stack.repository), RATE) as traffic:
        traffic.wait_for(20, time.monotonic(), 5)
    assert not traffic.failures() + traffic.refusals()


def in_flight(url: str) -> float:
    return float(IN_FLIGHT.search(httpx.get(f"{url}/metrics", timeout=30).text)[1])


def head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


def batch(texts: int) -> bytes:
    return json.dumps({"texts": ["정말 재미있는 영화였다 " * 10] * texts}, ensure_ascii=False).encode()
