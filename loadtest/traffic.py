"""``python -m loadtest.traffic --rate 50 --seconds 30``: a constant stream of requests whose every answer is judged.

Against a running stack (`make up`) it offers golden texts at a constant arrival rate, whether or not the answers keep
up, and prints how many were answered right, refused and failed, the latencies counted from the moment each request was
due (so a server that stalls is not spared the requests that waited meanwhile), and the versions seen. When the
generator itself is late that is printed as its lag: raise ``--processes``, or do not blame the server. One process
offers about 2,500 requests per second on one core. Ends with status 1 when a request failed; with ``--version``, as the
smoke test of a release, also when not every answer is that version's. Ctrl-C or SIGTERM ends it early, with its table.

In a test: `with Traffic(url, Oracle.of(repository), rate=50) as traffic: ...`.
"""

import argparse
import asyncio
import functools
import itertools
import json
import math
import multiprocessing
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, Self

import httptools
import numpy as np
import orjson
import uvloop

from loadtest.client import Client
from loadtest.pace import STOP_CHECK_SECONDS, at_rate, in_turn
from loadtest.settings import Settings

POLITE = {429, 503}  # refusals, when they say when to come back; 504 says that the deadline passed
REPORT_SECONDS = 0.1  # how often a worker process hands over what it has


class Golden(NamedTuple):
    """What one version answers to one text."""

    input_tokens: int
    probabilities: np.ndarray


@dataclass
class Oracle:
    """The golden rows of every version of a model repository; versions published later are read when they answer.

    ``texts`` are those that every version had when the oracle was made: whichever answers can be judged.
    """

    repository: Path
    model: str = field(init=False)
    texts: list[str] = field(init=False)
    _golden: dict[str, dict[str, Golden]] = field(default_factory=dict)
    _labels: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    _tolerance: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, repository: Path) -> Self:
        return cls(Path(repository))

    def __post_init__(self) -> None:
        serving = json.loads((self.repository / "serving.json").read_text(encoding="utf-8"))
        self.model = serving["model"]
        for folder in (self.repository / self.model).iterdir():
            if folder.name.isdecimal():
                self._read(folder.name)
        served = self._golden[str(serving["version"])]
        self.texts = [text for text in served if all(text in rows for rows in self._golden.values())]

    def judge(self, text: str, version: str | None, body: dict) -> bool:
        """Whether ``body``, sent with ``return_probs``, is what ``version`` (of the header) answers to ``text``.

        Tokens and probabilities have to be those of that one version, so a tokenizer of one version with the model of
        another is wrong. A version without a manifest, or without this text, cannot be right.
        """
        if version is None or body.get("model_version") != version or not self._knows(version):
            return False
        golden = self._golden[version].get(text)
        given = body.get("probs") or {}
        labels = self._labels[version]
        if golden is None or body.get("input_tokens") != golden.input_tokens or list(given) != [n for n, _ in labels]:
            return False
        probabilities = list(given.values())
        winner = probabilities.index(max(probabilities))
        shift = max(abs(a - b) for a, b in zip(probabilities, golden.probabilities.tolist(), strict=True))
        return shift <= self._tolerance[version] and (body["prediction"], body["label"]) == labels[winner]

    def tells_apart(self, one: str, other: str) -> float:
        """Share of the texts by which a tokenizer of ``one`` with a model of ``other`` would be found out."""
        mine, others = (self._golden[version] for version in (one, other) if self._knows(version))
        allowed = self._tolerance[one] + self._tolerance[other]
        found = [
            mine[text].input_tokens != others[text].input_tokens
            and np.abs(mine[text].probabilities - others[text].probabilities).max() > allowed
            for text in self.texts
        ]
        return sum(found) / len(found)

    def _knows(self, version: str) -> bool:
        if version not in self._golden:
            with suppress(OSError):
                self._read(version)
        return version in self._golden

    def _read(self, version: str) -> None:
        file = self.repository / self.model / str(int(version)) / "manifest.json"
        manifest = json.loads(file.read_text(encoding="utf-8"))
        self._labels[version] = [(label["name"], label["korean"]) for label in manifest["labels"]]
        self._tolerance[version] = manifest["golden_probability_tolerance"]
        self._golden[version] = {
            row["text"]: Golden(len(row["input_ids"]), np.array(row["probabilities"])) for row in manifest["golden"]
        }


