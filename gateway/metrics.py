"""What Prometheus reads at /metrics.  One registry per gateway, so two in one process do not mix.

Every label is bounded: routes, statuses, codes and stages are fixed lists, and of the versions only the last
VERSIONS_KEPT have series.  Whatever runs once per request touches children that were made before, a few tenths of a
microsecond each; what a page costs is paid when it is asked for.
"""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.bundle import Bundle, Tokens
from gateway.drift import Drift
from gateway.stages import Stages

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1, 2, 4, 8, 15, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STAGES = ("tokenization", "queue", "inference", "total")
DISCONNECTED = 499  # nobody is there to read it, but it is counted
VERSIONS_KEPT = 4  # the one that answers, its candidate, and room for those they replaced


class Metrics:
    """The series of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._make_requests()
        self._make_texts()
        self._make_shadow()
        self._make_state()
        self._drift = Drift()
        self.registry.register(self._drift)
        self._versions: list[str] = []  # the least recently switched to first
        self._answered: dict[tuple[str, int, str, str], Counter] = {}
        self._stages_of: dict[str, list[Histogram]] = {}
        self._labels_of: dict[str, list[Counter]] = {}
        self._live: str | None = None
        self._candidate: str | None = None

    def _make_requests(self) -> None:
        self._requests = self._counter(
            "requests",
            "Requests answered, by route, HTTP status, code (ok, or the code of the problem) and model version",
            ["route", "status", "code", "version"],
        )
        self._stage_seconds = self._histogram(
            "stage_seconds", "Seconds a prediction spent in a stage, by model version", SECONDS, ["stage", "version"]
        )
        self._in_flight = self._gauge("in_flight_texts", "Texts being answered now")
        self._in_flight_limit = self._gauge("in_flight_texts_limit", "Texts let in at one time, now")

    def _make_texts(self) -> None:
        self._texts = self._counter("texts", "Texts answered")
        self._tokens = self._counter("tokens", "Tokens of the texts answered")
        self._truncated = self._counter(
            "truncated_texts", "Texts answered whose end the model did not read, by model version", ["version"]
        )
        self._predictions = self._counter(
            "predictions", "Texts answered with a label, by label and model version", ["label", "version"]
        )
        self._request_texts = self._histogram("request_texts", "Texts of one answered request", SIZES)
        self._triton_rows = self._histogram("triton_rows", "Rows of one call to Triton", SIZES)

    def _make_shadow(self) -> None:
        """What a candidate is measured by; `version` is the candidate's."""
        self._shadow_texts = self._counter(
            "shadow_texts", "Texts that a candidate in shadow answered as well", ["version"]
        )
        self._shadow_agreeing = self._counter(
            "shadow_agreeing_texts", "Those that got the same label as from the version that answers", ["version"]
        )
        self._shadow_dropped = self._counter(
            "shadow_dropped_texts", "Texts meant for a candidate in shadow that found no room there"
        )
        self._shadow_seconds = self._histogram(
            "shadow_seconds",
            "Seconds for the same texts by the version that answers (side live) and by the candidate",
            SECONDS,
            ["side", "version"],
        )
        self._candidate_failures = self._counter(
            "candidate_failures", "Requests a candidate failed to answer", ["version"]
        )

    def _make_state(self) -> None:
        self._model = self._gauge(
            "model_info", "1 for the model version that answers", ["model", "version", "encoder", "precision"]
        )
        self._candidate_share = self._gauge(
            "candidate_share", "Share of the traffic a candidate gets, 0 to 1, while there is one", ["version", "mode"]
        )
        self._candidate_ended = self._gauge(
            "candidate_ended", "1 for the last candidate the gateway ended by itself, and why", ["version", "reason"]
        )

    def _counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"nunchi_gateway_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"nunchi_gateway_{name}", help_text, labels, registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(f"nunchi_gateway_{name}", help_text, labels, registry=self.registry, buckets=buckets)

    def watch_in_flight(self, count: Callable[[], int], limit: Callable[[], int]) -> None:
        """Read the texts in flight and their limit whenever Prometheus asks."""
        self._in_flight.set_function(count)
        self._in_flight_limit.set_function(limit)

    def answered(self, route: str, status: int, code: str, version: str) -> None:
        """One request, whatever came of it."""
        key = (route, status, code, version)
        counter = self._answered.get(key)
        if counter is None:
            self._know(version)
            counter = self._answered[key] = self._requests.labels(route, str(status), code, version)
        counter.inc()

    def spent(self, stages: Stages, total_seconds: float, version: str) -> None:
        """The seconds of one successful prediction."""
        histograms = self._stages_of.get(version)
        if histograms is None:
            self._know(version)
            histograms = self._stages_of[version] = [self._stage_seconds.labels(stage, version) for stage in STAGES]
        for histogram, seconds in zip(
            histograms, (stages.tokenization, stages.queue, stages.inference, total_seconds), strict=True
        ):
            histogram.observe(seconds)

    def read(
        self, bundle: Bundle, tokens: Sequence[Tokens], winners: Sequence[int], confidences: Sequence[float]
    ) -> None:
        """The texts of one answered request; `winners` are indexes of labels, `confidences` their probabilities."""
        counters = self._labels_of.get(bundle.version)
        if counters is None:
            self._know(bundle.version)
            counters = self._labels_of[bundle.version] = [
                self._predictions.labels(label.name, bundle.version) for label in bundle.labels
            ]
        self._request_texts.observe(len(tokens))
        self._texts.inc(len(tokens))
        self._tokens.inc(sum(len(each.ids) for each in tokens))
        if truncated := sum(each.truncated for each in tokens):
            self._truncated.labels(bundle.version).inc(truncated)
        for winner in winners:
            counters[winner].inc()
        self._drift.read(bundle, tokens, winners, confidences)

    def sent(self, rows: int) -> None:
        """One call to Triton."""
        self._triton_rows.observe(rows)

    def serves(self, bundle: Bundle) -> None:
        """This version answers from now on."""
        self._model.clear()
        self._model.labels(bundle.model, bundle.version, bundle.manifest.encoder, bundle.manifest.precision).set(1)
        self._live = bundle.version
        self._know(bundle.version, newest=True)
        self._truncated.labels(bundle.version)  # 0 is something to show
        self._drift.keep({self._live, self._candidate})

    def shadowed(self, version: str, texts: int, agreeing: int, live_seconds: float, candidate_seconds: float) -> None:
        """A candidate answered `texts` that had been answered, `agreeing` of them with the same label."""
        self._know(version)
        self._shadow_texts.labels(version).inc(texts)
        self._shadow_agreeing.labels(version).inc(agreeing)
        self._shadow_seconds.labels("live", version).observe(live_seconds)
        self._shadow_seconds.labels("candidate", version).observe(candidate_seconds)

    def shadow_dropped(self, texts: int) -> None:
        self._shadow_dropped.inc(texts)

    def candidate_failed(self, version: str) -> None:
        self._know(version)
        self._candidate_failures.labels(version).inc()

    def candidate_is(self, version: str | None, mode: str, share: float, ended_because: str) -> None:
        """The candidate now, or None; `ended_because` says why the gateway itself ended it, "" when it did not."""
        self._candidate_share.clear()
        self._candidate_ended.clear()
        if ended_because:
            self._candidate_ended.labels(version or self._candidate or "", ended_because).set(1)
        elif version is not None:
            self._know(version, newest=True)
            self._candidate_share.labels(version, mode).set(share)
            self._candidate_failures.labels(version)
        self._candidate = None if ended_because else version
        self._drift.keep({self._live, self._candidate})

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def _know(self, version: str, *, newest: bool = False) -> None:
        """Make room for the series of a version; those of the one that was switched to longest ago go."""
        if newest and version in self._versions:
            self._versions.remove(version)
        if version not in self._versions:
            self._versions.append(version)
        if len(self._versions) > VERSIONS_KEPT:
            in_service = {self._live, self._candidate, version}
            oldest = next(each for each in self._versions if each not in in_service)
            self._versions.remove(oldest)
            self._forget(oldest)

    def _forget(self, version: str) -> None:
        for metric in (
            self._requests,
            self._stage_seconds,
            self._truncated,
            self._predictions,
            self._shadow_texts,
            self._shadow_agreeing,
            self._shadow_seconds,
            self._candidate_failures,
        ):
            metric.remove_by_labels({"version": version})
        self._answered = {key: counter for key, counter in self._answered.items() if key[3] != version}
        self._stages_of.pop(version, None)
        self._labels_of.pop(version, None)
