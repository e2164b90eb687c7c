"""Around every request: its id and clock, the headers of every answer, errors as problem+json, counting.

Pure ASGI, inside FastAPI.  `Envelope` is the only place where an exception becomes an answer: a RequestError by the
table in errors.py, anything else as 500 `internal`, with the traceback in the log under the request's id.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.edge import request_id
from gateway.errors import ClientGone, Internal, RequestError, problem_of
from gateway.metrics import DISCONNECTED, Metrics
from gateway.stages import Stages

PROBLEM_JSON = "application/problem+json"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Exchange:
    """One request and its answer.  `started` is time.perf_counter(), `until` the deadline in time.monotonic()."""

    request_id: str
    until: float
    route: str = "other"
    code: str = "ok"
    started: float = field(default_factory=time.perf_counter)
    stages: Stages = field(default_factory=Stages)
    version: str | None = None


def exchange_of(scope: Scope) -> Exchange:
    return scope["nunchi.exchange"]


class Envelope:
    """`live_version()` names the version in headers of answers that no bundle was chosen for (errors, /healthz)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        live_version: Callable[[], str],
        deadline_seconds: float,
        routes: frozenset[str],
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.live_version = live_version
        self.deadline_seconds = deadline_seconds
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(
            request_id(Headers(scope=scope)),
            time.monotonic() + self.deadline_seconds,
            scope["path"] if scope["path"] in self.routes else "other",
        )
        scope["nunchi.exchange"] = exchange
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers(exchange)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientGone:
            status, exchange.code = DISCONNECTED, "client_gone"
        except Exception as error:
            if status:  # the answer is half sent; all that is left is to break it off
                raise
            await self._problem(error, exchange)(scope, receive, send_with_headers)
        finally:
            self.metrics.answered(exchange.route, status, exchange.code)

    def _problem(self, error: Exception, exchange: Exchange) -> Response:
        if not isinstance(error, RequestError):
            log.error("request %s failed", exchange.request_id, exc_info=error)
            error = Internal(
                "Something went wrong in the gateway, not in the request; tell the operator the id of this request"
            )
        exchange.code = problem_of(error).code
        return problem_response(error, exchange.request_id)

    def _headers(self, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        stages = exchange.stages
        return [
            (b"x-request-id", exchange.request_id.encode("ascii")),
            (b"x-model-version", (exchange.version or self.live_version()).encode("ascii")),
            (b"x-tokenization-time", _milliseconds(stages.tokenization)),
            (b"x-queue-time", _milliseconds(stages.queue)),
            (b"x-inference-time", _milliseconds(stages.inference)),
            (b"x-total-time", _milliseconds(time.perf_counter() - exchange.started)),
        ]


def problem_response(error: RequestError, identity: str) -> Response:
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
    return Response(
        orjson.dumps(body), problem.status, media_type=PROBLEM_JSON, headers={**problem.headers, **error.headers}
    )


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancel the work inside, and raise ClientGone, when the client closes the connection.  The body is read before."""
    work = asyncio.current_task()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        work.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        work.uncancel()
        raise ClientGone from None
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            if watching.done() and not watching.cancelled():
                watching.result()


def _milliseconds(seconds: float) -> bytes:
    return b"%.3f" % (1000 * seconds)
