"""Locust users for the gateway and for Triton, against a running stack (`make up`).

    locust -f loadtest/locustfile.py GatewaySingle --headless -u 32 -t 30s       32 callers, each waits for its answer
    … GatewayBatch --batch 64    … TritonGrpc    … TritonHttp                     the same texts, other doors
    … GatewaySingle --headless -u 4 -t 30s --arrivals 10                          40 requests a second, answered or not
    locust -f loadtest/locustfile.py,loadtest/steps.py … --steps 1,8,32           that many users, one after the other
    … --max-failures 0.01 --max-p95 50                                            else the exit status is 1

Run it from the root of the repository; without --headless it is Locust's page. It addresses what the NUNCHI_ settings
name, and --texts draws from another file than the bundled reviews. At the end of a run it prints where the gateway says
that the time went. Locust itself takes about a millisecond of a core per request: above some hundred requests per
second it measures itself, and `make bench` or wrk is the tool.
"""

import time
from pathlib import Path
from typing import ClassVar

import gevent
import gevent.pool
import grpc.experimental.gevent
import orjson
import tritonclient.grpc
import tritonclient.http
from geventhttpclient import HTTPClient
from locust import User, events, task
from locust.env import Environment
from locust.stats import StatsEntry
from tritonclient.utils import InferenceServerException

from loadtest.served import Served
from loadtest.settings import Settings
from loadtest.split import STAGES, split_of
from loadtest.texts import NoTexts, read_texts

MOST_WAITING = 1000  # requests of one user under way; beyond them an arrival is late, and its wait is counted
TIMEOUT_SECONDS = 30.0


@events.init_command_line_parser.add_listener
def add_options(parser) -> None:
    parser.add_argument("--texts", default="", help="file of texts (default: the bundled reviews)")
    parser.add_argument("--batch", type=int, default=64, help="texts in one request of GatewayBatch (default: 64)")
    parser.add_argument(
        "--arrivals",
        type=float,
        default=0,
        help="requests per second of each user, answered or not (default: 0, waits)",
    )
    parser.add_argument(
        "--max-failures", type=float, default=0, help="largest share of failed requests that is a success (default: 0)"
    )
    parser.add_argument("--max-p95", type=float, default=0, help="most milliseconds of the p95 (default: 0, no limit)")


@events.init.add_listener
def prepare(environment: Environment, **_) -> None:
    """Texts and bundle are read once, before anybody asks."""
    grpc.experimental.gevent.init_gevent()
    texts = environment.parsed_options.texts
    environment.splits = {stage: StatsEntry(environment.stats, stage, "split") for stage in STAGES}
    try:
        environment.texts = read_texts(Path(texts) if texts else None)
        environment.served = Served.of(Settings().model_repository)
    except (NoTexts, OSError) as exc:
        raise SystemExit(f"error: {exc}") from None
    gevent.sleep(0)  # gevent's clock stood still while all that was loaded, and Locust's -t would end at once


@events.quitting.add_listener
def judge(environment: Environment, **_) -> None:
    """The exit status: 0 when enough was answered, and soon enough; and what the gateway says of its time."""
    options, total = environment.parsed_options, environment.stats.total
    for stage, entry in environment.splits.items():
        if entry.num_requests:
            p50, p95 = (entry.get_response_time_percentile(share) for share in (0.5, 0.95))
            print(f"split    {stage:<12} mean {entry.avg_response_time:7.2f} ms   p50 {p50:g} ms   p95 {p95:g} ms")
    complaints = []
    if not total.num_requests:
        complaints.append("nothing was asked")
    if total.fail_ratio > options.max_failures:
        complaints.append(f"{total.fail_ratio:.2%} of the requests failed, {options.max_failures:.2%} may")
    p95 = total.get_response_time_percentile(0.95)
    if options.max_p95 and p95 > options.max_p95:
        complaints.append(f"p95 is {p95:g} ms, at most {options.max_p95:g} ms was wanted")
    for complaint in complaints:
        print(f"failed: {complaint}")
    environment.process_exit_code = 1 if complaints else 0


class Refused(OSError):
    """An answer with another status than 200."""