class Outcome(NamedTuple):
    """One request. ``due`` and ``sent`` are time.monotonic() moments; ``seconds`` go from due to the end of the answer.

    ``status`` is 0 where no whole answer came, and ``code`` then the name of the exception; else ``code`` is the
    problem's. ``right`` is None where there was nothing to judge.
    """

    due: float
    sent: float
    seconds: float
    status: int
    version: str | None
    code: str
    right: bool | None
    retry_after: float | None

    @property
    def refused(self) -> bool:
        """Not answered, but as promised: 429 or 503 that say when to come back, or 504."""
        return self.status == 504 or (self.status in POLITE and self.retry_after is not None)

    @property
    def done(self) -> float:
        return self.due + self.seconds


@dataclass(frozen=True)
class Load:
    """What one process offers. With a ``rate`` (1/s) requests fall due whatever happens to those before; without one,
    ``callers`` ask, each its next question when the last is answered, which finds out what a server can do."""

    url: str
    rate: float | None
    callers: int
    timeout: float
    headers: dict[str, str]
    turn: int = 0  # which process this is, so that they do not all ask the same text at once


class Generator:
    """Sends a `Load` from one event loop; each `Outcome` goes to ``record``."""

    def __init__(self, load: Load, oracle: Oracle, record: Callable[[Outcome], None]) -> None:
        self.load = load
        self.oracle = oracle
        self.record = record
        bodies = [(text, orjson.dumps({"text": text, "return_probs": True})) for text in oracle.texts]
        self.questions = itertools.cycle(bodies[load.turn :] + bodies[: load.turn])

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Until ``stopped()``, and then until everything sent is answered or given up."""
        headers = {"content-type": "application/json", **self.load.headers}
        async with Client(self.load.url, headers) as client:
            ask = functools.partial(self._ask, client)
            if self.load.rate is None:
                await in_turn(ask, self.load.callers, stopped)
            else:
                await at_rate(ask, self.load.rate, stopped)

    async def _ask(self, client: Client, due: float) -> None:
        text, question = next(self.questions)
        sent = time.monotonic()
        try:
            answer = await client.post(question, self.load.timeout)
            seconds = time.monotonic() - due
        except (OSError, TimeoutError, httptools.HttpParserError) as exc:
            lost = time.monotonic() - due
            self.record(Outcome(due, sent, lost, 0, None, type(exc).__name__, None, None))
            return
        version = _text(answer.headers.get(b"x-model-version"))
        parsed = _object(answer.body)
        right = self.oracle.judge(text, version, parsed) if answer.status == 200 else None
        code = "ok" if answer.status == 200 else str(parsed.get("code", ""))
        retry_after = _number(_text(answer.headers.get(b"retry-after")))
        self.record(Outcome(due, sent, seconds, answer.status, version, code, right, retry_after))


class Traffic:
    """Requests from a thread of their own while the block lasts; everything sent is answered when it ends.

    ``processes`` > 0 splits the load over so many worker processes instead, for rates that a thread beside other work
    cannot keep (see `lag`). `callers` without a `rate` is the closed loop of `Load`.
    """

    def __init__(
        self,
        url: str,
        oracle: Oracle,
        rate: float | None = 50.0,
        timeout: float = 30.0,
        headers: dict[str, str] | None = None,
        *,
        processes: int = 0,
        callers: int = 1,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._oracle = oracle
        self._load = Load(f"{url}/v1/predict", rate, callers, timeout, headers or {})
        self._processes = processes
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        shares = max(self._processes, 1)
        loads = [
            replace(
                self._load,
                rate=self._load.rate and self._load.rate / shares,
                callers=math.ceil(self._load.callers / shares),
                turn=share,
            )
            for share in range(shares)
        ]
        run = self._in_a_worker if self._processes else self._in_this_process
        self._threads = [threading.Thread(target=run, args=(load,), daemon=True) for load in loads]
        self._under_way = threading.Barrier(shares + 1)
        for thread in self._threads:
            thread.start()
        self._under_way.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _in_this_process(self, load: Load) -> None:
        self._under_way.wait()
        uvloop.run(Generator(load, self._oracle, self.outcomes.append).run(self._stop.is_set))

    def _in_a_worker(self, load: Load) -> None:
        context = multiprocessing.get_context("spawn")  # this process has threads
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(theirs, load, self._oracle), daemon=True)
        worker.start()
        theirs.close()
        told = False
        with suppress(EOFError):
            ours.recv()  # empty: it is about to begin
            self._under_way.wait()
            while True:
                if self._stop.is_set() and not told:
                    ours.send_bytes(b"stop")
                    told = True
                if ours.poll(STOP_CHECK_SECONDS):
                    self.outcomes.extend(map(Outcome._make, ours.recv()))
        self._under_way.abort()  # in case it never began
        worker.join()

    def since(self, moment: float, before: float = math.inf) -> list[Outcome]:
        """What fell due from ``moment`` on."""
        return [outcome for outcome in list(self.outcomes) if moment <= outcome.due < before]

    def failures(self) -> list[Outcome]:
        """Neither a right answer nor a refusal as promised: wrong answers, lost connections, other errors."""
        return [outcome for outcome in list(self.outcomes) if not (outcome.right or outcome.refused)]

    def refusals(self) -> list[Outcome]:
        return [outcome for outcome in list(self.outcomes) if outcome.refused]

    def percentile(self, q: float, after: float = -math.inf, before: float = math.inf) -> float:
        """Seconds from due to answered, of the answers with status 200 to requests due in that time; NaN for none."""
        seconds = [outcome.seconds for outcome in self.since(after, before) if outcome.status == 200]
        return float(np.percentile(seconds, q)) if seconds else math.nan

    def goodput(self, after: float, before: float) -> float:
        """Right answers per second that arrived in that time."""
        return sum(after <= outcome.done < before for outcome in list(self.outcomes) if outcome.right) / (
            before - after
        )

    def lag(self, q: float = 99, after: float = -math.inf, before: float = math.inf) -> float:
        """Seconds that the generator itself was late in sending; NaN when it sent nothing."""
        late = [outcome.sent - outcome.due for outcome in self.since(after, before)]
        return float(np.percentile(late, q)) if late else math.nan

    def versions(self) -> Counter[str]:
        return Counter(outcome.version for outcome in list(self.outcomes) if outcome.right)

    def wait_for(self, count: int, after: float, seconds: float) -> float:
        """Seconds from ``after`` to the last of the first ``count`` right answers to requests that fell due later.

        Raises:
            TimeoutError: there were not so many within ``seconds`` of now.
        """
        deadline = time.monotonic() + seconds
        while True:
            right = sorted(outcome.done for outcome in self.since(after) if outcome.right)
            if len(right) >= count:
                return right[count - 1] - after
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(right)} right answers within {seconds:g} s, not {count}\n{self.table()}")
            time.sleep(0.02)

    def table(self) -> str:
        return "\n".join(_rows(self))

    def figures(self) -> dict:
        """How many requests were sent, answered right, refused and failed; milliseconds; right answers by version."""
        counts = {"sent": len(self.outcomes), "right": self.versions().total()}
        counts |= {"refused": len(self.refusals()), "failed": len(self.failures())}
        latency = {f"p{q}_ms": round(1e3 * self.percentile(q), 2) for q in (50, 99)} if counts["right"] else {}
        return {**counts, **latency, "versions": dict(self.versions())}


def _work(parent: Connection, load: Load, oracle: Oracle) -> None:
    """The life of a worker process: generate until the parent says stop (or is gone), report all along."""
    ready: list[Outcome] = []

    def hand_over() -> None:
        if ready:
            parent.send([tuple(outcome) for outcome in ready])
            ready.clear()

    async def report() -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            hand_over()

    async def work() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_reader(parent.fileno(), stop.set)  # a word from it, or its end
        reporting = asyncio.create_task(report())
        await Generator(load, oracle, ready.append).run(stop.is_set)
        reporting.cancel()
        asyncio.get_running_loop().remove_reader(parent.fileno())

    with suppress(EOFError, BrokenPipeError):
        parent.send([])
        uvloop.run(work())
        hand_over()
        parent.recv_bytes()  # unread, it would make the parent see a reset connection


def _object(body: bytes) -> dict:
    with suppress(orjson.JSONDecodeError):
        parsed = orjson.loads(body)
        if isinstance(parsed, dict):
            return parsed
    return {}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _number(text: str | None) -> float | None:
    with suppress(TypeError, ValueError):
        return float(text)
    return None


def _rows(traffic: Traffic) -> Iterator[str]:
    outcomes = list(traffic.outcomes)
    right = sum(outcome.right is True for outcome in outcomes)
    wrong = sum(outcome.right is False for outcome in outcomes)
    refused = Counter(f"{each.status} {each.code}" for each in outcomes if each.refused)
    failed = Counter(f"{each.status} {each.code}" for each in traffic.failures() if each.right is None)
    yield f"sent     {len(outcomes)}"
    yield f"right    {right}"
    yield f"refused  {refused.total()}{_listed(refused)}"
    yield f"failed   {failed.total() + wrong}{_listed(failed + Counter(wrong=wrong))}"
    p50, p99, most = (1e3 * traffic.percentile(q) for q in (50, 99, 100))
    yield f"latency  p50 {p50:.2f} ms   p99 {p99:.2f} ms   max {most:.2f} ms   (answers, from when they were due)"
    p99, most = (1e3 * traffic.lag(q) for q in (99, 100))
    yield f"lag      p99 {p99:.2f} ms   max {most:.2f} ms   (of this generator, contained in the latency)"
    yield f"versions{_listed(traffic.versions())}"


def _listed(counts: Counter[str]) -> str:
    present = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()) if count)
    return f"  ({present})" if present else ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.traffic", description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second (default 50)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default 30)")
    parser.add_argument("--processes", type=int, default=1, help="that generate them (default 1)")
    parser.add_argument("--version", metavar="N", help="every answer has to come from this version (default: from any)")
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON below the table")
    arguments = parser.parse_args(argv)
    settings = Settings()
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    url = f"http://{settings.host}:{settings.gateway_port}"
    try:
        oracle = Oracle.of(settings.model_repository)
    except OSError as exc:
        print(f"error: {exc.filename} cannot be read ({exc.strerror}); set NUNCHI_MODEL_REPOSITORY", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    traffic = Traffic(url, oracle, arguments.rate, headers=headers, processes=arguments.processes)
    with traffic, suppress(KeyboardInterrupt):
        time.sleep(arguments.seconds)
    if not any(outcome.status for outcome in traffic.outcomes):
        print(f"error: nothing answers at {url}; start the stack with make up", file=sys.stderr)
        return 2
    print(traffic.table())
    if arguments.json:
        print(json.dumps(traffic.figures()))
    answered = set(traffic.versions())
    if arguments.version and answered != {arguments.version}:
        named = ", ".join(sorted(answered)) or "none"
        print(f"error: version {arguments.version} was to answer alone, not {named}", file=sys.stderr)
        return 1
    return 1 if traffic.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
