"""Answers for the port while no replica does: 503 `model_unavailable` with `Retry-After`, so that nobody is refused.

It speaks just enough HTTP for that: it reads the head of one request, answers, and closes, so that the client's next
request finds the replica.  Liveness (/healthz) stays 200 for `HEAL_SECONDS`: a replica is replaced in a few seconds,
and whoever restarted the process meanwhile would only make it longer.  After that it is 503 too, because what does not
heal by itself needs that restart.
"""

import asyncio
import json
import socket
import time
import uuid
from contextlib import suppress

from gateway.errors import PROBLEMS, ModelUnavailable

HEAL_SECONDS = 30.0
HEAD_SECONDS = 5.0  # for the head of a request to arrive
HEAD_BYTES = 64 * 1024
LINGER_SECONDS = 1.0  # for a client to finish its body and read the answer; a close before would take it away
BACKLOG = 2048
DETAIL = "The gateway is being started or replaced; try again in a moment"


class Standby:
    """The responder on a listening, non-blocking socket that others use too; `start` and `stop` as often as needed."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._since: float | None = None
        self._answering: set[asyncio.Task] = set()

    def start(self) -> None:
        if self._since is None:
            self._since = time.monotonic()
            self._listener.listen(BACKLOG)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accept nothing any more; what was accepted is still answered, and what is queued is left to others."""
        if self._since is not None:
            self._since = None
            asyncio.get_running_loop().remove_reader(self._listener)

    def _accept(self) -> None:
        with suppress(OSError):  # nothing is left in the queue, or the client has gone
            while True:
                connection, _ = self._listener.accept()
                task = asyncio.create_task(self._answer(connection, time.monotonic() - self._since))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)

    async def _answer(self, connection: socket.socket, seconds: float) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=HEAD_BYTES)
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(HEAD_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                writer.write(answer(head, seconds))
                writer.write_eof()
                async with asyncio.timeout(LINGER_SECONDS):
                    while await reader.read(HEAD_BYTES):
                        pass
        finally:
            writer.close()


def answer(head: bytes, seconds: float) -> bytes:
    """The whole answer to a request that begins with `head`, `seconds` after the port was left to us."""
    method, _, rest = head.partition(b" ")
    path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
    identity = uuid.uuid4().hex
    if path == b"/healthz" and seconds < HEAL_SECONDS:
        status, headers, body = "200 OK", {"content-type": "application/json"}, {"status": "alive"}
    else:
        problem = PROBLEMS[ModelUnavailable]
        status = f"{problem.status} Service Unavailable"
        headers = {"content-type": "application/problem+json", **problem.headers}
        body = {
            "type": f"urn:nunchi:problem:{problem.code}",
            "title": problem.title,
            "status": problem.status,
            "detail": DETAIL,
            "code": problem.code,
            "instance": identity,
        }
    content = json.dumps(body, separators=(",", ":")).encode()
    headers |= {"content-length": str(len(content)), "x-request-id": identity, "connection": "close"}
    lines = [f"HTTP/1.1 {status}", *(f"{name.lower()}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("ascii") + (b"" if method == b"HEAD" else content)
