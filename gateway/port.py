"""The gateway's port, held by the guardian and lent to the replica, so that no connection is ever refused.

There is one listening socket, opened once and passed on (SCM_RIGHTS), where SO_REUSEPORT would give every process one
of its own: a connection that is queued when a replica is killed, or stops accepting, is then not lost with that
process, but answered by the next one, or by the standby until there is one.  `make up` passes its socket to the
guardian in the same way, so two gateways can share it while the one takes over from the other.

The replica borrows the port over a Unix socket in the gateway's own folder and keeps that connection open, so its death
is known at once.  Requests in flight on a killed replica are cut; only a proxy in front could help that.
"""

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Self

from gateway.errors import PortTaken
from gateway.standby import Standby

NAME = "port"  # of the Unix socket in the folder
HERE = b"h"  # the guardian: here is the port
WHEN_READY = b"w"  # the guardian: say READY when a prediction can be answered, the port comes then
READY = b"r"
DRAIN = b"d"  # the guardian: accept nothing more, finish, and hang up


def open_port(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet; PortTaken when somebody else has it."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the past may be in TIME_WAIT
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"the gateway cannot listen on {host}:{port} ({error.strerror}); stop what listens there, or set "
            "NUNCHI_GATEWAY_PORT (and NUNCHI_HOST) to something free"
        ) from error
    return listener


class Port:
    """Use as `async with Port(…) as port:` in the guardian.

    `beside` is a pipe to write one byte into once a replica is ready.  Until then another gateway answers on this
    socket, so this one keeps its hands off.
    """

    def __init__(self, listener: socket.socket, folder: Path, beside: int | None) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._path = folder / NAME
        self._beside = beside
        self._standby = Standby(listener)
        self._borrowers: dict[socket.socket, asyncio.Task] = {}
        self._leaving = False

    async def __aenter__(self) -> Self:
        self._counter = socket.socket(socket.AF_UNIX)
        self._counter.bind(str(self._path))
        self._counter.listen()
        self._counter.setblocking(False)
        self._lending = asyncio.create_task(self._lend())
        if self._beside is None:
            self._standby.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._lending.cancel()
        self._standby.stop()
        for closing in (self._counter, self._listener, *self._borrowers):
            closing.close()

    async def drain(self, seconds: float) -> None:
        """Give the port up: the replica accepts what is queued, then no more, and finishes what is in flight."""
        self._leaving = True
        self._standby.stop()
        self._listener.close()
        for replica in self._borrowers:
            with suppress(OSError):
                replica.send(DRAIN)
        if self._borrowers:
            await asyncio.wait(self._borrowers.values(), timeout=seconds)

    async def _lend(self) -> None:
        while True:
            replica, _ = await asyncio.get_running_loop().sock_accept(self._counter)
            self._borrowers[replica] = asyncio.create_task(self._lend_to(replica))

    async def _lend_to(self, replica: socket.socket) -> None:
        """Until it hangs up: because it died, or has drained."""
        try:
            with suppress(OSError):
                if (self._beside is None or await self._becomes_ready(replica)) and not self._leaving:
                    self._standby.stop()
                    socket.send_fds(replica, [HERE], [self._listener.fileno()])
                    await asyncio.get_running_loop().sock_recv(replica, 1)
        finally:
            del self._borrowers[replica]
            replica.close()
        if not self._borrowers and not self._leaving and self._beside is None:
            self._standby.start()

    async def _becomes_ready(self, replica: socket.socket) -> bool:
        replica.send(WHEN_READY)
        if await asyncio.get_running_loop().sock_recv(replica, 1) != READY:
            return False
        if self._beside is not None:
            os.write(self._beside, READY)
            os.close(self._beside)
            self._beside = None
        return True
