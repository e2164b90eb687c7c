"""The replica's server leaves without losing a request: in flight, on kept connections, or still in the queue."""

import asyncio
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.listener import ACCEPTED_AT_ONCE, IDLE_SECONDS, Server
from gateway.port import NAME, Port, open_port

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def app(scope, receive, send):
    """Answers after as many seconds as the path says."""
    await asyncio.sleep(float(scope["path"].removeprefix("/")))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def lent(folder):
    """(the guardian's port, a client of it, the task of the server that has borrowed it)"""
    listener = open_port("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with Port(listener, folder, None) as port, httpx.AsyncClient(base_url=url, timeout=20) as client:
        guardian = socket.socket(socket.AF_UNIX)
        guardian.connect(str(folder / NAME))
        server = Server(uvicorn.Config(app, lifespan="off", access_log=False, log_config=None))
        replica = SimpleNamespace(_user_callable_initialized=True)
        serving = asyncio.create_task(server.serve_for(guardian, app, replica))
        while (await client.get("/0")).status_code != 200:
            await asyncio.sleep(0.02)
        yield port, client, serving


@pytest.mark.parametrize("seconds", [0.5, IDLE_SECONDS + 0.5])
async def test_what_is_in_flight_is_answered_and_says_that_the_connection_ends(tmp_path, seconds):
    async with lent(tmp_path) as (port, client, serving):
        under_way = asyncio.create_task(client.get(f"/{seconds}"))
        await asyncio.sleep(0.1)
        await port.drain(10)
        answer = await under_way
        await serving
    assert (answer.text, answer.headers["connection"]) == ("ok", "close")


async def test_a_kept_connection_may_bring_one_more_request(tmp_path):
    async with lent(tmp_path) as (port, client, serving):
        assert "connection" not in (await client.get("/0")).headers
        draining = asyncio.create_task(port.drain(10))
        await asyncio.sleep(0.3)
        assert not draining.done()
        with pytest.raises(httpx.ConnectError):
            await asyncio.to_thread(httpx.get, str(client.base_url))
        answer = await client.get("/0")
        assert (answer.text, answer.headers["connection"]) == ("ok", "close")
        async with asyncio.timeout(1):  # nobody is left to wait for
            await draining
        await serving


async def test_what_is_queued_is_accepted_before_the_port_is_left(tmp_path):
    async def ask(connection: socket.socket) -> bytes:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(connection, b"GET /0.1 HTTP/1.1\r\nhost: here\r\n\r\n")
        answer = b""
        while not answer.endswith(b"ok"):
            more = await asyncio.get_running_loop().sock_recv(connection, 1000)
            assert more, answer
            answer += more
        connection.close()
        return answer

    async with lent(tmp_path) as (port, client, serving):
        address = (client.base_url.host, client.base_url.port)
        # No task runs while these connect, so nobody has accepted them when the port is left.
        queued = [socket.create_connection(address) for _ in range(20)]
        leaving = asyncio.create_task(port.drain(10))
        answers = await asyncio.gather(*map(ask, queued))
        assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
        await leaving
        await serving
        with pytest.raises(httpx.ConnectError):
            await client.get("/0")


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
async def test_many_newcomers_are_accepted_in_one_turn_of_the_event_loop(tmp_path, monkeypatch):
    turn, answered_in = 0, []

    def count() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    async def noting(scope, receive, send):
        answered_in.append(turn)
        await app(scope, receive, send)

    async with lent(tmp_path) as (port, client, serving):
        monkeypatch.setattr(
            RequestResponseCycle, "run_asgi", lambda cycle, _, run=RequestResponseCycle.run_asgi: run(cycle, noting)
        )
        address = (client.base_url.host, client.base_url.port)
        newcomers = [socket.create_connection(address) for _ in range(4 * ACCEPTED_AT_ONCE)]
        for each in newcomers:
            each.sendall(b"GET /0 HTTP/1.1\r\nhost: here\r\n\r\n")
        count()
        for each in newcomers:
            await asyncio.to_thread(each.recv, 1000)
            each.close()
        await port.drain(10)
        await serving
    assert answered_in[len(newcomers) - 1] - answered_in[0] < len(newcomers) / 4


async def test_without_its_guardian_it_leaves_too(tmp_path):
    async with lent(tmp_path) as (port, _, serving):
        for connection in port._borrowers:
            connection.shutdown(socket.SHUT_RDWR)
        async with asyncio.timeout(10):
            await serving
