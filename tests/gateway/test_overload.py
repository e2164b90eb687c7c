"""Too much, too slow, or gone: 429, 504, and clients that leave.  Triton is made slow by stopping its process."""

import asyncio
import resource
import socket
import threading
import time

import httpx
import psutil
import pytest

from gateway.admission import SMALL
from gateway.connection import Gathered
from gateway.metrics import Metrics
from tests.gateway.gateway_process import running_gateway, wait_until
from tests.gateway.served_app import served_app
from tests.gateway.triton_parts import stopped_triton, stubs
from tests.triton_process import running_triton

IN_FLIGHT = "nunchi_gateway_in_flight_texts"
GONE = 'nunchi_gateway_requests_total{code="client_gone",route="/v1/predict",status="499",version="1"}'

REFUSED = 'nunchi_gateway_requests_total{code="overloaded",route="/v1/predict",status="429",version="1"}'


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
                by_let_in = refused
                second = asyncio.create_task(client.post("/v1/predict/batch", json={"texts": ["영화"] * 2}))
                await asyncio.to_thread(wait_until, lambda: app.metric(IN_FLIGHT) == 10, 5, "two more fit")
                by_the_edge = await client.post("/v1/predict", json={"text": "영화"})
                same_shape(by_the_edge, by_let_in)
            assert [(await each).status_code for each in (first, second)] == [200, 200]
        assert app.metric(IN_FLIGHT) == 0
        assert app.predict("영화").status_code == 200

    asyncio.run(scenario())


def same_shape(one: httpx.Response, other: httpx.Response) -> None:
    assert one.status_code == other.status_code == 429
    assert one.json().keys() == other.json().keys()
    assert one.headers.keys() == other.headers.keys()
    for name in ("type", "title", "status", "code"):
        assert one.json()[name] == other.json()[name]
    for answer in (one, other):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"] == answer.json()["instance"]
        assert int(answer.headers["retry-after"]) >= 1


def test_a_full_gateway_refuses_before_the_body_is_there_and_counts_it(app, triton):
    with stopped_triton(triton):
        connections = [hanging_request(app, '{"text": "영화"}'.encode()) for _ in range(10)]
        wait_until(lambda: app.metric(IN_FLIGHT) == 10, 5, "the gateway is full")
        with hanging_request(app, b"", length=100) as late:
            assert late.recv(12) == b"HTTP/1.1 429"
        own_id = app.client.post("/v1/predict", json={"text": "영화"}, headers={"x-request-id": "mine-1"})
        assert (own_id.status_code, own_id.headers["x-request-id"], own_id.json()["instance"]) == (
            429,
            "mine-1",
            "mine-1",
        )
        assert own_id.headers["x-model-version"] == "1"
        assert app.metric(REFUSED) == 2
    for connection in connections:
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.close()


def test_a_kept_connection_is_one_caller_and_closed_ones_are_as_many_as_their_requests(app):
    callers = app.doorman.admission.callers
    with httpx.Client(base_url=app.url, headers=app.client.headers) as kept:
        for _ in range(3):
            assert kept.post("/v1/predict", json={"text": "영화"}).status_code == 200
        kept.get("/v1/model")
        assert len(callers) == 1
        other = [app.predict("영화") for _ in range(2)]
        assert [each.status_code for each in other] == [200, 200]
        assert len(callers) == 2
    wait_until(lambda: len(callers) == 1, 5, "the kept connection that was closed is forgotten")
    for _ in range(3):
        httpx.post(
            f"{app.url}/v1/predict", json={"text": "영화"}, headers={**app.client.headers, "connection": "close"}
        )
    app.is_ready()  # whose connection asked for predictions and is still there
    assert len(callers) == 4


