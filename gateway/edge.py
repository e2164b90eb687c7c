"""Request ids; and where Ray Serve handles requests (cluster.py), a layer in front of it for the headers it would obey.

Ray Serve gives meaning to a handful of request headers: with them a client could shorten the deadline, or crash the
request with bytes that are not UTF-8.  They are taken off here, before Ray sees them.  Ray also echoes `x-request-id`;
here it gets a sane one, and the second copy it adds to the answer is dropped.

Ray Serve loads `middlewares` by name (serve.py), in each process that listens, so this module imports nothing heavy.
"""

import random
import re

import orjson
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import RequestError, problem_of

REQUEST_ID = b"x-request-id"
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")
OBEYED_BY_RAY = {
    REQUEST_ID,
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
    b"serve_multiplexed_model_id",
}
# The application watches for clients that leave by itself (envelope.py), which costs one task instead of Ray's three.
WATCHED_BY_THE_APPLICATION = (b"x-request-disconnect-disabled", b"?1")
PROBLEM_JSON = "application/problem+json"


def request_id(headers: Headers) -> str:
    """The client's id when it is sane (1 to 128 plain characters), else a new one."""
    return sane_id(headers.get("x-request-id", ""))


def sane_id(offered: str) -> str:
    return offered if SANE_REQUEST_ID.fullmatch(offered) else f"{random.getrandbits(128):032x}"


def problem_body(error: RequestError, identity: str) -> bytes:
    """RFC 9457, of the request `identity`."""
    problem = problem_of(error)
    body = {
        "type": f"urn:nunchi:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": error.detail,
        "code": problem.code,
        "instance": identity,
    }
    if error.row is not None:
        body["row"] = error.row
    if error.faults:
        body["faults"] = error.faults
    return orjson.dumps(body)


class Edge:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        identity = request_id(Headers(scope=scope)).encode("ascii")
        headers = [(name, value) for name, value in scope["headers"] if name not in OBEYED_BY_RAY]
        headers += [(REQUEST_ID, identity), WATCHED_BY_THE_APPLICATION]

        async def send_with_one_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [each for each in message["headers"] if each[0] != REQUEST_ID]
                message = {**message, "headers": [*others, (REQUEST_ID, identity)]}
            await send(message)

        await self.app({**scope, "headers": headers}, receive, send_with_one_id)


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its own handling of HTTP."""
    return [Middleware(Edge)]
