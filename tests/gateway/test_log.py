"""The log of the gateway: JSON lines, one for a request that went wrong, ids that join it to Triton, never a text."""

import asyncio
import io
import json
import logging
from datetime import datetime

import pytest

from gateway.envelope import Exchange
from gateway.errors import ModelUnavailable, Overloaded
from gateway.log import LINES_PER_SECOND, SLOW_SECONDS, RequestLog, configure_log
from tests.gateway.served_app import served_app
from tests.triton_process import free_ports

SECRET = "아무도읽으면안되는문장"


@pytest.fixture
def stream():
    """What configure_log("json") writes to; the loggers are as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("gateway", "opentelemetry")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    stream = io.StringIO()
    configure_log(stream, "json")
    yield stream
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers, each.level, each.propagate = handlers, level, propagate


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def exchange(code: str = "ok") -> Exchange:
    return Exchange("asked-1", 0.0, "/v1/predict", code, texts=2, characters=30, key_name="shop")


def test_a_line_says_when_who_and_what(stream):
    logging.getLogger("gateway.champion").error("version %s will not serve", 2, extra={"fields": {"cause": "a, b"}})
    (line,) = lines(stream)
    assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert line == {
        "level": "error",
        "logger": "gateway.champion",
        "message": "version 2 will not serve",
        "cause": "a, b",
    }


def test_lines_for_people_are_plain(stream):
    plain = io.StringIO()
    configure_log(plain, "text")
    logging.getLogger("gateway").info("listening", extra={"fields": {"port": 8080}})
    assert plain.getvalue().endswith(" INFO gateway listening port=8080\n")


def test_a_request_that_went_well_has_no_line(stream):
    log = RequestLog()
    log.ended(exchange(), 200, "1", 0.01, None)
    log.ended(exchange("empty_text"), 422, "1", 0.01, None)
    assert lines(stream) == []


def test_a_failed_request_has_one_line_with_its_sizes_and_times(stream):
    error = ModelUnavailable("The model does not answer", cause="UNAVAILABLE: connection refused")
    RequestLog().ended(exchange("model_unavailable"), 503, "1", 0.25, error)
    (line,) = lines(stream)
    del line["time"]
    assert line == {
        "level": "error",
        "logger": "gateway.requests",
        "message": "request failed: model_unavailable",
        "request_id": "asked-1",
        "route": "/v1/predict",
        "status": 503,
        "code": "model_unavailable",
        "version": "1",
        "key": "shop",
        "texts": 2,
        "characters": 30,
        "tokenization_ms": 0.0,
        "queue_ms": 0.0,
        "inference_ms": 0.0,
        "total_ms": 250.0,
        "cause": "UNAVAILABLE: connection refused",
    }


def test_a_slow_request_has_a_line(stream):
    RequestLog().ended(exchange(), 200, "1", SLOW_SECONDS + 0.1, None)
    (line,) = lines(stream)
    assert (line["message"], line["level"]) == ("request was slow", "warning")


def test_an_accident_leaves_its_traceback_even_when_the_answer_was_half_sent(stream):
    try:
        raise ZeroDivisionError("of all things")
    except ZeroDivisionError as error:
        RequestLog().ended(exchange("internal"), 500, "1", 0.01, error)
        RequestLog().ended(exchange(), 200, "1", 0.01, error)
    failed, broken = lines(stream)
    assert failed["message"] == "request failed: internal"
    assert broken["message"] == "answer broke off"
    for line in (failed, broken):
        assert line["level"] == "error"
        assert "ZeroDivisionError: of all things" in line["traceback"]


def test_an_overload_is_no_flood_of_lines_and_what_is_withheld_is_counted(stream):
    async def overload() -> None:
        log = RequestLog()
        for _ in range(1000):
            log.ended(exchange("overloaded"), 429, "1", 0.001, Overloaded("full"))
        log.ended(exchange("internal"), 500, "1", 0.001, ZeroDivisionError())
        await asyncio.sleep(1.2)

    asyncio.run(overload())
    found = lines(stream)
    overloaded = [line for line in found if line["message"] == "request failed: overloaded"]
    assert len(overloaded) == LINES_PER_SECOND + 1
    assert overloaded[-1]["suppressed"] == 1000 - LINES_PER_SECOND
    assert sum(line["message"] == "request failed: internal" for line in found) == 1


def test_a_gateway_without_triton_writes_the_callers_id_and_no_word_of_the_text(stream, repository):
    (port,) = free_ports(1)
    with served_app(repository, port, wait_for_triton=False) as app:
        answer = app.client.post("/v1/predict", json={"text": SECRET}, headers={"x-request-id": "shop-4711"})
        assert answer.status_code == 503
    (line,) = [each for each in lines(stream) if each.get("request_id") == "shop-4711"]
    assert (line["route"], line["code"], line["texts"]) == ("/v1/predict", "model_unavailable", 1)
    assert line["characters"] == len(SECRET)
    assert SECRET not in stream.getvalue()


def test_the_id_of_a_request_that_triton_refuses_is_in_its_log(shared_app, shared_triton, monkeypatch):
    """A tokenizer of another vocabulary, as Triton sees it."""
    monkeypatch.setattr("gateway.bundle.Bundle.padded", out_of_vocabulary)
    answer = shared_app.client.post("/v1/predict", json={"text": SECRET}, headers={"x-request-id": "shop-4712"})
    assert answer.status_code == 503
    log = (shared_triton.var_dir / "log" / "triton.log").read_text(encoding="utf-8")
    assert "request 'shop-4712': input_ids holds 99999" in log
    assert SECRET not in log


def out_of_vocabulary(bundle, rows: list[list[int]], width: int) -> tuple[bytes, bytes]:
    wrong = [99_999] * width * len(rows)
    return b"".join(each.to_bytes(8, "little") for each in wrong), (1).to_bytes(8, "little") * len(wrong)
