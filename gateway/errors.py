"""What can go wrong, one class per thing somebody can act on.

    GatewayError
    ├── CannotStart              the operator acts: `error: <sentence>`, exit status 2
    │   ├── SettingRefused         an environment variable is empty, wrong or contradicts another
    │   ├── PortTaken              somebody else listens where the gateway should
    │   ├── BundleBroken           the files of the version folder disagree with each other
    │   └── ModelMismatch          Triton's model is not the one the bundle describes
    ├── ClientGone               the client closed the connection; there is nobody to answer
    └── RequestError             the client acts: answered as application/problem+json
        ├── Unauthorized           401
        ├── NotAllowed             403
        ├── NotFound               404
        │   └── VersionNotLoaded   404
        ├── MethodNotAllowed       405
        ├── RequestTimeout         408  the body did not arrive
        ├── OperationRunning       409  one at a time
        ├── PayloadTooLarge        413
        ├── UnsupportedMediaType   415
        ├── InvalidRequest         422
        │   ├── EmptyText          422
        │   └── TooManyTexts       422
        ├── Overloaded             429
        ├── Internal               500
        ├── NotAvailable           501  this installation lacks a part
        ├── ModelUnavailable       503
        │   └── VersionNotReady    503  Triton is up but does not serve this version (any more)
        └── DeadlineExceeded       504

`PROBLEMS` is the one table from error to status and code.  Foreign exceptions become these in triton.py only.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class GatewayError(Exception):
    """Base of everything the gateway raises on purpose."""


class CannotStart(GatewayError):
    """The message is one sentence naming limit, value and remedy."""


class SettingRefused(CannotStart):
    pass


class PortTaken(CannotStart):
    pass


class BundleBroken(CannotStart):
    pass


class ModelMismatch(CannotStart):
    pass


class ClientGone(GatewayError):
    pass


class RequestError(GatewayError):
    """Answered as a problem.  The message is the `detail` the client reads, so it holds nothing internal.

    `row` is the index of the text in a batch the error is about, when it is about one; `faults` lists what does not
    fit as {"where": …, "what": …}; `cause` is for the log only.
    """

    def __init__(
        self,
        detail: str,
        *,
        row: int | None = None,
        faults: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.row = row
        self.faults = faults
        self.headers = headers or {}
        self.cause = cause


class Unauthorized(RequestError):
    pass


class NotAllowed(RequestError):
    pass


class NotFound(RequestError):
    pass


class VersionNotLoaded(NotFound):
    pass


class MethodNotAllowed(RequestError):
    pass


class RequestTimeout(RequestError):
    pass


class OperationRunning(RequestError):
    pass


class PayloadTooLarge(RequestError):
    pass


class UnsupportedMediaType(RequestError):
    pass


class InvalidRequest(RequestError):
    pass


class EmptyText(InvalidRequest):
    pass


class TooManyTexts(InvalidRequest):
    pass


class Overloaded(RequestError):
    pass


class Internal(RequestError):
    pass


class NotAvailable(RequestError):
    pass


class ModelUnavailable(RequestError):
    pass


class VersionNotReady(ModelUnavailable):
    pass


class DeadlineExceeded(RequestError):
    pass


class Problem(NamedTuple):
    status: int
    code: str
    title: str
    headers: Mapping[str, str] = MappingProxyType({})


PROBLEMS: dict[type[RequestError], Problem] = {
    Unauthorized: Problem(401, "unauthorized", "The API key is missing or wrong", {"WWW-Authenticate": "Bearer"}),
    NotAllowed: Problem(403, "not_allowed", "The admin key is missing or wrong"),
    NotFound: Problem(404, "not_found", "There is nothing here"),
    VersionNotLoaded: Problem(404, "version_not_loaded", "The version asked for does not answer here"),
    MethodNotAllowed: Problem(405, "method_not_allowed", "This address does not take this method"),
    RequestTimeout: Problem(408, "request_timeout", "The request did not arrive in time"),
    OperationRunning: Problem(409, "busy", "Another operation is at work"),
    PayloadTooLarge: Problem(413, "payload_too_large", "The request is too large"),
    UnsupportedMediaType: Problem(415, "unsupported_media_type", "The body is not declared as JSON"),
    InvalidRequest: Problem(422, "invalid_request", "The request is not what this address takes"),
    EmptyText: Problem(422, "empty_text", "There is no text to read"),
    TooManyTexts: Problem(422, "too_many_texts", "The batch has too many texts"),
    Overloaded: Problem(429, "overloaded", "The gateway is full", {"Retry-After": "1"}),
    Internal: Problem(500, "internal", "The gateway made a mistake"),
    NotAvailable: Problem(501, "not_available", "This gateway cannot do that where it runs"),
    ModelUnavailable: Problem(503, "model_unavailable", "The model does not answer", {"Retry-After": "1"}),
    DeadlineExceeded: Problem(504, "deadline_exceeded", "The answer did not come in time", {"Retry-After": "1"}),
}


def problem_of(error: RequestError) -> Problem:
    """The row of the table for an error, or for the nearest of its base classes."""
    return next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)
