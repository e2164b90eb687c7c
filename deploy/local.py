"""``python -m deploy.local up | down``: the whole stack on this machine, without Docker (``make up``, ``make down``).

``up`` starts every line of the Procfile in the foreground, waits until a prediction has truly been answered, prints the
addresses, and keeps the parts running: one that dies is started again. Ctrl-C, ``down`` and SIGTERM stop everything;
nothing of it outlives ``up``, even when ``up`` itself is killed.
"""

import argparse
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.settings import ROOT, Settings, StartError, read_settings

SENTENCE = "다시 보고 싶은 영화"
STOP_SECONDS = 20.0  # for one part to stop when asked
DOWN_SECONDS = 50.0  # for all of it
RESTART_SECONDS = 1.0
USER_MUST_MEND = 2  # exit status with which a part says so; its last log line says what

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


class Stop(Exception):
    """SIGTERM or SIGINT has arrived."""


@dataclass
class Part:
    """One line of the Procfile and the process that runs it; its output goes to ``log``."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen = field(init=False)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches `up` alone, which then stops the parts in order
                preexec_fn=_stop_with_parent,
            )

    def last_error(self) -> str:
        """The last ``error: …`` sentence of its log, or where to look."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.split("error: ", 1)[1] for line in lines if "error: " in line]
        return errors[-1] if errors else f"{self.name} stopped; its last words are in {self.log}"


def read_procfile(log_folder: Path) -> list[Part]:
    """The parts in the order in which they start; ``python`` means the interpreter that runs this."""
    parts = []
    for line in (ROOT / "Procfile").read_text(encoding="utf-8").splitlines():
        name, _, command = line.partition(":")
        words = shlex.split(command)
        if words[0] == "python":
            words[0] = sys.executable
        parts.append(Part(name, words, log_folder / f"{name}.log"))
    return parts


def up(settings: Settings) -> None:
    """Run the stack until Ctrl-C, SIGTERM or ``down``.

    Raises:
        StartError: it runs already, or a part says that the user must mend something.
    """
    if running := _running(settings):
        raise StartError(f"the stack is running already as process {running.pid}; stop it with make down")
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # whatever a dying part leaves behind becomes our child, to be stopped too
    for folder in (settings.var / "log", settings.var / "run"):
        folder.mkdir(parents=True, exist_ok=True)
    _write_state(settings)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _raise_stop)
    parts = read_procfile(settings.var / "log")
    began = time.monotonic()
    try:
        for part in parts:
            part.log.unlink(missing_ok=True)
            part.start()
            print(f"starting {part.name:<8} log: {_shown(part.log)}", flush=True)
        answer = _first_prediction(settings, parts)
        _welcome(settings, answer, time.monotonic() - began)
        while True:
            time.sleep(RESTART_SECONDS)
            _reap_orphans(parts)
            for part in parts:
                if (status := part.process.poll()) is not None:
                    if status == USER_MUST_MEND:
                        raise StartError(part.last_error())
                    print(f"{part.name} ended with status {status}; starting it again", flush=True)
                    part.start()
    except Stop:
        print("\nstopping", flush=True)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _stop(parts)
        _state_file(settings).unlink(missing_ok=True)


def down(settings: Settings) -> None:
    """Stop the stack that ``up`` runs and wait until it is gone.

    Raises:
        StartError: it is still there after DOWN_SECONDS.
    """
    process = _running(settings)
    if process is None:
        print("nothing is running")
        return
    process.terminate()
    deadline = time.monotonic() + DOWN_SECONDS
    while _running(settings):
        if time.monotonic() > deadline:
            raise StartError(f"process {process.pid} did not stop within {DOWN_SECONDS:.0f} s; look at var/log")
        time.sleep(0.1)
    print("stopped")


def _first_prediction(settings: Settings, parts: list[Part]) -> dict:
    body = json.dumps({"text": SENTENCE}).encode()
    headers = {"content-type": "application/json"}
    if settings.api_key:
        headers["authorization"] = f"Bearer {settings.api_key}"
    url = f"http://{settings.client_host}:{settings.gateway_port}/v1/predict"
    request = urllib.request.Request(url, body, headers)
    deadline = time.monotonic() + settings.up_timeout_seconds
    refusal = "nothing listens yet"
    while time.monotonic() < deadline:
        for part in parts:
            if part.process.poll() is not None:
                raise StartError(part.last_error())
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as exc:
            refusal = f"{exc.code} {exc.read(500).decode(errors='replace')}"
        except OSError as exc:
            refusal = str(exc)
        time.sleep(0.2)
    raise StartError(
        f"no prediction was answered within {settings.up_timeout_seconds:.0f} s (the last try: {refusal}); "
        f"look at {_shown(settings.var / 'log')}, or allow more with NUNCHI_UP_TIMEOUT_SECONDS"
    )


def _welcome(settings: Settings, answer: dict, seconds: float) -> None:
    gateway = f"http://{settings.client_host}:{settings.gateway_port}"
    key = '-H "authorization: Bearer $NUNCHI_API_KEY" ' if settings.api_key else ""
    payload = json.dumps({"text": SENTENCE}, ensure_ascii=False)
    print(
        f"ready after {seconds:.1f} s: {SENTENCE} → {answer['label']} ({answer['confidence']:.2f})\n\n"
        f"  gateway  {gateway}       API: {gateway}/docs\n"
        f"  Triton   http://127.0.0.1:{settings.triton_http_port}       gRPC: 127.0.0.1:{settings.triton_grpc_port}\n\n"
        f"  curl -s {gateway}/v1/predict {key}-H 'content-type: application/json' -d '{payload}'\n\n"
        "Ctrl-C (or make down, elsewhere) stops all of it.",
        flush=True,
    )


def _reap_orphans(parts: list[Part]) -> None:
    """Bury what a dead part left to us, the subreaper; the parts themselves are for `Part.process` to wait on."""
    ours = {part.process.pid for part in parts}
    for child in psutil.Process().children():
        if child.pid not in ours and child.status() == psutil.STATUS_ZOMBIE:
            child.wait()


def _stop(parts: list[Part]) -> None:
    """Ask the parts in reverse order, the gateway before Triton; then make sure of every descendant."""
    for part in reversed(parts):
        if hasattr(part, "process") and part.process.poll() is None:
            part.process.terminate()
            try:
                part.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"{part.name} did not stop within {STOP_SECONDS:.0f} s; killing it", flush=True)
                part.process.kill()
    left = psutil.Process().children(recursive=True)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)


def _state_file(settings: Settings) -> Path:
    return settings.var / "run" / "up.json"


def _write_state(settings: Settings) -> None:
    me = psutil.Process()
    _state_file(settings).write_text(json.dumps({"pid": me.pid, "started": me.create_time()}))


def _running(settings: Settings) -> psutil.Process | None:
    """The ``up`` of this folder; a recycled process id is told apart by its start time."""
    try:
        state = json.loads(_state_file(settings).read_text())
        process = psutil.Process(state["pid"])
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    ended = process.create_time() != state["started"] or process.status() == psutil.STATUS_ZOMBIE
    return None if ended else process


def _stop_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _raise_stop(number: int, frame: object) -> None:
    raise Stop


def _shown(path: Path) -> str:
    return os.path.relpath(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="The whole stack on this machine.")
    parser.add_argument("verb", choices=["up", "down"])
    arguments = parser.parse_args(argv)
    try:
        {"up": up, "down": down}[arguments.verb](read_settings())
    except StartError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