class Reviews(User):
    """Asks one review after the other; ``prepare`` and ``ask`` are what each door adds."""

    abstract = True
    placed: ClassVar[int] = 0  # users so far: each begins elsewhere in the texts

    def on_start(self) -> None:
        self.settings = Settings()
        self.place = Reviews.placed * 997
        Reviews.placed += 1
        self.waiting = gevent.pool.Pool(MOST_WAITING)
        self.began, self.arrived = time.perf_counter(), 0

    def on_stop(self) -> None:
        self.waiting.join(timeout=TIMEOUT_SECONDS)

    def draw(self, count: int) -> list[str]:
        texts = self.environment.texts
        self.place += count
        return [texts[(self.place + number) % len(texts)] for number in range(count)]

    @task
    def review(self) -> None:
        arrivals = self.environment.parsed_options.arrivals
        if not arrivals:
            self.timed(time.perf_counter())
            return
        due = self.began + self.arrived / arrivals
        self.arrived += 1
        gevent.sleep(max(due - time.perf_counter(), 0))
        self.waiting.spawn(self.timed, due)

    def timed(self, due: float) -> None:
        """Asks, and reports the time since the request was due: a server that stalls is not spared those who wait.
        Preparing the question is this side's work and not counted."""
        failure, length = None, 0
        began = time.perf_counter()
        question = self.prepare()
        due += time.perf_counter() - began
        try:
            length = self.ask(question)
        except (OSError, InferenceServerException) as exc:
            failure = exc
        self.environment.events.request.fire(
            request_type="review",
            name=type(self).__name__,
            response_time=(time.perf_counter() - due) * 1e3,
            response_length=length,
            exception=failure,
        )

    def prepare(self) -> object:
        """The next question."""
        raise NotImplementedError

    def ask(self, question: object) -> int:
        """Bytes of the answer.

        Raises:
            OSError: no connection, or an answer that is not a success.
            InferenceServerException: Triton refused.
        """
        raise NotImplementedError


class Gateway(Reviews):
    abstract = True
    path: ClassVar[str]

    def on_start(self) -> None:
        super().on_start()
        headers = {"content-type": "application/json"}
        if self.settings.api_key:
            headers["authorization"] = f"Bearer {self.settings.api_key}"
        # The client under Locust's FastHttpUser, which itself cannot count from the moment a request was due.
        self.client = HTTPClient(
            self.settings.host,
            self.settings.gateway_port,
            headers=headers,
            concurrency=MOST_WAITING,
            connection_timeout=TIMEOUT_SECONDS,
            network_timeout=TIMEOUT_SECONDS,
        )

    def on_stop(self) -> None:
        super().on_stop()
        self.client.close()

    def ask(self, question: bytes) -> int:
        response = self.client.post(self.path, question)
        content = response.read()
        if response.status_code != 200:
            raise Refused(f"{response.status_code} {bytes(content[:300]).decode(errors='replace')}")
        for stage, milliseconds in (split_of(response.get) or {}).items():
            self.environment.splits[stage].log(milliseconds, 0)
        return len(content)


class GatewaySingle(Gateway):
    path = "/v1/predict"

    def prepare(self) -> bytes:
        return orjson.dumps({"text": self.draw(1)[0]})


class GatewayBatch(Gateway):
    path = "/v1/predict/batch"

    def prepare(self) -> bytes:
        return orjson.dumps({"texts": self.draw(self.environment.parsed_options.batch)})


class Triton(Reviews):
    """Tokenizing is the gateway's work, so here it is part of preparing."""

    abstract = True
    protocol: ClassVar  # tritonclient.grpc or tritonclient.http

    def on_start(self) -> None:
        super().on_start()
        self.client = self.connect()

    def on_stop(self) -> None:
        super().on_stop()
        self.client.close()
        # Its __del__ closes once more, which can wait for ever when it comes at the end of the process, after gevent's.
        del self.client

    def prepare(self) -> list:
        inputs = []
        for name, values in self.environment.served.encode(self.draw(1)[0]).items():
            inputs.append(self.protocol.InferInput(name, list(values.shape), "INT64"))
            inputs[-1].set_data_from_numpy(values)
        return inputs

    def ask(self, question: list) -> int:
        served = self.environment.served
        return self.client.infer(served.model, question, served.version).as_numpy("logits").nbytes


class TritonGrpc(Triton):
    protocol = tritonclient.grpc

    def connect(self) -> tritonclient.grpc.InferenceServerClient:
        return tritonclient.grpc.InferenceServerClient(f"{self.settings.host}:{self.settings.triton_grpc_port}")


class TritonHttp(Triton):
    protocol = tritonclient.http

    def connect(self) -> tritonclient.http.InferenceServerClient:
        address = f"{self.settings.host}:{self.settings.triton_http_port}"
        return tritonclient.http.InferenceServerClient(
            address, MOST_WAITING, connection_timeout=TIMEOUT_SECONDS, network_timeout=TIMEOUT_SECONDS
        )
