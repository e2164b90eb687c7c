"""Load generators that nobody here wrote: wrk over HTTP, and perf_analyzer against Triton."""

import csv
import json
import os
import re
import subprocess
from pathlib import Path

from loadtest.doors import HttpDoor
from loadtest.served import Served
from loadtest.settings import ROOT

SCRIPT = ROOT / "loadtest" / "reviews.lua"
GRACE_SECONDS = 60.0  # beyond what a run should take; then it is ended
KEY_HEADER = "triton-grpc-protocol-admin-key"
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


class NoGenerator(Exception):
    """A generator cannot be had, or did not do its work; the message is its own last word."""


def install() -> Path:
    """The folder of the programs.

    Raises:
        NoGenerator: they cannot be had here.
    """
    done = subprocess.run([ROOT / "loadtest" / "tools.sh"], capture_output=True, text=True)
    if done.returncode:
        raise NoGenerator(done.stderr.strip().removeprefix("error: "))
    return Path(done.stdout.strip())


def wrk(tools: Path, door: HttpDoor, callers: int, seconds: float, folder: Path) -> dict:
    """A closed loop of wrk on one thread; percentiles in milliseconds.

    Raises:
        NoGenerator: wrk failed.
    """
    bodies = folder / "bodies.txt"
    bodies.write_bytes(b"\n".join(door.questions) + b"\n")
    headers = [word for name, value in door.headers.items() for word in ("-H", f"{name}: {value}")]
    command = [tools / "wrk", "-t1", f"-c{callers}", f"-d{max(round(seconds), 1)}s", "--timeout", "30s", "--latency"]
    output = _run([*command, "-s", SCRIPT, *headers, door.url], seconds, {"BODIES": str(bodies)})
    percentiles = dict(re.findall(r"^ +(\d+)% +(\d\S*) *$", output, re.MULTILINE))
    if re.search(r"^ +0 requests in", output, re.MULTILINE):
        raise NoGenerator(f"wrk had no answer of {door.name} within {seconds:g} s")
    errors = [int(count) for count in re.search(r"failed: (.*)", output)[1].split() if count.isdigit()]
    return {
        "generator": "wrk",
        "door": door.name,
        "callers": callers,
        "per_second": float(re.search(r"Requests/sec: +(\S+)", output)[1]),
        "milliseconds": {f"p{q}": _milliseconds(percentiles[q]) for q in ("50", "90", "99")},
        "failures": sum(errors),
    }


def perf_analyzer(
    tools: Path,
    address: str,
    admin_key: str,
    served: Served,
    texts: list[str],
    callers: int,
    requests: int,
    seconds: float,
    folder: Path,
) -> dict:
    """So many gRPC requests by perf_analyzer, which ought to take ``seconds``.

    By their count, not until it finds itself stable: on a machine whose speed wanders it never does, and by default it
    tries again ten times, each time longer than the last.

    Raises:
        NoGenerator: it failed, or took GRACE_SECONDS longer.
    """
    data = folder / "perf_analyzer.json"
    rows = [
        {
            name: {"content": values[0].tolist(), "shape": [values.shape[1]]}
            for name, values in served.encode(text).items()
        }
        for text in texts
    ]
    data.write_text(json.dumps({"data": rows}), encoding="utf-8")
    report = folder / "perf_analyzer.csv"
    report.unlink(missing_ok=True)
    command = [
        tools / "perf_analyzer",
        "-m",
        served.model,
        "-x",
        served.version,
        "-u",
        address,
        "-i",
        "grpc",
        "--async",
    ]
    command += ["-H", f"{KEY_HEADER}:{admin_key}"]  # it reads the model's configuration first
    command += ["--input-data", data, "--concurrency-range", str(callers), "--request-count", str(requests)]
    _run([*command, "--percentile", "99", "-f", report], seconds, {})
    with report.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return {
        "generator": "perf_analyzer",
        "door": "Triton, gRPC",
        "callers": callers,
        "per_second": float(row["Inferences/Second"]),
        "milliseconds": {f"p{q}": float(row[f"p{q} latency"]) / 1e3 for q in (50, 90, 99)},
        "failures": 0,  # it ends at the first
    }


def _run(command: list, seconds: float, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=seconds + GRACE_SECONDS,
        )
    except subprocess.TimeoutExpired as exc:
        said = (exc.stdout or b"").decode(errors="replace").strip().splitlines()
        raise NoGenerator(f"{Path(command[0]).name} was not done after {exc.timeout:g} s: {said[-1:]}") from None
    if done.returncode:
        raise NoGenerator(f"{Path(command[0]).name} failed: {(done.stderr + done.stdout).strip()[-500:]}")
    return done.stdout


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()
    return float(number) * UNITS[unit]
