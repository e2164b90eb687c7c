"""One trace through gateway and Triton, seen by a real OTLP/HTTP collector; and no collector, no harm."""

import subprocess
import sys
import time

import pytest

from tests.collector import running_collector
from tests.gateway.gateway_process import ROOT
from tests.gateway.served_app import served_app
from tests.triton_process import free_ports, running_triton

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = CALLER.split("-")[1]
SECRET = "좋다 아무도읽으면안되는문장"


@pytest.fixture(scope="module")
def collector():
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def triton(collector, shared_repository, tmp_path_factory):
    var = tmp_path_factory.mktemp("traced")
    with running_triton(shared_repository, var, NUNCHI_OTLP_ENDPOINT=collector.url) as triton:
        yield triton


@pytest.fixture(scope="module")
def times(collector, triton, shared_repository) -> tuple[int, int]:
    """When the traced request was sent and answered, in ns; three others went with it."""
    with served_app(shared_repository, triton.grpc_port, otlp_endpoint=collector.url) as app:

        def ask(identity: str, **headers: str) -> None:
            answer = app.client.post(
                "/v1/predict/batch", json={"texts": [SECRET] * 3}, headers=headers | {"x-request-id": identity}
            )
            assert answer.status_code == 200

        sent = time.time_ns()
        ask("traced-1", traceparent=CALLER)
        answered = time.time_ns()
        ask("unwanted-1", traceparent=f"00-{'a' * 32}-{'b' * 16}-00")
        ask("begun-here")
        app.client.get("/healthz")
    return sent, answered


def test_one_trace_goes_from_the_caller_through_the_gateway_to_triton(collector, times):
    collector.wait_for(TRACE, "nunchi-gateway")
    spans = collector.wait_for(TRACE, "nunchi-triton")
    found = {(span.service, span.name): span for span in spans}
    request, inference = (found["nunchi-gateway", name] for name in ("request", "inference"))
    assert request.parent_id == CALLER.split("-")[2]
    for name in ("tokenization", "queue", "inference"):
        stage = found["nunchi-gateway", name]
        assert stage.parent_id == request.span_id
        assert request.start <= stage.start <= stage.end <= request.end
    assert times[0] < request.start < request.end < times[1] + 5_000_000
    asked = found["nunchi-triton", "InferRequest"]
    assert asked.parent_id == inference.span_id
    model = found["nunchi-triton", "sentiment"]
    assert model.parent_id == asked.span_id
    assert (model.attributes["triton.request_id"], model.attributes["triton.model_version"]) == ("traced-1", 1)
    assert (request.attributes["nunchi.texts"], request.attributes["nunchi.version"]) == (3, "1")
    assert request.attributes["http.response.status_code"] == 200
    assert inference.attributes["nunchi.rows"] == 3


def test_a_request_without_a_trace_begins_one(collector, times):
    (request,) = [each for each in collector.spans if each.attributes.get("nunchi.request_id") == "begun-here"]
    assert request.parent_id == ""
    services = {span.service for span in collector.wait_for(request.trace_id, "nunchi-triton")}
    assert services == {"nunchi-gateway", "nunchi-triton"}


def test_what_nobody_wants_traced_is_not_and_no_text_leaves(collector, times):
    collector.wait_for(TRACE, "nunchi-triton")
    assert {span.attributes.get("http.route") for span in collector.spans} <= {"/v1/predict/batch", None}
    assert not any(span.trace_id == "a" * 32 for span in collector.spans)
    begun = {span.trace_id for span in collector.spans if span.service == "nunchi-gateway"}
    assert {span.trace_id for span in collector.spans if span.service == "nunchi-triton"} <= begun
    assert collector.bodies
    assert not any(SECRET.encode() in body for body in collector.bodies)


def test_a_collector_that_is_away_holds_nobody_up(shared_triton, shared_repository):
    (port,) = free_ports(1)
    with served_app(shared_repository, shared_triton.grpc_port, otlp_endpoint=f"http://127.0.0.1:{port}") as app:
        for _ in range(700):  # with four spans each, more than the queue of 2048 holds
            began = time.perf_counter()
            assert app.predict("좋다").status_code == 200
            assert time.perf_counter() - began < 1
        stopping = time.perf_counter()
    assert time.perf_counter() - stopping < 5


def test_opentelemetry_is_not_imported_while_it_is_off():
    """Its API is, by FastAPI; what costs is the SDK and the exporter."""
    names = "import sys, gateway.app, gateway.serve; print('\\n'.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = found.stdout.splitlines()
    assert "gateway.envelope" in imported
    assert not [name for name in imported if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