def test_what_is_refused_at_the_door_is_whole_http_whatever_is_sent(app, triton):
    """An upgrade, a chunked body, one request behind another, and HTTP/1.0, which is not refused at the door."""
    chunked = b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    requests = {
        b"POST /v1/predict HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n": 1,
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\n" + chunked: 1,
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" * 3: 3,
        b"POST /v1/predict HTTP/1.0\r\nauthorization: Bearer s3cret\r\ncontent-type: application/json\r\n"
        b'content-length: 12\r\n\r\n{"text":"x"}': 1,
    }  # fmt: skip
    with stopped_triton(triton):
        connections = [hanging_request(app, '{"text": "영화"}'.encode()) for _ in range(10)]
        wait_until(lambda: app.metric(IN_FLIGHT) == 10, 5, "the gateway is full")
        for request, answers in requests.items():
            with socket.create_connection(("127.0.0.1", app.port), timeout=10) as connection:
                connection.sendall(request)
                received = b""
                while received.count(b"HTTP/1.1 429 ") < answers or not received.endswith(b"}"):
                    received += (more := connection.recv(65536))
                    assert more, received
                assert received.count(b"HTTP/1.1 ") == received.count(b'"code":"overloaded"') == answers
    for connection in connections:
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.close()


class Wire(asyncio.Transport):
    """Keeps what each system call would have sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def test_what_one_turn_of_the_event_loop_writes_leaves_in_one_system_call_and_before_the_end():
    async def scenario() -> None:
        gathered = Gathered(wire := Wire(), asyncio.get_running_loop())
        gathered.write(b"head, ")
        gathered.write(b"body")
        await asyncio.sleep(0)
        gathered.write(b"the last")
        gathered.close()
        assert wire.sent == [b"head, body", b"the last"] and gathered.is_closing()

        gathered = Gathered(wire := Wire(), asyncio.get_running_loop())
        gathered.write(b"whole")
        gathered.leave()
        assert wire.sent == [b"whole"]

        lost = Gathered(wire := Wire(), asyncio.get_running_loop())
        lost.write(b"to nobody")
        wire.close()
        await asyncio.sleep(0)
        assert wire.sent == []

    asyncio.run(scenario())


@pytest.mark.parametrize("notes", ["read", "spent", "answered"])
def test_an_answer_has_left_before_notes_of_it_are_made(app, monkeypatch, notes):
    was_there, came_first = threading.Event(), []
    note = getattr(Metrics, notes)

    def note_later(*arguments: object) -> None:
        came_first.append(was_there.wait(10))
        note(*arguments)

    monkeypatch.setattr(Metrics, notes, note_later)
    assert app.predict("영화").status_code == 200
    was_there.set()
    assert app.predict("영화").status_code == 200
    assert came_first[0]


def silent(connection: socket.socket) -> float:
    """Seconds until the other side has enough of it."""
    began = time.monotonic()
    connection.settimeout(15)
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", b"POST /v1/predict HTTP/1.1\r\nhost: x\r\nx-half: "])
def test_a_connection_that_never_finishes_the_head_of_a_request_is_closed(app, sent):
    with socket.create_connection(("127.0.0.1", app.port)) as connection:
        connection.sendall(sent)
        assert 1 < silent(connection) < 10


def test_a_half_sent_head_after_an_answered_request_is_closed_too(app):
    with hanging_request(app, '{"text": "영화"}'.encode()) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost")
        assert 1 < silent(connection) < 10


def test_a_slow_but_steady_client_is_served(app):
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", app.port)) as connection:
        for part in (request[:20], request[20:40], request[40:]):
            connection.sendall(part)
            time.sleep(0.4)
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_client_that_takes_nothing_of_its_answer_is_left(app, triton):
    """The answers to requests sent one behind the other are more than the buffers between hold."""
    head = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with connection:
        connection.connect(("127.0.0.1", app.port))
        connection.sendall(head * 500)
        port = connection.getsockname()[1]
        wait_until(lambda: not established(port), 15, "the connection is closed from the other side")
    assert app.predict("영화").status_code == 200


def established(port: int) -> bool:
    """Whether this process still holds the server's end of a connection from `port`."""
    return any(
        each.raddr and each.raddr.port == port and each.status == psutil.CONN_ESTABLISHED
        for each in psutil.Process().net_connections("tcp")
    )


