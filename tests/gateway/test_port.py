"""The gateway's port: answered by the standby, lent to a replica, never refused in between."""

import asyncio
import json
import os
import socket
import tempfile
import time
from contextlib import asynccontextmanager

import pytest

from gateway.errors import PortTaken
from gateway.guardian import remove_folders_of_the_dead
from gateway.port import DRAIN, HERE, NAME, READY, WHEN_READY, Port, open_port
from gateway.standby import HEAL_SECONDS, answer

pytestmark = pytest.mark.anyio
POST = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\n\r\n"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@asynccontextmanager
async def opened(folder, beside=None):
    """(the guardian's port, its number)"""
    listener = open_port("127.0.0.1", 0)
    number = listener.getsockname()[1]
    async with Port(listener, folder, beside) as port:
        yield port, number


class Replica:
    """Speaks the replica's side of the loan."""

    def __init__(self, folder):
        self.guardian = socket.socket(socket.AF_UNIX)
        self.guardian.connect(str(folder / NAME))
        self.guardian.settimeout(5)

    async def hear(self) -> bytes:
        """The guardian's word; `listener` is the port when it came along."""
        word, descriptors, *_ = await asyncio.to_thread(socket.recv_fds, self.guardian, 1, 1)
        if descriptors:
            self.listener = socket.socket(fileno=descriptors[0])
        return word


async def ask(number: int, request: bytes = POST + b"hello") -> tuple[bytes, dict]:
    """(head, body) of the answer on a new connection, which is then closed by the other side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.write(request)
    async with asyncio.timeout(5):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head.lower(), json.loads(body or "{}")


async def accepted(listener: socket.socket) -> socket.socket:
    async with asyncio.timeout(5):
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    return connection


async def test_without_a_replica_callers_read_503_and_when_to_come_back(tmp_path):
    async with opened(tmp_path) as (_, number):
        head, body = await ask(number)
    assert head.startswith(b"http/1.1 503 ") and b"\r\nretry-after: 1\r\n" in head
    assert b"\r\ncontent-type: application/problem+json\r\n" in head and b"\r\nconnection: close" in head
    assert (body["status"], body["code"]) == (503, "model_unavailable")
    assert body["instance"].encode() in head


async def test_a_caller_whose_body_is_still_coming_may_finish_it_and_reads_the_answer(tmp_path):
    def ask_slowly(number: int) -> bytes:
        with socket.create_connection(("127.0.0.1", number), timeout=5) as connection:
            connection.sendall(POST.replace(b": 5", b": 900000"))
            begin = connection.recv(13)  # it has answered already
            for _ in range(9):
                connection.sendall(b"x" * 100_000)
                time.sleep(0.01)  # for the other side to take offence, if it does
            return begin

    async with opened(tmp_path) as (_, number):
        assert await asyncio.to_thread(ask_slowly, number) == b"HTTP/1.1 503 "


def test_liveness_stays_up_as_long_as_healing_takes_and_readiness_does_not():
    assert answer(HEALTH, HEAL_SECONDS - 1).startswith(b"HTTP/1.1 200 ")
    assert answer(HEALTH, HEAL_SECONDS + 1).startswith(b"HTTP/1.1 503 ")
    assert answer(b"GET /readyz HTTP/1.1\r\n\r\n", 0).startswith(b"HTTP/1.1 503 ")


def test_a_head_request_gets_no_body():
    assert answer(b"HEAD /healthz HTTP/1.1\r\n\r\n", 0).endswith(b"\r\n\r\n")


async def test_a_replica_borrows_the_port_and_its_death_is_noticed_at_once(tmp_path):
    async with opened(tmp_path) as (_, number):
        replica = Replica(tmp_path)
        assert await replica.hear() == HERE
        asking = asyncio.create_task(ask(number, HEALTH))
        connection = await accepted(replica.listener)
        waiting = asyncio.create_task(ask(number))  # in the queue when the replica dies
        await asyncio.sleep(0.1)
        assert not waiting.done()
        for dying in (connection, replica.listener, replica.guardian):
            dying.close()
        assert (await waiting)[0].startswith(b"http/1.1 503 ")
        await asyncio.gather(asking, return_exceptions=True)


async def test_beside_another_gateway_nothing_is_answered_before_a_replica_is_ready(tmp_path):
    reading, writing = os.pipe()
    async with opened(tmp_path, beside=writing) as (port, number):
        port._listener.listen()  # as the other gateway does
        waiting = asyncio.create_task(ask(number))
        replica = Replica(tmp_path)
        assert await replica.hear() == WHEN_READY
        assert not waiting.done()
        replica.guardian.send(READY)
        assert await replica.hear() == HERE
        assert os.read(reading, 1) == READY
        (await accepted(replica.listener)).close()
        await asyncio.gather(waiting, return_exceptions=True)
        for dying in (replica.listener, replica.guardian):
            dying.close()
        assert (await ask(number))[0].startswith(b"http/1.1 503 "), "from now on it stands by itself"
    os.close(reading)


async def test_draining_waits_for_the_replica_and_leaves_the_port(tmp_path):
    async with opened(tmp_path) as (port, number):
        replica = Replica(tmp_path)
        assert await replica.hear() == HERE
        draining = asyncio.create_task(port.drain(5))
        assert await replica.hear() == DRAIN
        assert not draining.done()
        for leaving in (replica.listener, replica.guardian):
            leaving.close()
        await draining
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", number)


def test_a_port_of_somebody_else_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"cannot listen on 127\.0\.0\.1:{number} .*NUNCHI_GATEWAY_PORT"):
            open_port("127.0.0.1", number)


def test_the_folder_of_a_dead_guardian_goes_even_where_it_had_our_number(tmp_path, monkeypatch):
    """In a container every guardian has the same process id."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours, living, dead = (tmp_path / f"nunchi-ray-{pid}" for pid in (os.getpid(), os.getppid(), 2**22 + 1))
    for folder in (ours, living, dead):
        folder.mkdir()
    remove_folders_of_the_dead()
    assert [folder.exists() for folder in (ours, living, dead)] == [False, True, False]
