"""What Prometheus reads at /metrics.  One registry per gateway, so two in one process do not mix."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.bundle import Bundle, Tokens
from gateway.stages import Stages

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1, 2, 4, 8, 15, 30)
STAGES = ("tokenization", "queue", "inference", "total")
DISCONNECTED = 499  # nobody is there to read it, but it is counted


class Metrics:
    """The counters of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "nunchi_gateway_requests",
            "Requests answered, by route, HTTP status and code (ok, or the code of the problem)",
            ["route", "status", "code"],
            registry=self.registry,
        )
        stage_seconds = Histogram(
            "nunchi_gateway_stage_seconds",
            "Seconds a prediction spent in a stage",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._stage_seconds = [stage_seconds.labels(stage) for stage in STAGES]
        self._in_flight = Gauge("nunchi_gateway_in_flight_texts", "Texts being answered now", registry=self.registry)
        self._in_flight_limit = Gauge(
            "nunchi_gateway_in_flight_texts_limit", "Texts let in at one time", registry=self.registry
        )
        self._texts = Counter("nunchi_gateway_texts", "Texts answered", registry=self.registry)
        self._tokens = Counter("nunchi_gateway_tokens", "Tokens of the texts answered", registry=self.registry)
        self._truncated = Counter(
            "nunchi_gateway_truncated_texts", "Texts answered whose end the model did not read", registry=self.registry
        )
        self._model = Gauge(
            "nunchi_gateway_model_info",
            "1 for the model version that answers",
            ["model", "version", "encoder", "precision"],
            registry=self.registry,
        )
        self._answered: dict[tuple[str, int, str], Counter] = {}

    def watch_in_flight(self, count: Callable[[], int], limit: int) -> None:
        """Read the texts in flight from `count()` whenever Prometheus asks."""
        self._in_flight.set_function(count)
        self._in_flight_limit.set(limit)

    def answered(self, route: str, status: int, code: str) -> None:
        key = (route, status, code)
        counter = self._answered.get(key)
        if counter is None:
            counter = self._answered[key] = self._requests.labels(route, str(status), code)
        counter.inc()

    def spent(self, stages: Stages, total: float) -> None:
        """The seconds of one successful prediction."""
        for histogram, seconds in zip(
            self._stage_seconds, (stages.tokenization, stages.queue, stages.inference, total), strict=True
        ):
            histogram.observe(seconds)

    def read(self, tokens: Sequence[Tokens]) -> None:
        """Texts that got an answer."""
        self._texts.inc(len(tokens))
        self._tokens.inc(sum(len(each.ids) for each in tokens))
        self._truncated.inc(sum(each.truncated for each in tokens))

    def serves(self, bundle: Bundle) -> None:
        self._model.clear()
        self._model.labels(bundle.model, bundle.version, bundle.manifest.encoder, bundle.manifest.precision).set(1)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
