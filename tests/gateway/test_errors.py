"""Every error has its row in the table, and every way gRPC can fail is translated."""

import grpc
import pytest

from gateway import errors
from gateway.errors import (
    PROBLEMS,
    DeadlineExceeded,
    ModelUnavailable,
    RequestError,
    VersionNotReady,
    problem_of,
)
from gateway.triton import translated


def subclasses(kind: type) -> list[type]:
    return [each for child in kind.__subclasses__() for each in (child, *subclasses(child))]


class RpcError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str | None = "") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details


def test_the_docstring_draws_every_error():
    drawn = {word for word in errors.__doc__.split() if word[0].isupper()}
    assert {each.__name__ for each in subclasses(errors.GatewayError)} <= drawn


@pytest.mark.parametrize("kind", subclasses(RequestError))
def test_every_request_error_has_a_status_and_a_code(kind):
    problem = problem_of(kind("detail"))
    assert 400 <= problem.status < 600 and problem.code and problem.title


def test_codes_are_stable_and_unique():
    assert {problem.code: problem.status for problem in PROBLEMS.values()} == {
        "unauthorized": 401,
        "not_allowed": 403,
        "not_found": 404,
        "version_not_loaded": 404,
        "method_not_allowed": 405,
        "request_timeout": 408,
        "busy": 409,
        "payload_too_large": 413,
        "unsupported_media_type": 415,
        "invalid_request": 422,
        "empty_text": 422,
        "too_many_texts": 422,
        "overloaded": 429,
        "internal": 500,
        "not_available": 501,
        "model_unavailable": 503,
        "deadline_exceeded": 504,
    }


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_every_grpc_status_is_translated_without_its_words(status):
    error = translated(RpcError(status, "inner secret"))
    expected = DeadlineExceeded if status is grpc.StatusCode.DEADLINE_EXCEEDED else ModelUnavailable
    assert type(error) is expected
    assert "secret" not in error.detail
    assert isinstance(translated(RpcError(status, None)), RequestError)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "Request for unknown model: 'sentiment' version 1 is not at ready state",
        ),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'sentiment' is not found"),
    ],
)
def test_a_version_that_is_not_loaded_is_told_apart(status, words):
    assert type(translated(RpcError(status, words))) is VersionNotReady


def test_a_dead_stub_is_a_503():
    error = translated(RpcError(grpc.StatusCode.INTERNAL, "Stub process 'sentiment_0_0' is not healthy."))
    assert problem_of(error).status == 503