@pytest.fixture(scope="module")
def gateway(triton):
    """A whole gateway, started by somebody with few files and with two keys."""
    repository = triton.var_dir.parent / "model_repository"
    keys = triton.var_dir.parent / "keys"
    keys.write_text("crowd: key-of-the-crowd\nprobe: key-of-the-probe\n", encoding="utf-8")
    keys.chmod(0o600)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, most))
    try:
        with running_gateway(repository, triton.grpc_port, NUNCHI_API_KEYS_FILE=str(keys)) as gateway:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            yield gateway
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def test_a_crowd_is_answered_or_refused_and_readiness_stays(gateway):
    async def caller(client: httpx.AsyncClient, until: float, heard: list[httpx.Response]) -> None:
        while time.monotonic() < until:
            heard.append(await client.post("/v1/predict/batch", json={"texts": ["영화"] * SMALL}))

    async def scenario() -> None:
        heard: list[httpx.Response] = []
        headers = {"authorization": "Bearer key-of-the-crowd"}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers, limits=limits, timeout=30) as client:
            until = time.monotonic() + 4
            crowd = asyncio.gather(*(caller(client, until, heard) for _ in range(150)))
            while time.monotonic() < until:
                assert (await client.get("/healthz")).status_code == 200
                assert (await client.get("/readyz")).status_code == 200
                await asyncio.sleep(0.2)
            await crowd
            refused = [each for each in heard if each.status_code != 200]
            assert refused and len(refused) < len(heard)
            for each in refused:
                assert (each.status_code, each.json()["code"]) == (429, "overloaded")
                assert 1 <= int(each.headers["retry-after"]) <= 5
                assert each.headers.get_list("x-request-id", split_commas=True) == [each.json()["instance"]]
            assert (await client.post("/v1/predict", json={"text": "영화"})).status_code == 200

    asyncio.run(scenario())


def test_a_line_of_batches_is_answered_and_no_single_text_waits_behind_it(gateway, triton):
    """Triton stands still until all have come: of the batches it holds two, the rest is behind a gate of its own."""
    done: list[str] = []

    async def caller(client: httpx.AsyncClient, route: str, body: dict) -> None:
        answer = await client.post(route, json=body)
        assert answer.status_code == 200, answer.text
        done.append(route)

    async def scenario() -> None:
        headers = {"authorization": "Bearer key-of-the-crowd"}
        limits = httpx.Limits(max_connections=None)
        batch, single = "/v1/predict/batch", "/v1/predict"
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers, limits=limits, timeout=30) as client:
            with stopped_triton(triton):
                line = [asyncio.create_task(caller(client, batch, {"texts": ["영화"] * 64})) for _ in range(30)]
                await asyncio.sleep(1)
                last = asyncio.create_task(caller(client, single, {"text": "영화"}))
                await asyncio.sleep(0.5)
                assert not done
            await asyncio.gather(*line, last)
        assert done.index(single) <= 8
        assert len(done) == 31

    asyncio.run(scenario())


def test_the_replica_may_hold_as_many_connections_as_the_system_lets_it(gateway):
    soft, hard = gateway.replica().rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard > 512


def test_no_word_of_a_request_and_no_key_is_ever_logged(gateway, triton):
    marker = "비밀표식zqx"
    texts = {"authorization": "Bearer key-of-the-crowd", "content-type": "application/json"}
    bodies = [
        ("/v1/predict", f'{{"text": "{marker} 영화"}}'),
        ("/v1/predict", f'{{"text": "{marker}'),
        ("/v1/predict", f'{{"{marker}": 1}}'),
        ("/v1/predict", f'{{"text": "{marker * 4000}"}}'),
        ("/v1/predict/batch", f'{{"texts": ["{marker}", ""]}}'),
        ("/v1/predict/batch", f'{{"texts": ["{marker}", 7]}}'),
        (f"/v1/{marker}", "{}"),
    ]

    def ask() -> set[int]:
        return {
            httpx.post(f"{gateway.url}{path}", content=body.encode(), headers=texts, timeout=30).status_code
            for path, body in bodies
        }

    assert {200, 404, 413, 422} <= ask()
    httpx.post(f"{gateway.url}/v1/predict", json={"text": marker}, headers={"authorization": "Bearer zqx-zqx"})
    for stub in stubs(triton):
        stub.kill()
    wait_until(lambda: 503 in ask(), 10, "Triton is away")
    wait_until(lambda: 200 in ask(), 30, "Triton is back")
    assert "request failed: model_unavailable" in gateway.output and '"key":"crowd"' in gateway.output
    for secret in (marker, "zqx", marker.encode("unicode_escape").decode(), "key-of-the-crowd"):
        assert secret not in gateway.output and secret not in triton.output


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
