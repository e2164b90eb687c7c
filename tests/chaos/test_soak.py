"""Twenty minutes at 70 % of what the stack can do, with a switch every minute: nothing fails, nothing grows.

What it can do is the highest rate found at which requests came for a while, however long the answers took, and none was
refused.  Callers who wait for their answers get more out of it: they leave no moment idle, and come in larger batches.
`make soak` runs this; the short form only exercises its code.  `var/chaos/soak.svg` shows the memory over time.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from loadtest.traffic import Oracle, Traffic
from tests.chaos.conftest import FOLDER
from tests.chaos.processes import Held, Sample, Watch, fate_of
from tests.chaos.test_overload import GENERATORS, capacity_of
from tests.chaos.versions import release_next
from tests.stack_process import ROOT, Stack

SCENARIO = "soak"
LOAD = 0.7
STEP = 0.9  # from one rate that was too much to the next one tried
WARM_UP = 0.55  # of the time: allocators and caches have found their size, the gateway's four bundles too
EDGE = 0.25  # of the time after it: the median at its beginning is held against the median at its end
NEAR_SECONDS = 5.0  # after the beginning of a switch
MOST_GROWTH = 0.05  # of memory, as the issue wants it
SMALL = 4 * 2**20  # bytes that a process may grow by whatever its size


def test_twenty_minutes_of_load_and_switches_lose_no_request_and_grow_nothing(shipped_stack, full, figures):
    seconds, every, find = (1200.0, 60.0, 40.0) if full else (15.0, 5.0, 2.0)
    stack, oracle = shipped_stack, Oracle.of(shipped_stack.repository)
    closed = capacity_of(stack, oracle, find / 2)
    capacity = sustained(stack, oracle, closed, find)
    with (
        Watch(stack, period=10.0 if full else 1.0) as watch,
        Traffic(stack.url, oracle, LOAD * capacity, processes=GENERATORS) as traffic,
    ):
        switches = switch_every(stack, every, seconds)
    record = lambda *row: figures.record(SCENARIO, *row)  # noqa: E731
    note = f"{LOAD:.0%} of {capacity:.0f}, which none was refused at; callers who wait get {closed:.0f} per second"
    record("load", LOAD * capacity, "req/s", f"for {seconds / 60:.1f} min; {note}")
    record("switches", len(switches), "", f"versions {dict(traffic.versions())}")
    bad = traffic.failures() + traffic.refusals()
    near = sum(any(0 <= each.due - moment < NEAR_SECONDS for moment in switches) for each in bad)
    note = f"of {len(traffic.outcomes)}; {near} within {NEAR_SECONDS:.0f} s of a switch"
    record("failed, wrong or refused", len(bad), "", note)
    record("p99", 1e3 * traffic.percentile(99), "ms", f"generator's lag p99 {1e3 * traffic.lag():.1f} ms")
    grown = _record_growth(watch, record)
    draw(watch, FOLDER / "soak.svg")
    assert not traffic.failures(), fate_of(traffic.failures())
    assert len(traffic.versions()) >= 2
    if full:  # on a machine that runs other tests too, 70 % of an earlier moment may be too much
        assert not traffic.refusals(), fate_of(traffic.refusals())
        assert not grown, f"these grew: {', '.join(grown)}"


def sustained(stack: Stack, oracle: Oracle, rate: float, seconds: float) -> float:
    """The first rate, from this one downwards, at which for so long no request is refused."""
    while True:
        with Traffic(stack.url, oracle, rate, processes=GENERATORS) as traffic:
            time.sleep(seconds)
        assert not traffic.failures(), fate_of(traffic.failures())
        if not traffic.refusals():
            return rate
        rate *= STEP


def switch_every(stack: Stack, every: float, seconds: float) -> list[float]:
    """A rollback to the version before, forth again, …, and a release of a new version each fifth time.

    Returns when each began, by time.monotonic().
    """
    began = time.monotonic()
    done = []
    while (at := began + (len(done) + 1) * every) < began + seconds - 1:
        time.sleep(max(at - time.monotonic(), 0))
        done.append(time.monotonic())
        if len(done) % 5 == 0:
            release_next(stack, "shipped")
            continue
        command = [sys.executable, "-m", "export.rollback"]
        finished = subprocess.run(command, cwd=ROOT, env=stack.environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
    time.sleep(max(began + seconds - time.monotonic(), 0))
    return done


def growth(series: list[tuple[float, float]]) -> tuple[float, float]:
    """The level after the warm-up and by how much it is higher in the end; medians, in the unit of the series."""
    end = series[-1][0]
    warm = [(moment, value) for moment, value in series if moment >= WARM_UP * end]
    edge = EDGE * (end - warm[0][0])
    first = statistics.median(value for moment, value in warm if moment <= warm[0][0] + edge)
    last = statistics.median(value for moment, value in warm if moment >= end - edge)
    return first, last - first


def _record_growth(watch: Watch, record: Callable[..., None]) -> list[str]:
    """The roles whose memory or descriptors grew by more than the issue allows, and /dev/shm if it did."""
    grown = []
    for role in watch.roles():
        series = watch.series(role)
        level, more = growth([(moment, held.memory) for moment, held in series])
        files, more_files = growth([(moment, held.descriptors) for moment, held in series])
        processes = series[-1][1].processes
        note = f"from {level / 2**20:.0f} MiB, anonymous, {processes} processes; files {files:.0f} {more_files:+.0f}"
        record(f"memory of {role}", 100 * more / level, "%", note)
        if more > max(MOST_GROWTH * level, SMALL):
            grown.append(f"memory of {role}")
        if more_files > max(0.1 * files, 5):
            grown.append(f"descriptors of {role}")
    entries, more_entries = growth([(sample.seconds, sample.shm_entries) for sample in watch.samples])
    size, more_bytes = growth([(sample.seconds, sample.shm_bytes) for sample in watch.samples])
    record("/dev/shm entries", more_entries, "", f"from {entries:.0f}")
    record("/dev/shm", more_bytes / 2**20, "MiB", f"from {size / 2**20:.1f} MiB")
    return grown + (["/dev/shm"] if more_entries > 0 else [])


def draw(watch: Watch, file: Path) -> None:
    """Memory of each role over time."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for role in watch.roles():
        series = watch.series(role)
        axes.plot([moment / 60 for moment, _ in series], [held.memory / 2**20 for _, held in series], label=role)
    axes.set(xlabel="minutes", ylabel="MiB (anonymous memory)", ylim=0, title="Memory during the soak")
    axes.legend(fontsize="small", ncols=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


@pytest.mark.parametrize(
    ("values", "level", "more"),
    [
        ([*[300] * 5, *[100] * 7], 100, 0),  # the warm-up does not count
        ([*[100] * 9, 110, 120, 130], 100, 25),
        ([*[100] * 9, 900, 100, 100], 100, 0),  # nor does a peak
    ],
)
def test_growth_is_what_is_left_in_the_end(values, level, more):
    assert growth([(float(moment), value) for moment, value in enumerate(values)]) == (level, more)


def test_the_picture_shows_every_role(tmp_path):
    watch = Watch(None, 1.0)
    watch.samples = [Sample(float(second), {"one": Held(2**20, 1, 1), "two": Held(2**21, 1, 1)}, 0, 0)
                     for second in range(3)]  # fmt: skip
    draw(watch, tmp_path / "soak.svg")
    picture = (tmp_path / "soak.svg").read_text(encoding="utf-8")
    assert "<!-- one -->" in picture and "<!-- two -->" in picture
