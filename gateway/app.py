"""The HTTP API as a FastAPI application.

`create_app` wires settings, bundle, Triton client and routes; the lifespan opens the channel to Triton and keeps the
Champion up to date.  The prediction routes take the bare request: the body is counted while it streams in, validated
by pydantic straight from its bytes and answered with orjson, so FastAPI's own parsing never sees it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Receive, Scope, Send

from gateway import openapi
from gateway.admission import Admission
from gateway.bundle import Bundle
from gateway.candidate import Candidate
from gateway.champion import Champion
from gateway.doorman import Doorman
from gateway.edge import SANE_REQUEST_ID
from gateway.envelope import Envelope, exchange_of, while_connected
from gateway.errors import (
    ClientGone,
    EmptyText,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    TooManyTexts,
    Unauthorized,
    UnsupportedMediaType,
)
from gateway.keys import AdminKey, Keys
from gateway.log import RequestLog
from gateway.metrics import Metrics
from gateway.operations import Operations
from gateway.predict import Answer, Predictor
from gateway.schemas import BatchRequest, OperationRequest, PredictRequest
from gateway.settings import Settings
from gateway.shelf import Shelf
from gateway.triton import Triton
from gateway.versions import NUMBER, Versions

if TYPE_CHECKING:
    from gateway.tracing import Tracer

FAULTS_SHOWN = 10
PATH_SHOWN = 100  # characters

Asked = TypeVar("Asked", bound=BaseModel)


def create_app(settings: Settings, bundle: Bundle) -> FastAPI:
    """The application; `bundle` is the one serving.json names now, already read and checked."""
    metrics = Metrics()
    tracer = _tracer(settings)
    triton = Triton(settings.triton_address)
    admission = Admission(settings.max_in_flight)
    metrics.watch_in_flight(lambda: admission.texts, lambda: admission.limit)
    shelf = Shelf(settings.repository, triton, bundle)
    candidate = Candidate(shelf, metrics)
    champion = Champion(shelf, candidate, bundle, metrics.serves)
    predictor = Predictor(champion, candidate, triton, admission, metrics, deadline_seconds=settings.deadline_seconds)
    keys = Keys(settings.api_key, settings.keys_path)
    operations = Operations(settings)
    api = Api(settings, keys, admission, champion, candidate, predictor, operations, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with triton:
            watching = asyncio.create_task(champion.run())
            try:
                yield
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
                predictor.close()
                await asyncio.to_thread(operations.close)
                if tracer:
                    tracer.close()

    def live_version() -> str:
        return champion.named.version

    enveloping = {
        "metrics": metrics,
        "live_version": live_version,
        "deadline_seconds": settings.deadline_seconds,
        "routes": frozenset(route.path for route in openapi.ROUTES),
        "request_log": RequestLog(),
        "tracer": tracer,
    }
    middlewares = [Middleware(Envelope, **enveloping)]
    if settings.origins:
        middlewares.insert(0, Middleware(CORSMiddleware, **openapi.cross_origin(settings.origins)))
    app = Application(
        straight={"/v1/predict": api.predict, "/v1/predict/batch": api.predict_batch},
        middleware=middlewares,
        title="Nunchi gateway",
        description=openapi.DESCRIPTION,
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    for route in openapi.ROUTES:
        app.add_api_route(
            route.path,
            getattr(api, route.handler),
            methods=[route.method],
            summary=route.summary,
            responses=openapi.responses(route),
            openapi_extra=openapi.inputs(route),
            status_code=route.status,
            response_class=Response,
        )
    _serve_document(app, orjson.dumps(openapi.document(app, settings)))
    app.add_exception_handler(HTTPException, _http_exception)
    app.state.doorman = Doorman(admission, live_version, metrics.answered)  # for whoever listens for it
    return app


def _serve_document(app: FastAPI, document: bytes) -> None:
    """In place of FastAPI's own route, which makes the document when it is first asked for and writes it each time:
    both hold up whoever waits for an answer."""

    async def answer(request: Request) -> Response:
        return Response(document, media_type="application/json")

    app.router.routes = [route for route in app.router.routes if getattr(route, "path", None) != app.openapi_url]
    app.add_route(app.openapi_url, answer, include_in_schema=False)


def _tracer(settings: Settings) -> "Tracer | None":
    if settings.otlp_endpoint is None:
        return None
    from gateway.tracing import Tracer  # here, because OpenTelemetry takes memory and time to start

    return Tracer(settings.otlp_endpoint)


class Application(FastAPI):
    """Predictions pass FastAPI by: what it does around a handler costs an eighth of an answer.

    `straight` has their handlers by path; the same middlewares are around them.
    """

    def __init__(
        self,
        *,
        straight: dict[str, Callable[[Request], Awaitable[Response]]],
        middleware: list[Middleware],
        **options: object,
    ) -> None:
        super().__init__(middleware=middleware, **options)
        self.straight = straight
        self._straight_app = self._answer_straight
        for each in reversed(middleware):
            self._straight_app = each.cls(self._straight_app, *each.args, **each.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self.straight:
            await self._straight_app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _answer_straight(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.straight[scope["path"]](Request(scope, receive))
        await response(scope, receive, send)


class Api:
    """The handlers, one per row of openapi.ROUTES."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        admission: Admission,
        champion: Champion,
        candidate: Candidate,
        predictor: Predictor,
        operations: Operations,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.admission = admission
        self.champion = champion
        self.candidate = candidate
        self.predictor = predictor
        self.versions = Versions(settings.repository)
        self.admin_key = AdminKey(settings.admin_key)
        self.operations = operations
        self.metrics = metrics

    async def predict(self, request: Request) -> Response:
        with self.admission.awaited():
            self._authorize(request)
            asked = await self._read(request, PredictRequest)
            self._check_length("text", asked.text)
        try:
            bundle, (answer,) = await self._answer(request, [asked.text])
        except EmptyText as error:
            raise EmptyText(f"text {error.detail}") from error
        body = prediction(bundle, answer, asked.return_probs)
        body["model_version"] = bundle.version
        return _json(body)

    async def predict_batch(self, request: Request) -> Response:
        with self.admission.awaited():
            self._authorize(request)
            asked = await self._read(request, BatchRequest)
            if len(asked.texts) > self.settings.max_texts:
                raise TooManyTexts(
                    f"texts has {len(asked.texts)} entries, the limit is {self.settings.max_texts}; send several "
                    "batches"
                )
            for row, text in enumerate(asked.texts):
                self._check_length(f"texts[{row}]", text, row)
        try:
            bundle, answers = await self._answer(request, asked.texts)
        except EmptyText as error:
            raise EmptyText(f"texts[{error.row}] {error.detail}", row=error.row) from error
        rows = [prediction(bundle, answer, asked.return_probs) for answer in answers]
        return _json({"predictions": rows, "model_version": bundle.version})

    async def model(self, request: Request) -> Response:
        self._authorize(request)
        bundle = self.champion.live
        manifest = bundle.manifest
        return _json(
            {
                "name": bundle.model,
                "version": bundle.version,
                "labels": [{"name": label.name, "korean": label.korean} for label in bundle.labels],
                "encoder": manifest.encoder,
                "precision": manifest.precision,
                "max_length": manifest.max_length,
                "metrics": manifest.metrics,
                "since": self.champion.since,
                "candidate": self.candidate.shown,
            }
        )

    async def list_versions(self, request: Request) -> Response:
        self._authorize(request)
        champion = self.champion
        versions = await self.versions.listed(champion.named.model, champion.answering, champion.serving)
        return _json({"versions": versions})

    async def operate(self, request: Request) -> Response:
        self._authorize_operator(request)
        asked = await self._read(request, OperationRequest)
        exchange = exchange_of(request.scope)
        client = request.client.host if request.client else "unknown"
        operation = self.operations.begin(
            asked, request_id=exchange.request_id, client=client, key_name=exchange.key_name
        )
        return _json(operation.shown, 202)

    async def list_operations(self, request: Request) -> Response:
        self._authorize_operator(request)
        return _json({"operations": [each.shown for each in self.operations.latest]})

    async def operation(self, request: Request) -> Response:
        exchange_of(request.scope).route = "/v1/operations/{operation}"  # for the metrics: one name for all of them
        self._authorize_operator(request)
        return _json(self.operations.find(request.path_params["operation"]).shown)

    async def healthz(self, request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        bundle = await self.champion.check_ready()
        return _json({"status": "ready", "model_version": bundle.version})

    async def metrics_page(self, request: Request) -> Response:
        return Response(self.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    def _authorize(self, request: Request) -> None:
        if not self.keys.asked_for:
            return
        owner = self.keys.owner(request.headers.get("authorization", ""))
        if owner is None:
            raise Unauthorized("This gateway asks for a key; send it as `Authorization: Bearer <key>`")
        exchange_of(request.scope).key_name = owner

    def _authorize_operator(self, request: Request) -> None:
        self._authorize(request)
        self.admin_key.check(request.headers.get("x-admin-key"))

    async def _read(self, request: Request, kind: type[Asked]) -> Asked:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise UnsupportedMediaType(
                f"content-type is {media_type[:100] or 'missing'!r}; send JSON, with `content-type: application/json`"
            )
        body = await self._body(request)
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            raise _invalid(error) from None

    async def _body(self, request: Request) -> bytes:
        """The body, counted as it arrives: no more than `max_body_bytes` of it is ever kept."""
        limit = self.settings.max_body_bytes
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.settings.deadline_seconds):
                while True:
                    message: Message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:  # uvicorn throws the rest away, so that its sender can read the answer
                        raise PayloadTooLarge(f"The body has more than the {limit} bytes allowed; send less at once")
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError:
            raise RequestTimeout(
                f"The body was not there after {self.settings.deadline_seconds:g} s; send it without pauses"
            ) from None

    def _check_length(self, where: str, text: str, row: int | None = None) -> None:
        limit = self.settings.max_text_characters
        if len(text) > limit:
            raise PayloadTooLarge(f"{where} has {len(text)} characters, the limit is {limit}; shorten it", row=row)

    async def _answer(self, request: Request, texts: list[str]) -> tuple[Bundle, list[Answer]]:
        exchange = exchange_of(request.scope)
        exchange.texts, exchange.characters = len(texts), sum(map(len, texts))
        async with while_connected(request.receive):
            bundle, answers = await self.predictor.answer(
                texts, exchange, key=_request_key(request), version=_asked_version(request)
            )
        exchange.version = bundle.version
        seconds = time.perf_counter() - exchange.started
        exchange.afterwards.append(partial(self.metrics.spent, exchange.stages, seconds, bundle.version))
        return bundle, answers


def prediction(bundle: Bundle, answer: Answer, return_probs: bool) -> dict:
    """One row of an answer; probabilities to six decimals."""
    label = bundle.labels[answer.label]
    body = {
        "prediction": label.name,
        "label": label.korean,
        "confidence": round(answer.probabilities[answer.label], 6),
        "truncated": answer.truncated,
        "input_tokens": answer.input_tokens,
    }
    if return_probs:
        body["probs"] = {
            each.name: round(probability, 6)
            for each, probability in zip(bundle.labels, answer.probabilities, strict=True)
        }
    return body


def _request_key(request: Request) -> str | None:
    key = request.headers.get("x-request-key")
    if key is not None and not SANE_REQUEST_ID.fullmatch(key):
        raise InvalidRequest(
            f"x-request-key has {len(key)} characters; send 1 to 128 letters, digits or . _ : / + = @ ~ -, or leave it "
            "out"
        )
    return key


def _asked_version(request: Request) -> str | None:
    version = request.headers.get("x-ask-version")
    if version is not None and not NUMBER.fullmatch(version):
        raise InvalidRequest("x-ask-version is not the number of a version, such as 3; send one, or leave it out")
    return version


def _json(body: dict, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _invalid(error: ValidationError) -> InvalidRequest:
    """Says what does not fit and where, without repeating what the client sent."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    faults = [
        {"where": ".".join(map(str, each["loc"])) or "body", "what": each["msg"].removeprefix("Value error, ")}
        for each in found[:FAULTS_SHOWN]
    ]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    row = next((each["loc"][1] for each in found if each["loc"][:1] == ("texts",) and len(each["loc"]) > 1), None)
    return InvalidRequest(f"{faults[0]['where']}: {faults[0]['what']}{more}; see /docs", row=row, faults=faults)


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """What the router itself refuses."""
    path = request.url.path[:PATH_SHOWN]
    if error.status_code == 405:
        headers = dict(error.headers or {})
        raise MethodNotAllowed(
            f"{path} does not take {request.method}, but {headers.get('Allow', 'what /docs lists')}", headers=headers
        ) from None
    if error.status_code == 404:
        raise NotFound(f"There is nothing at {path!r}; /docs lists what there is") from None
    raise error
