"""Around every request: its id and clock, the headers of every answer, errors as problem+json, counting, its line in
the log and its trace.

Pure ASGI, inside FastAPI or, for predictions, in its place (app.py).  `Envelope` is the only place where an exception
becomes an answer: a RequestError by the table in errors.py, anything else as 500 `internal`, with the traceback in the
log under the request's id.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.edge import PROBLEM_JSON, problem_body, request_id
from gateway.errors import ClientGone, Internal, RequestError, problem_of
from gateway.log import RequestLog
from gateway.metrics import DISCONNECTED, Metrics
from gateway.stages import Stages

if TYPE_CHECKING:  # OpenTelemetry is imported where it is switched on
    from gateway.tracing import Trace, Tracer

TRACED = "/v1/"  # routes that begin so; nobody wants a trace of each scrape


@dataclass(slots=True)
class Exchange:
    """One request and its answer.  `started` is time.perf_counter(), `until` the deadline in time.monotonic().

    `texts` and `characters` count what was asked, once that is known; `key_name` says which API key asked.  What
    is in `afterwards` is done once the answer has left, so that nobody waits for it.
    """

    request_id: str
    until: float
    route: str = "other"
    code: str = "ok"
    started: float = field(default_factory=time.perf_counter)
    stages: Stages = field(default_factory=Stages)
    version: str | None = None
    texts: int = 0
    characters: int = 0
    key_name: str | None = None
    trace: "Trace | None" = None
    afterwards: list[Callable[[], None]] = field(default_factory=list)

    @property
    def trace_headers(self) -> tuple[tuple[str, str], ...]:
        """gRPC metadata that makes what Triton traces part of this request's trace."""
        return self.trace.headers if self.trace else ()


def exchange_of(scope: Scope) -> Exchange:
    return scope["nunchi.exchange"]


class Envelope:
    """`live_version()` names the version of answers that no bundle was chosen for (errors, /healthz)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        live_version: Callable[[], str],
        deadline_seconds: float,
        routes: frozenset[str],
        request_log: RequestLog,
        tracer: "Tracer | None" = None,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.live_version = live_version
        self.deadline_seconds = deadline_seconds
        self.routes = routes
        self.tracer = tracer
        self.request_log = request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = Exchange(
            request_id(headers),
            time.monotonic() + self.deadline_seconds,
            scope["path"] if scope["path"] in self.routes else "other",
        )
        if self.tracer and exchange.route.startswith(TRACED):
            exchange.trace = self.tracer.begin(headers)
        scope["nunchi.exchange"] = exchange
        status = 0
        failure: Exception | None = None

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
            failure = error
            if status:  # the answer is half sent; all that is left is to break it off
                raise
            await self._problem(error, exchange)(scope, receive, send_with_headers)
        finally:
            self._note(exchange, status, failure)
            failure = None  # its traceback holds this frame, and overload must not leave cycles to collect

    def _note(self, exchange: Exchange, status: int, failure: Exception | None) -> None:
        """Count it, and write about it where there is something to write."""
        for each in exchange.afterwards:
            each()
        version = exchange.version or self.live_version()
        self.metrics.answered(exchange.route, status, exchange.code, version)
        self.request_log.ended(exchange, status, version, time.perf_counter() - exchange.started, failure)
        if exchange.trace:
            self.tracer.end(exchange.trace, exchange, status)

    def _problem(self, error: Exception, exchange: Exchange) -> Response:
        if not isinstance(error, RequestError):
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
    return Response(
        problem_body(error, identity),
        problem.status,
        media_type=PROBLEM_JSON,
        headers={**problem.headers, **error.headers},
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
