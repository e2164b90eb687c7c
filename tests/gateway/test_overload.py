"""Too much, too slow, or gone: 429, 504, and clients that leave.  Triton is made slow by stopping its process."""

import asyncio
import socket
import time

import httpx
import pytest

from tests.gateway.gateway_process import wait_until
from tests.gateway.served_app import served_app
from tests.gateway.triton_parts import stopped_triton
from tests.triton_process import running_triton

IN_FLIGHT = "nunchi_gateway_in_flight_texts"
GONE = 'nunchi_gateway_requests_total{code="client_gone",route="/v1/predict",status="499"}'


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    from tests.bundles import write_bundle

    repository = tmp_path_factory.mktemp("slow") / "model_repository"
    write_bundle(repository)
    with running_triton(repository, repository.parent / "var") as triton:
        yield triton


@pytest.fixture
def app(triton):
    repository = triton.var_dir.parent / "model_repository"
    with served_app(
        repository, triton.grpc_port, max_in_flight=10, max_texts=10, deadline_seconds=2.0, api_key="s3cret"
    ) as app:
        app.client.headers["authorization"] = "Bearer s3cret"
        yield app


def hanging_request(app, body: bytes, *, length: int | None = None) -> socket.socket:
    """A request on a connection of its own, sent and not waited for."""
    connection = socket.create_connection(("127.0.0.1", app.port), timeout=30)
    head = f"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {length or len(body)}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\nauthorization: Bearer s3cret\r\n\r\n".encode() + body)
    return connection


def test_beyond_the_limit_of_texts_in_flight_it_says_429_at_once_and_then_recovers(app, triton):
    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=app.url, headers=app.client.headers, timeout=30) as client:
            with stopped_triton(triton):
                first = asyncio.create_task(client.post("/v1/predict/batch", json={"texts": ["영화"] * 8}))
                await asyncio.to_thread(wait_until, lambda: app.metric(IN_FLIGHT) == 8, 5, "eight texts in flight")
                started = time.monotonic()
                refused = await client.post("/v1/predict/batch", json={"texts": ["영화"] * 3})
                assert time.monotonic() - started < 1
                assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
                assert refused.headers["retry-after"] == "1"
                assert "8 texts" in refused.json()["detail"] and "limit is 10" in refused.json()["detail"]
                second = asyncio.create_task(client.post("/v1/predict/batch", json={"texts": ["영화"] * 2}))
                await asyncio.to_thread(wait_until, lambda: app.metric(IN_FLIGHT) == 10, 5, "two more fit")
            assert [(await each).status_code for each in (first, second)] == [200, 200]
        assert app.metric(IN_FLIGHT) == 0
        assert app.predict("영화").status_code == 200

    asyncio.run(scenario())


def test_after_the_deadline_it_says_504_and_gives_the_place_back(app, triton):
    with stopped_triton(triton):
        started = time.monotonic()
        answer = app.predict("영화")
        taken = time.monotonic() - started
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert 1.8 < taken < 4
    assert float(answer.headers["x-inference-time"]) > 1500
    assert app.metric(IN_FLIGHT) == 0
    wait_until(lambda: app.predict("영화").status_code == 200, 10, "it answers again")


def test_a_client_that_leaves_gives_its_place_back_at_once(app, triton):
    before = app.metric(IN_FLIGHT)
    with stopped_triton(triton):
        connection = hanging_request(app, '{"text": "영화"}'.encode())
        wait_until(lambda: app.metric(IN_FLIGHT) == before + 1, 5, "the request is in flight")
        connection.close()
        taken = wait_until(lambda: app.metric(IN_FLIGHT) == before, 5, "the place is free")
    assert taken < 1.5  # before its deadline
    assert app.metric(GONE) == 1


def test_health_and_metrics_answer_while_the_gateway_is_full(app, triton):
    with stopped_triton(triton):
        connections = [hanging_request(app, '{"text": "영화"}'.encode()) for _ in range(10)]
        wait_until(lambda: app.metric(IN_FLIGHT) == 10, 5, "the gateway is full")
        assert app.client.get("/healthz").status_code == 200
    for connection in connections:
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.close()


def test_a_body_that_never_arrives_is_given_up_without_taking_a_place(app):
    started = time.monotonic()
    with hanging_request(app, b'{"text": ', length=100) as connection:
        wait_until(lambda: app.client.get("/healthz").status_code == 200, 5, "others are served")
        assert app.metric(IN_FLIGHT) == 0
        assert connection.recv(12) == b"HTTP/1.1 408"
    assert 1.8 < time.monotonic() - started < 5


def test_a_key_is_asked_for_where_one_is_configured(app):
    def status(path: str, *headers: tuple[str, str]) -> int:
        return httpx.post(f"{app.url}{path}", json={"text": "x"}, headers=headers).status_code

    assert status("/v1/predict", ("authorization", "Bearer s3cret")) == 200
    for wrong in ("", "Bearer", "Bearer wrong", "s3cret", "Basic s3cret", "Bearer s3cretly"):
        assert status("/v1/predict", ("authorization", wrong)) == 401
    refused = httpx.get(f"{app.url}/v1/model")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert httpx.post(f"{app.url}/v1/predict/batch", json={"texts": ["x"]}).status_code == 401
    for open_to_all in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert httpx.get(f"{app.url}{open_to_all}").status_code == 200
