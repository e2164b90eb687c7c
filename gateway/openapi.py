"""The OpenAPI document: every route, every status it can answer, every header, with the limits of this gateway."""

from typing import NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from gateway.edge import SANE_REQUEST_ID
from gateway.errors import (
    PROBLEMS,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    ModelUnavailable,
    NotAllowed,
    NotAvailable,
    NotFound,
    OperationRunning,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    RequestTimeout,
    Unauthorized,
    UnsupportedMediaType,
    VersionNotLoaded,
)
from gateway.schemas import (
    BatchAnswer,
    BatchRequest,
    HealthAnswer,
    ModelAnswer,
    OperationAnswer,
    OperationRequest,
    OperationsAnswer,
    PredictAnswer,
    PredictRequest,
    ProblemAnswer,
    ReadyAnswer,
    VersionsAnswer,
)
from gateway.settings import Settings
from gateway.versions import NUMBER

DESCRIPTION = """\
Reads the feeling of Korean web text.  Send raw text; cleaning and tokenizing are the model's own.

Every answer carries `x-request-id` (yours, if you sent a sane one), `x-model-version`, and where the time went, in
milliseconds: `x-tokenization-time`, `x-queue-time` (waiting inside the gateway), `x-inference-time` (the round trip to
the model server, its queue included) and `x-total-time`.  Errors are `application/problem+json` (RFC 9457) with a
stable `code`.

In an overload what would wait too long is refused with 429 before its body is read, and `Retry-After` says in how many
seconds to come back.  `x-request-key` (yours, optional) keeps requests that belong together, those of one user say, on
one model version while a candidate gets a share of the traffic.  `x-ask-version` (optional) asks a certain version: the
one that answers, or the one on trial.

`/v1/operations` changes what answers.  It asks for the admin key of this gateway, and runs the project's own commands
beside it, one at a time.
"""

PREDICTING = (
    Unauthorized,
    VersionNotLoaded,
    RequestTimeout,
    PayloadTooLarge,
    UnsupportedMediaType,
    InvalidRequest,
    Overloaded,
    Internal,
    ModelUnavailable,
    DeadlineExceeded,
)
REQUEST_KEY = {
    "name": "x-request-key",
    "in": "header",
    "description": "requests with the same key are answered by the same version while a candidate is tried out",
    "schema": {"type": "string", "pattern": f"^{SANE_REQUEST_ID.pattern}$"},
}
ASK_VERSION = {
    "name": "x-ask-version",
    "in": "header",
    "description": "the version that has to answer: the one that serves, or the one on trial",
    "schema": {"type": "string", "pattern": f"^{NUMBER.pattern}$"},
}
ADMIN_KEY = {
    "name": "x-admin-key",
    "in": "header",
    "required": True,
    "description": "NUNCHI_ADMIN_KEY of this gateway",
    "schema": {"type": "string"},
}
OPERATION = {"name": "operation", "in": "path", "required": True, "schema": {"type": "string"}}
OPERATING = (Unauthorized, NotAllowed, Internal)
ASKING_HEADERS = ("x-request-id", "x-request-key", "x-ask-version", "traceparent")  # the admin key is not for pages
SCHEMA_PATH = "#/components/schemas/{model}"


class Route(NamedTuple):
    method: str
    path: str
    handler: str  # the method of app.Api
    summary: str
    answer: type[BaseModel] | None
    errors: tuple[type[RequestError], ...]
    body: type[BaseModel] | None = None
    parameters: tuple[dict, ...] = ()
    status: int = 200


