"""An OTLP/HTTP collector for a test: `with running_collector() as collector:` and point NUNCHI_OTLP_ENDPOINT at it."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

IDS = {"traceId", "spanId", "parentSpanId"}


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, object]


@dataclass
class Collector:
    url: str
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def take(self, body: bytes, content_type: str) -> None:
        if content_type == "application/json":  # Triton's
            request = json_format.ParseDict(with_base64(json.loads(body)), ExportTraceServiceRequest())
        else:
            request = ExportTraceServiceRequest.FromString(body)
        with self._arrived:
            self.bodies.append(body)
            for resource in request.resource_spans:
                service = attributes(resource.resource.attributes).get("service.name", "")
                for scope in resource.scope_spans:
                    self.spans += [read(service, span) for span in scope.spans]
            self._arrived.notify_all()

    def wait_for(self, trace_id: str, service: str, seconds: float = 30) -> list[Span]:
        """The spans of a trace, of every service, once `service` has sent one of them."""

        def found() -> list[Span]:
            return [span for span in self.spans if span.trace_id == trace_id]

        deadline = time.monotonic() + seconds
        with self._arrived:
            self._arrived.wait_for(lambda: any(span.service == service for span in found()), seconds)
            assert time.monotonic() < deadline, f"no span of {service} in trace {trace_id}: {self.spans}"
            return found()


def read(service: str, span) -> Span:
    return Span(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        attributes(span.attributes),
    )


def with_base64(part: object) -> object:
    """OTLP writes ids as hex digits in JSON, protobuf's own reader wants base64."""
    if isinstance(part, list):
        return [with_base64(each) for each in part]
    if not isinstance(part, dict):
        return part
    ids = {key: base64.b64encode(bytes.fromhex(part[key])).decode() for key in IDS & part.keys()}
    return {key: with_base64(each) for key, each in part.items()} | ids


def attributes(pairs) -> dict[str, object]:
    return {pair.key: value(pair.value) for pair in pairs}


def value(wrapped: AnyValue) -> object:
    return getattr(wrapped, wrapped.WhichOneof("value") or "string_value")


@contextmanager
def running_collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                collector.take(body, self.headers["content-type"])
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
