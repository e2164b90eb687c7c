"""The capacity finder against small real servers whose capacity is known."""

import asyncio
import os
import subprocess
import sys

from aiohttp import web

from loadtest.capacity import find_capacity
from loadtest.doors import gateway
from tests.loadtest.test_traffic import server
from tests.stack_process import ROOT
from tests.triton_process import free_ports


def test_the_rate_found_is_one_that_the_server_can_do():
    """It answers one after the other, 50 ms each: at 32 a second they soon wait longer than the limit."""
    turn = None

    async def one_by_one(request: web.Request) -> web.Response:
        nonlocal turn
        turn = turn or asyncio.Lock()
        async with turn:
            await asyncio.sleep(0.05)
        return web.json_response({})

    with server(one_by_one) as url:
        found = find_capacity(gateway(url, ["좋다"]), p99=300, seconds=1)
    assert found["rate"] < 32
    held = [step["rate"] for step in found["steps"] if step["holds"]]
    assert found["rate"] == max(held, default=0)


def command(url: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"NUNCHI_GATEWAY_PORT": url.rpartition(":")[2]}
    words = [sys.executable, "-m", "loadtest.capacity", "--p99", "50", "--seconds", "0.5"]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_what_is_refused_is_not_capacity():
    asked = 0

    async def first_only(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response({}, status=200 if asked == 1 else 429)

    with server(first_only) as url:
        done = command(url)
    assert (done.returncode, "capacity 0.0 requests per second" in done.stdout) == (1, True)


def test_without_a_stack_it_is_one_sentence():
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    done = command(url)
    assert (done.returncode, done.stderr) == (2, f"error: nothing answers at {url}; start the stack with make up\n")
