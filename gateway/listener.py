"""The replica's HTTP server: it borrows its port from the guardian (port.py) and leaves without losing a request.

Ray Serve's own start binds a socket of its own, and its shutdown goes on accepting until nothing is in flight, which
under traffic is never, then closes connections a client may just be writing to.  So its one function that starts the
server is replaced; all it promises Ray is a task and a server.

On one machine the server asks the application itself: what Serve does around each request (a second id, a count for the
autoscaler, time limits of its own) costs a sixth of an answer.  In a cluster, where that count says how many replicas
there shall be, it goes through Serve.
"""

import asyncio
import functools
import logging
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp, Message

from gateway.connection import CLOSE, Connection
from gateway.doorman import Doorman
from gateway.port import DRAIN, NAME, READY, WHEN_READY

if TYPE_CHECKING:
    from ray.serve.config import HTTPOptions

QUEUE_SECONDS = 0.05  # in which the event loop accepts what is queued
IDLE_SECONDS = 2.0  # for a kept connection to bring one more request, whose answer then ends it in good order
BACKLOG = 2048  # as uvicorn asks for
# Connections in one turn of the event loop.  libuv takes one from a socket (libuv#3696), so a turn that is long because
# of a crowd would keep newcomers waiting for seconds, refused or not; the same socket under many descriptors is many.
ACCEPTED_AT_ONCE = 16
LOOK_SECONDS = 0.02  # between two looks at something that comes soon


def borrow_the_port(folder: Path, application: ASGIApp, doorman: Doorman) -> None:
    """Let Ray Serve's replica of `application`, in this process, listen on the port of the guardian of this folder."""
    # Imported here because Ray reads its environment while it is imported.
    from ray.serve._private import replica

    async def start_borrowing(
        app: ASGIApp, options: "HTTPOptions", *, event_loop: asyncio.AbstractEventLoop, enable_so_reuseport: bool
    ) -> tuple[asyncio.Task, uvicorn.Server]:
        guardian = socket.socket(socket.AF_UNIX)
        guardian.connect(str(folder / NAME))
        server = Server(configuration(application, options, doorman))
        return event_loop.create_task(server.serve_for(guardian, application, app.__self__)), server

    replica.start_asgi_http_server = start_borrowing


def stand_behind_the_proxy(doorman: Doorman) -> None:
    """Let Ray Serve's replica, in this process, listen on the port that Serve chooses and tells its HAProxy.

    Ray would share that port with whoever has it; here it is taken for oneself, or Serve is asked for another.
    """
    from ray.serve._private import http_util, replica

    async def start_alone(
        app: ASGIApp, options: "HTTPOptions", *, event_loop: asyncio.AbstractEventLoop, enable_so_reuseport: bool
    ) -> tuple[asyncio.Task, uvicorn.Server]:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        try:
            listener = socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise RuntimeError(f"{options.host}:{options.port} is taken") from error  # as Ray's own says it
        server = uvicorn.Server(configuration(http_util._apply_middlewares(app, options.middlewares), options, doorman))
        return event_loop.create_task(server.serve(sockets=[listener])), server

    replica.start_asgi_http_server = start_alone


def configuration(app: ASGIApp, options: "HTTPOptions", doorman: Doorman) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # else uvicorn wraps every message, for its log
    return uvicorn.Config(
        app,
        http=functools.partial(Connection, doorman),
        timeout_keep_alive=options.keep_alive_timeout_s,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
    )


async def borrow(guardian: socket.socket, app: ASGIApp) -> socket.socket:
    """The listening socket; RuntimeError when the guardian has none to give any more."""
    message, descriptors, *_ = await asyncio.to_thread(socket.recv_fds, guardian, 1, 1)
    if message == WHEN_READY:
        while not await is_ready(app):
            await asyncio.sleep(LOOK_SECONDS)
        guardian.send(READY)
        message, descriptors, *_ = await asyncio.to_thread(socket.recv_fds, guardian, 1, 1)
    if not descriptors:
        raise RuntimeError("the gateway is stopping")
    guardian.setblocking(False)
    return socket.socket(fileno=descriptors[0])


async def is_ready(app: ASGIApp) -> bool:
    """What GET /readyz says, asked inside this process."""
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/readyz",
        "raw_path": b"/readyz",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 0),
        "server": None,
    }
    await app(scope, receive, send)
    return status == 200


class Server(uvicorn.Server):
    """A uvicorn that leaves when it is told to, or when nobody is there any more to tell it."""

    async def serve_for(self, guardian: socket.socket, app: ASGIApp, owner: object) -> None:
        """Until the guardian has us drain, or Ray (`should_exit`) has us stop.  `owner` is Ray's replica."""
        with guardian:
            while not owner._user_callable_initialized:  # Ray starts the server a moment before, and asserts this
                await asyncio.sleep(LOOK_SECONDS)
            listener = await borrow(guardian, app)
            doors = [listener, *(listener.dup() for _ in range(ACCEPTED_AT_ONCE - 1))]
            serving = asyncio.create_task(self.serve(sockets=doors))
            told = asyncio.create_task(asyncio.get_running_loop().sock_recv(guardian, len(DRAIN)))
            await asyncio.wait([serving, told], return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await self.drain()
            told.cancel()
            await serving

    async def drain(self) -> None:
        """Accept what is queued and no more; answer what comes on open connections, and close each after its answer."""
        await asyncio.sleep(QUEUE_SECONDS)
        for server in self.servers:
            server.close()
        self.config.encoded_headers.append(CLOSE)  # of which uvicorn makes its default headers every second
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        for connection in self.server_state.connections:
            if connection.cycle is not None and not connection.cycle.response_complete:
                connection.shutdown()  # not closed, but not kept alive either
        until = time.monotonic() + IDLE_SECONDS
        while self.server_state.connections and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
        self.should_exit = True  # closes what is idle and waits for the rest
