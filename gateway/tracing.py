"""OpenTelemetry traces of the gateway, on when NUNCHI_OTLP_ENDPOINT is set; imported only then.

A request continues the W3C trace its caller began, or begins one; a caller that decided against tracing (the flag of
its traceparent) is not traced.  The spans are the request and within it tokenization, queue and inference, with counts
and times, never a text.  Triton gets the inference span as the parent of its own.

The ids are drawn when the request arrives and the spans are made when it is over, from the times that were taken
anyway (stages.py).  They leave in batches from a thread; when the collector is away they are dropped, and nobody waits.
"""

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

if TYPE_CHECKING:
    from gateway.envelope import Exchange

TRACES_PATH = "/v1/traces"
EXPORT_SECONDS = 5.0  # for one batch, its second tries included
CLOSE_SECONDS = 2.0  # for what has not left yet when the gateway stops

SCOPE = InstrumentationScope("nunchi.gateway")
UNSET = Status(StatusCode.UNSET)

_ids = RandomIdGenerator()
_traceparent = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class Trace:
    """The ids of one request: the caller's span where there is one, the request's, and that of asking Triton."""

    parent: SpanContext | None
    request: SpanContext
    inference: SpanContext

    @property
    def trace_id(self) -> str:
        return f"{self.request.trace_id:032x}"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What makes the spans of Triton children of the inference span, as gRPC metadata."""
        return (("traceparent", f"00-{self.trace_id}-{self.inference.span_id:016x}-01"),)


class Tracer:
    """Sends the spans of requests to the collector at `endpoint`, the base URL of an OTLP/HTTP receiver."""

    def __init__(self, endpoint: str) -> None:
        self._resource = Resource.create({SERVICE_NAME: "nunchi-gateway"})
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + TRACES_PATH, timeout=EXPORT_SECONDS)
        self._processor = BatchSpanProcessor(exporter)

    def begin(self, headers: Headers) -> Trace | None:
        """The trace of a request that just arrived; None when its caller is not traced."""
        offered = get_current_span(_traceparent.extract(headers)).get_span_context()
        parent = offered if offered.is_valid else None
        if parent and not parent.trace_flags.sampled:
            return None
        trace_id = parent.trace_id if parent else _ids.generate_trace_id()
        state = parent.trace_state if parent else None
        sampled = TraceFlags(TraceFlags.SAMPLED)
        request = SpanContext(trace_id, _ids.generate_span_id(), False, sampled, state)
        return Trace(parent, request, sibling(request))

    def end(self, trace: Trace, exchange: "Exchange", status: int) -> None:
        """Hand over the spans of a request that is over; stages that did not run have none."""
        stages, ended = exchange.stages, time.perf_counter()
        self._send(
            ("request", trace.request, trace.parent),
            (exchange.started, ended),
            {
                "http.route": exchange.route,
                "http.response.status_code": status,
                "nunchi.request_id": exchange.request_id,
                "nunchi.code": exchange.code,
                "nunchi.version": exchange.version or "",
                "nunchi.texts": exchange.texts,
                "nunchi.characters": exchange.characters,
            },
            SpanKind.SERVER,
            Status(StatusCode.ERROR) if status >= 500 else UNSET,
        )
        if stages.tokenized:
            times = (stages.tokenized - stages.tokenization, stages.tokenized)
            self._send(("tokenization", sibling(trace.inference), trace.request), times)
        if stages.first_sent:
            times = (stages.tokenized, stages.first_sent)
            self._send(("queue", sibling(trace.inference), trace.request), times)
            self._send(
                ("inference", trace.inference, trace.request),
                (stages.first_sent, stages.first_sent + stages.inference),
                {"nunchi.version": exchange.version or "", "nunchi.rows": exchange.texts},
                SpanKind.CLIENT,
            )

    def close(self) -> None:
        """Send what is left; give up after CLOSE_SECONDS."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _send(
        self,
        identity: tuple[str, SpanContext, SpanContext | None],
        times: tuple[float, float],
        attributes: dict[str, str | int] | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        status: Status = UNSET,
    ) -> None:
        """`identity` is the span's name, ids and parent; `times`, its begin and end, are of time.perf_counter()."""
        name, context, parent = identity
        ahead = time.time() - time.perf_counter()
        begun, ended = (int((each + ahead) * 1e9) for each in times)
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._resource,
                attributes,
                kind=kind,
                status=status,
                start_time=begun,
                end_time=ended,
                instrumentation_scope=SCOPE,
            )
        )


def sibling(span: SpanContext) -> SpanContext:
    """A new span in the trace of `span`."""
    return SpanContext(span.trace_id, _ids.generate_span_id(), False, span.trace_flags, span.trace_state)
