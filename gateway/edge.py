"""The outermost layer, in front of Ray Serve's own: request ids, the headers Ray would obey, and early refusals.

Ray Serve gives meaning to a handful of request headers: with them a client could shorten the deadline, or crash the
request with bytes that are not UTF-8.  They are taken off here, before Ray sees them.  Ray also echoes `x-request-id`;
here it gets a sane one, and the second copy it adds to the answer is dropped.

In an overload most requests are refused, and one event loop answers all of them, so a prediction there is no room for
is refused here (`Doorman`), before Ray and FastAPI spend ten times as much on it and before its body is read.  What
passes may still be refused by `Admission.let_in`, which knows how many texts there are.

Ray Serve loads `middlewares` by name (serve.py), in each process that listens, so this module imports nothing heavy.
In the replica the application is made first, and posts its `Doorman`.
"""

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import orjson
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.admission import SMALL, Admission
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
FEWEST_TEXTS = {"/v1/predict": (1,), "/v1/predict/batch": (1, SMALL + 1)}  # of the kinds of request a route takes
PROBLEM_JSON = "application/problem+json"


def request_id(headers: Headers) -> str:
    """The client's id when it is sane (1 to 128 plain characters), else a new one."""
    offered = headers.get("x-request-id", "")
    return offered if SANE_REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


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


@dataclass(frozen=True)
class Doorman:
    """Refuses what finds no room.  `count(route, status, code, version)` is told of each."""

    admission: Admission
    live_version: Callable[[], str]
    count: Callable[[str, int, str, str], None]

    def refuses(self, scope: Scope) -> bool:
        """Pages of other origins go on: the application knows the headers their browsers ask for (CORS)."""
        fewest = FEWEST_TEXTS.get(scope["path"])
        return (
            fewest is not None
            and not any(map(self.admission.has_room, fewest))
            and scope["method"] == "POST"
            and not any(name == b"origin" for name, _ in scope["headers"])
        )

    async def refuse(self, scope: Scope, identity: str, send: Send) -> None:
        started = time.perf_counter()
        error = self.admission.refusal(FEWEST_TEXTS[scope["path"]][0])
        problem = problem_of(error)
        version = self.live_version()
        body = problem_body(error, identity)
        headers = [
            (b"content-type", PROBLEM_JSON.encode()),
            (b"content-length", b"%d" % len(body)),
            *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
            (REQUEST_ID, identity.encode("ascii")),
            (b"x-model-version", version.encode("ascii")),
            *((b"x-%s-time" % stage, b"0.000") for stage in (b"tokenization", b"queue", b"inference")),
            (b"x-total-time", b"%.3f" % (1000 * (time.perf_counter() - started))),
        ]
        self.count(scope["path"], problem.status, problem.code, version)
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Edge:
    """`doorman` is None where no application runs, as in Ray's own proxy."""

    def __init__(self, app: ASGIApp, doorman: Doorman | None = None) -> None:
        self.app = app
        self.doorman = doorman

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        identity = request_id(Headers(scope=scope))
        if self.doorman and scope["type"] == "http" and self.doorman.refuses(scope):
            await self.doorman.refuse(scope, identity, send)
            return
        encoded = identity.encode("ascii")
        headers = [(name, value) for name, value in scope["headers"] if name not in OBEYED_BY_RAY]
        headers += [(REQUEST_ID, encoded), WATCHED_BY_THE_APPLICATION]

        async def send_with_one_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [each for each in message["headers"] if each[0] != REQUEST_ID]
                message = {**message, "headers": [*others, (REQUEST_ID, encoded)]}
            await send(message)

        await self.app({**scope, "headers": headers}, receive, send_with_one_id)


_posted: list[Doorman] = []


def post(doorman: Doorman) -> None:
    """Put this one in front of whatever this process listens with from now on."""
    _posted[:] = [doorman]


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its own handling of HTTP."""
    return [Middleware(Edge, *_posted)]