ROUTES = (
    Route(
        "POST",
        "/v1/predict",
        "predict",
        "The feeling of one text",
        PredictAnswer,
        PREDICTING,
        PredictRequest,
        (REQUEST_KEY, ASK_VERSION),
    ),
    Route(
        "POST",
        "/v1/predict/batch",
        "predict_batch",
        "The feelings of many texts",
        BatchAnswer,
        PREDICTING,
        BatchRequest,
        (REQUEST_KEY, ASK_VERSION),
    ),
    Route(
        "GET", "/v1/model", "model", "The model that answers", ModelAnswer, (Unauthorized, Internal, ModelUnavailable)
    ),
    Route(
        "GET",
        "/v1/versions",
        "list_versions",
        "The versions of the model repository",
        VersionsAnswer,
        (Unauthorized, Internal, ModelUnavailable),
    ),
    Route(
        "POST",
        "/v1/operations",
        "operate",
        "Promote, roll back, begin or end a trial",
        OperationAnswer,
        (
            *OPERATING,
            RequestTimeout,
            OperationRunning,
            PayloadTooLarge,
            UnsupportedMediaType,
            InvalidRequest,
            NotAvailable,
        ),
        OperationRequest,
        (ADMIN_KEY,),
        202,
    ),
    Route(
        "GET",
        "/v1/operations",
        "list_operations",
        "The latest operations",
        OperationsAnswer,
        OPERATING,
        parameters=(ADMIN_KEY,),
    ),
    Route(
        "GET",
        "/v1/operations/{operation}",
        "operation",
        "What an operation has come to",
        OperationAnswer,
        (*OPERATING, NotFound),
        parameters=(OPERATION, ADMIN_KEY),
    ),
    Route("GET", "/healthz", "healthz", "Does the gateway live?", HealthAnswer, (Internal,)),
    Route("GET", "/readyz", "readyz", "Does the model answer?", ReadyAnswer, (Internal, ModelUnavailable)),
    Route("GET", "/metrics", "metrics_page", "Counters for Prometheus", None, (Internal,)),
)

HEADERS = {
    "x-request-id": {"schema": {"type": "string"}},
    "x-model-version": {"schema": {"type": "string"}},
    **{
        f"x-{stage}-time": {"schema": {"type": "number"}, "description": "milliseconds"}
        for stage in ("tokenization", "queue", "inference", "total")
    },
}

PROBLEM_HEADERS = {
    "Retry-After": {
        "schema": {"type": "integer", "minimum": 1},
        "description": "seconds until it is worth asking again",
    },
    "WWW-Authenticate": {"schema": {"type": "string"}},
}


def responses(route: Route) -> dict[int, dict]:
    """Every status of a route; the codes that share a status are named in its description."""
    content = {"application/json": {"schema": _reference(route.answer)}} if route.answer else {"text/plain": {}}
    documented = {route.status: {"description": "Answered", "headers": HEADERS, "content": content}}
    for error in route.errors:
        status = PROBLEMS[error].status
        codes = [problem.code for problem in PROBLEMS.values() if problem.status == status]
        headers = dict(HEADERS)
        for name in PROBLEMS[error].headers:
            headers[name] = PROBLEM_HEADERS[name]
        documented[status] = {
            "description": f"{PROBLEMS[error].title} (code: {', '.join(codes)})",
            "headers": headers,
            "content": {"application/problem+json": {"schema": _reference(ProblemAnswer)}},
        }
    return documented


def inputs(route: Route) -> dict:
    """The body and the parameters of a route."""
    found: dict[str, object] = {"parameters": list(route.parameters)} if route.parameters else {}
    if route.body:
        content = {"application/json": {"schema": _reference(route.body)}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def cross_origin(origins: list[str]) -> dict[str, object]:
    """What pages of these origins may send and read, as starlette's CORSMiddleware takes it."""
    return {
        "allow_origins": origins,
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["authorization", "content-type", *ASKING_HEADERS],
        "expose_headers": [*HEADERS, *PROBLEM_HEADERS],
    }


def document(app: FastAPI, settings: Settings) -> dict:
    """The document of this application."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for model in (route_model for route in ROUTES for route_model in (route.answer, route.body) if route_model):
        components.update(_definitions(model))
    components.update(_definitions(ProblemAnswer))
    characters = {"minLength": 1, "maxLength": settings.max_text_characters}
    components["PredictRequest"]["properties"]["text"].update(characters)
    components["BatchRequest"]["properties"]["texts"]["items"].update(characters)
    components["BatchRequest"]["properties"]["texts"]["maxItems"] = settings.max_texts
    if settings.asks_for_a_key:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            if path.startswith("/v1/"):
                for operation in operations.values():
                    operation["security"] = [{"key": []}]
    return schema


def _definitions(model: type[BaseModel]) -> dict[str, dict]:
    schema = model.model_json_schema(ref_template=SCHEMA_PATH, mode="validation")
    return {**schema.pop("$defs", {}), model.__name__: schema}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": SCHEMA_PATH.format(model=model.__name__)}
