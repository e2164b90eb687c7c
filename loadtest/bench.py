"""``python -m loadtest.bench`` (``make bench``): the whole stack against other servers, by the same texts, in turns.

    make bench                                                    the shipped model: gateway, batches, Triton
    make bench CHECKPOINT=folder DATA=reviews.tsv                 the same checkpoint in every server
    make bench CHECKPOINT=kcbert-shape ARGS="--vocabulary folder --cores 0,1 --rounds 3 --seconds 6 --levels 1,8,32"

Ours through the gateway and straight at Triton, FastAPI + transformers.pipeline, TorchServe, and infinity where `make
bench-peers` has installed it. All of them, and the generator, share --cores. They are started once and have their turns
one after the other, round by round, so that a noisy neighbour meets all; whoever waits is stopped (SIGSTOP), but for
ours, whose processes watch each other. Then ours alone: what the gateway adds to one request, p99 at half of the
capacity, and the same by wrk and perf_analyzer. Writes bench.json and bench.html into --output; prints a table.

Ends with 1 when more than --max-failures of the requests failed, or the p95 through the gateway is above --max-p95.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
from tritonclient.utils import InferenceServerException

from loadtest import doors, generators, measure, overhead, roofline, systems
from loadtest.capacity import find_capacity
from loadtest.claims import claims
from loadtest.doors import Door, HttpDoor
from loadtest.measure import Turn
from loadtest.report import table, write_html
from loadtest.settings import ROOT, Settings
from loadtest.subject import CannotPrepare, Subject, prepare
from loadtest.systems import System
from loadtest.texts import NoTexts

BATCH = 64  # texts of one request where batches are asked
BATCH_CALLERS = 2  # more texts at once than the gateway lets in would measure its refusals
LEAST_TURNS = 4  # of every caller of wrk, which says nothing of fewer answers than it has callers
FEWEST_ADDED, MOST_ADDED = 30, 500  # requests by which the gateway is compared with Triton
WARM_SECONDS = 2.0
INTERRUPTED = "interrupted"


class Bench:
    """The systems that run and what was seen of them so far."""

    def __init__(self, options: argparse.Namespace, subject: Subject, folder: Path) -> None:
        self.options = options
        self.subject = subject
        self.folder = folder
        self.stack = systems.new_stack(folder, subject.repository)
        self.systems = [*self._ours(), *self._peers()]
        self.turns: dict[tuple[str, int], list[Turn]] = defaultdict(list)
        self.batch_sizes: dict[int, Counter[int]] = defaultdict(Counter)
        self.giga_operations: list[float] = []
        self.resting: list[float] = []
        self.overhead: dict | None = None
        self.half: dict | None = None
        self.generators: list[dict] = []
        self.capacity: dict | None = None
        self.cut: str | None = None  # why it ended before its end
        self._began = self._seconds()

    def _ours(self) -> list[System]:
        ours = systems.ours(self.stack, self.subject.served, self.subject.texts)
        if self.subject.checkpoint is None:
            url = f"http://127.0.0.1:{self.stack.gateway_port}"
            ours.doors.append(doors.gateway_batch(url, self.subject.texts, BATCH))
        return [ours]

    def _peers(self) -> list[System]:
        subject, threads = self.subject, len(self.options.cores)
        if subject.checkpoint is None:
            return []
        made: dict[str, Callable[[], System]] = {
            "fastapi": lambda: systems.fastapi(self.folder, subject.checkpoint, threads, subject.texts),
            "torchserve": lambda: systems.torchserve(self.folder, subject.checkpoint, threads, subject.texts),
        }
        if subject.infinity:
            made["infinity"] = lambda: systems.infinity(self.folder, subject.infinity, threads, subject.texts)
        return [make() for name, make in made.items() if name in self.options.peers]

    @property
    def ours(self) -> System:
        return self.systems[0]

    @property
    def most(self) -> int:
        return max(self.options.levels)

    def measure(self) -> None:
        """Everything, one after the other.

        Raises:
            NoGenerator: wrk or perf_analyzer did not do its work.
        """
        self._began = self._seconds()
        self._rounds()
        self.overhead = self._added()
        self.half = self._at_half()
        if not self.options.no_generators:
            self._by_others()
        if self.options.p99:
            _say(f"the highest rate with p99 below {self.options.p99:g} ms")
            self.capacity = find_capacity(self.ours.doors[0], self.options.p99, self.options.seconds)

    def _rounds(self) -> None:
        product = roofline.product(len(self.options.cores))
        for number in range(self.options.rounds):
            self.giga_operations.append(roofline.giga_operations(product))
            place = number % len(self.systems)  # nobody always comes after the same neighbour
            for system in self.systems[place:] + self.systems[:place]:
                with self._alone(system):
                    for door in system.doors:
                        for callers in self._levels(door):
                            self._turn(number, system, door, callers)

    def _turn(self, number: int, system: System, door: Door, callers: int) -> None:
        _say(f"round {number + 1}: {door.name}, {callers} callers")
        before = self._executed()
        rested = self.ours.cpu_seconds()
        turn = measure.run(door, self.options.seconds, callers=callers)
        self.turns[door.name, callers].append(turn)
        if system is not self.ours:
            self.resting.append((self.ours.cpu_seconds() - rested) / (turn.end - turn.begin + 1))
        elif isinstance(door, HttpDoor) and door.texts == 1:
            self.batch_sizes[callers] += self._executed() - before

    def _levels(self, door: Door) -> Sequence[int]:
        return self.options.levels if door.texts == 1 else [BATCH_CALLERS]

    @contextmanager
    def _alone(self, system: System) -> Iterator[None]:
        system.resume()
        yield
        system.pause()

    def _executed(self) -> Counter[int]:
        """Batches that Triton has executed, by their number of texts, from its statistics API."""
        served = self.subject.served
        url = f"http://127.0.0.1:{self.stack.http_port}/v2/models/{served.model}/versions/{served.version}/stats"
        with urllib.request.urlopen(url, timeout=30) as answer:
            (stats,) = json.load(answer)["model_stats"]
        return Counter({int(each["batch_size"]): int(each["compute_infer"]["count"]) for each in stats["batch_stats"]})

    def _seconds(self) -> tuple[float, float, float]:
        """By the clock, that the cores were busy, and that servers and generator took of it."""
        each = psutil.cpu_times(percpu=True)
        busy = sum(sum(each[core]) - each[core].idle - each[core].iowait for core in self.options.cores)
        own = sum(system.cpu_seconds() for system in self.systems) + sum(psutil.Process().cpu_times()[:2])
        return time.monotonic(), busy, own

    def strangers(self) -> float:
        """Share of the cores that everybody else took while it was measured; to be asked before the servers stop."""
        clock, busy, own = (now - then for now, then in zip(self._seconds(), self._began, strict=True))
        return max(busy - own, 0.0) / clock / len(self.options.cores)

    def _added(self) -> dict:
        """What the gateway adds to one request at a time: both ways in turns, request by request."""
        _say("gateway and Triton in turns, one request at a time")
        stack = self.stack
        settings = Settings(
            host="127.0.0.1",
            gateway_port=stack.gateway_port,
            triton_grpc_port=stack.grpc_port,
            model_repository=stack.repository,
            api_key=None,
        )
        turn = measure.run(self.ours.doors[0], 1.0, callers=1, settle=0)  # how many fit into the time of some turns
        count = min(max(int(self.options.seconds * turn.per_second), FEWEST_ADDED), MOST_ADDED)
        texts = self.subject.texts[:count]
        times = overhead.measure(settings, texts)
        medians = {way: statistics.median(values) for way, values in times.items()}
        return {"requests": len(texts), "p50": medians, "added_ms": medians["gateway"] - medians["Triton"]}

    def _at_half(self) -> dict:
        """The gateway at half of what its callers found it could do."""
        door = self.ours.doors[0]
        rate = max(statistics.median(turn.per_second for turn in self.turns[door.name, self.most]) / 2, 1.0)
        _say(f"gateway at half of its capacity, {rate:.0f} requests per second")
        turn = measure.run(door, 2 * self.options.seconds, rate=rate)
        return {"system": self.ours.name, **measure.figures([turn])}

    def _by_others(self) -> None:
        """wrk at every HTTP door, perf_analyzer at Triton.

        Raises:
            NoGenerator: one of them did not do its work.
        """
        tools = generators.install()
        found, options = self.generators, self.options
        for system in self.systems:
            door = system.doors[0]
            with self._alone(system):
                _say(f"wrk: {door.name}")
                rate = statistics.median(turn.per_second for turn in self.turns[door.name, self.most])
                seconds = max(options.seconds, LEAST_TURNS * self.most / max(rate, 1.0))
                found.append(generators.wrk(tools, door, self.most, seconds, self.folder))
        door = self.ours.doors[1]
        for callers in sorted({1, self.most} & set(options.levels)):
            _say(f"perf_analyzer: {door.name}, {callers} callers")
            rate = statistics.median(turn.per_second for turn in self.turns[door.name, callers])
            found.append(
                generators.perf_analyzer(
                    tools,
                    door.address,
                    self.stack.admin_key,
                    self.subject.served,
                    self.subject.texts[:500],
                    callers,
                    max(int(rate * options.seconds), 2 * callers),
                    options.seconds,
                    self.folder,
                )
            )

    def rows(self) -> list[dict]:
        owner = {door.name: system.name for system in self.systems for door in system.doors}
        return [{"system": owner[name], **measure.figures(turns)} for (name, _), turns in self.turns.items()]

    def document(self) -> dict:
        return {
            "systems": [{"name": system.name, "about": system.about} for system in self.systems],
            "resting": statistics.mean(self.resting) if self.resting else None,
            "rows": self.rows(),
            "batch_sizes": {callers: dict(sorted((+sizes).items())) for callers, sizes in self.batch_sizes.items()},
            "roofline": self.subject.roofline(statistics.median(self.giga_operations)),
            "overhead": self.overhead,
            "half": self.half,
            "generators": self.generators,
            "capacity": self.capacity,
            "cut": self.cut,
        }


def run(options: argparse.Namespace) -> dict:
    """Start, measure, stop; the content of bench.json. What was seen until it was interrupted, or a generator failed,
    is kept, and ``cut`` says why there is no more.

    Raises:
        CannotPrepare, NotStarted, NoTexts: with one sentence.
        KeyboardInterrupt: before anything was seen.
    """
    started = datetime.now(UTC)
    load = os.getloadavg()
    subject = prepare(options.checkpoint, options.data, options.vocabulary, options.output)
    bench = Bench(options, subject, options.output)
    with ExitStack() as running:
        for system in bench.systems:
            _say(f"starting {system.name}: {system.about}")
            running.callback(system.stop)
            system.start()
        for system in bench.systems:
            system.wait_ready()
            for door in system.doors:
                measure.run(door, WARM_SECONDS, callers=bench.most, settle=0)
            system.pause()
        try:
            bench.measure()
        except KeyboardInterrupt:
            if not bench.rows():
                raise
            bench.cut = INTERRUPTED
        except generators.NoGenerator as exc:
            bench.cut = str(exc)
        strangers = bench.strangers()
    document = bench.document() | {
        "date": started.isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", "loadtest.bench", *sys.argv[1:]]),
        "machine": _machine(options.cores) | {"load_before": load, "taken_by_others": strangers},
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "levels": options.levels},
        "model": subject.facts(),
    }
    return document | {"claims": claims(document)}


def complaints(document: dict, max_failures: float, max_p95: float | None) -> Iterator[str]:
    """What of the limits does not hold."""
    rows = document["rows"]
    failed = sum(sum(row["failures"].values()) for row in rows)
    share = failed / max(sum(row["requests"] for row in rows), 1)
    if share > max_failures:
        yield f"{share:.2%} of the requests failed, {max_failures:.2%} may"
    row = max((row for row in rows if row["door"] == "gateway"), key=lambda row: row["callers"], default=None)
    p95 = row and row["milliseconds"]["p95"]
    if row and max_p95 is not None and (p95 is None or p95 > max_p95):
        yield f"p95 through the gateway with {row['callers']} callers is {p95:.1f} ms, {max_p95:g} ms was wanted"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _commit() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit}{' and changes' if git('status', '--porcelain') else ''}" if commit else None


def _machine(cores: list[int]) -> dict:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = dict((part.strip() for part in line.split(":", 1)) for line in lines if ":" in line)
    vnni = sorted({"avx512_vnni", "avx_vnni"} & set(facts.get("flags", "").split()))
    return {"processor": facts.get("model name", platform.machine()), "vnni": vnni, "cores": cores}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", help="folder of a checkpoint, or kcbert-shape (default: the shipped model, no peers)"
    )
    parser.add_argument("--data", type=Path, help="file of texts (default: the bundled reviews)")
    parser.add_argument("--vocabulary", type=Path, help="folder with KcBERT's vocab.txt, for kcbert-shape")
    parser.add_argument("--peers", default="fastapi,torchserve,infinity", help="which of them (default: %(default)s)")
    parser.add_argument(
        "--cores", type=_numbers, default=sorted(os.sched_getaffinity(0))[:2], help="default: the first two"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of everyone (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="of one turn, after one to settle (default: %(default)s)"
    )
    parser.add_argument("--levels", type=_numbers, default=[1, 8, 32], help="callers (default: 1,8,32)")
    parser.add_argument(
        "--p99", type=float, help="find the highest arrival rate with p99 below so many milliseconds too"
    )
    parser.add_argument("--no-generators", action="store_true", help="without wrk and perf_analyzer")
    parser.add_argument("--max-failures", type=float, default=0.01, help="share of requests (default: %(default)s)")
    parser.add_argument("--max-p95", type=float, help="milliseconds through the gateway with the most callers")
    parser.add_argument("--output", type=Path, help="folder of the report (default: var/bench)")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    options.output = (options.output or Settings().var / "bench").resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it ends the servers with it
    try:
        os.sched_setaffinity(0, options.cores)
        document = run(options)
    except (
        CannotPrepare,
        NoTexts,
        systems.NotStarted,
        InferenceServerException,
        OSError,
    ) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"error: {INTERRUPTED}", file=sys.stderr)
        return 130
    (options.output / "bench.json").write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    write_html(document, options.output / "bench.html")
    print(table(document))
    print(f"\n{options.output / 'bench.html'}")
    found = list(complaints(document, options.max_failures, options.max_p95))
    for complaint in found:
        print(f"failed: {complaint}")
    if document["cut"]:
        print(f"error: {document['cut']}; this is what was seen until then", file=sys.stderr)
        return 130 if document["cut"] == INTERRUPTED else 2
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
