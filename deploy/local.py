"""``python -m deploy.local up | restart | down``: the whole stack on this machine, without Docker (``make up`` …).

``up`` starts every line of the Procfile in the foreground, waits until a prediction has truly been answered and the
page opens, prints the addresses, and keeps the parts running: one that dies is started again. Ctrl-C, ``down`` and
SIGTERM stop everything; nothing of it outlives ``up``, even when ``up`` itself is killed.

``restart`` (SIGUSR1 to ``up``) replaces the gateway and loses no request: a second one starts beside the first, and
when it can answer, the first accepts no more, finishes what it has, and ends. Both share the one listening socket that
``up`` holds, so callers are not refused either while a gateway that died is started again.
"""

import argparse
import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from deploy.settings import ROOT, Settings, StartError, read_settings

SENTENCE = "다시 보고 싶은 영화"
GATEWAY = "gateway"  # its line of the Procfile
LOOK_SECONDS = 0.2  # between two looks at the parts
RESTART_SECONDS = 1.0  # between two starts of a part that dies at once
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
    port: socket.socket | None = None  # to serve on, for the gateway
    process: subprocess.Popen = field(init=False)
    began: float = field(init=False)
    spoken: int = field(init=False)  # length of the log when it began, in bytes
    complaint: str = field(init=False, default="")

    def start(self, beside: int | None = None) -> None:
        """``beside``: a pipe for a gateway that starts while another one serves, to say that it can take over."""
        options = {} if self.port is None else {"--socket": self.port.fileno()}
        options |= {} if beside is None else {"--beside": beside}
        with self.log.open("ab") as log:
            self.began, self.spoken = time.monotonic(), log.tell()
            self.process = subprocess.Popen(
                [*self.command, *(str(word) for option in options.items() for word in option)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches `up` alone, which then stops the parts in order
                preexec_fn=_stop_with_parent,
                pass_fds=list(options.values()),
            )

    def last_error(self) -> str:
        """The last ``error: …`` sentence of its log since it began, or where to look."""
        with self.log.open("rb") as log:
            log.seek(self.spoken)
            lines = log.read().decode("utf-8", "replace").splitlines()
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


class Stack:
    """The running parts, the gateway's port, and a rolling restart where one is under way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.parts = read_procfile(settings.var / "log")
        self.passing: list[Part] = []  # a gateway that is to take over, or to go
        self.port = _open_port(settings)
        self.restarts = 0
        self.restart_wanted = False

    def start(self) -> None:
        for part in self.parts:
            part.port = self.port if part.name == GATEWAY else None
            part.log.unlink(missing_ok=True)
            part.start()
            print(f"starting {part.name:<8} log: {_shown(part.log)}", flush=True)

    def want_restart(self, number: int, frame: object) -> None:
        self.restart_wanted = True

    def keep_running(self) -> None:
        """Start again what dies, and restart the gateway when that is wanted, for ever."""
        rolling: Iterator[None] = iter(())
        while True:
            time.sleep(LOOK_SECONDS)
            _reap_orphans([*self.parts, *self.passing])
            for part in self.parts:
                if part.process.poll() is not None and time.monotonic() > part.began + RESTART_SECONDS:
                    _start_again(part)
            if next(rolling, self) is self and self.restart_wanted:
                self.restart_wanted = False
                rolling = self.roll()

    def roll(self) -> Iterator[None]:
        """One rolling restart of the gateway; yields whenever there is nothing to do but wait."""
        place = next(index for index, part in enumerate(self.parts) if part.name == GATEWAY)
        new = replace(self.parts[place])
        self.passing.append(new)
        ready, beside = os.pipe()
        os.set_blocking(ready, False)
        new.start(beside)
        os.close(beside)
        refusal = None
        until = new.began + self.settings.up_timeout_seconds
        while (word := _read(ready)) is None and time.monotonic() < until:
            yield
        os.close(ready)
        if word:
            leaving, self.parts[place] = self.parts[place], new
            self.passing[:] = [leaving]
        else:
            limit = f"the new gateway was not ready within {self.settings.up_timeout_seconds:g} s; look at {new.log}"
            leaving, refusal = new, limit if word is None else ""
        yield from self._end(leaving)
        if refusal is not None:
            refusal = f"{refusal or new.last_error()}; the gateway that was running goes on"
        self.passing.clear()
        self.restarts += 1
        print(f"gateway not restarted: {refusal}" if refusal else "gateway restarted", flush=True)
        _write_state(self.settings, restarts=self.restarts, refusal=refusal)

    def _end(self, part: Part) -> Iterator[None]:
        if part.process.poll() is None:
            part.process.terminate()
        until = time.monotonic() + self.settings.stop_seconds
        while part.process.poll() is None:
            if time.monotonic() > until:
                part.process.kill()
            yield

    def stop(self) -> None:
        """Ask the parts in reverse order, the gateway before Triton; then make sure of every descendant."""
        self.port.close()
        for part in [*self.passing, *reversed(self.parts)]:
            if hasattr(part, "process") and part.process.poll() is None:
                part.process.terminate()
                try:
                    part.process.wait(self.settings.stop_seconds)
                except subprocess.TimeoutExpired:
                    print(f"{part.name} did not stop within {self.settings.stop_seconds:g} s; killing it", flush=True)
                    part.process.kill()
        left = psutil.Process().children(recursive=True)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)


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
    stack = Stack(settings)
    signal.signal(signal.SIGUSR1, stack.want_restart)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _raise_stop)
    began = time.monotonic()
    try:
        _write_state(settings, restarts=0, refusal=None)
        stack.start()
        answer = _first_prediction(settings, stack.parts)
        _wait_for(settings.page_url, "the page did not open", settings, stack.parts)
        _welcome(settings, answer, time.monotonic() - began)
        stack.keep_running()
    except Stop:
        print("\nstopping", flush=True)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        stack.stop()
        _state_file(settings).unlink(missing_ok=True)


def restart(settings: Settings) -> None:
    """Have ``up`` replace the gateway, and wait until it has.

    Raises:
        StartError: nothing runs, or the new gateway did not come up, and the old one goes on.
    """
    process = _running(settings)
    if process is None:
        raise StartError("nothing is running; start it with make up")
    before = _read_state(settings).get("restarts")
    began = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    while (state := _read_state(settings)).get("restarts") == before and _running(settings):
        time.sleep(0.1)
    if not _running(settings):
        raise StartError(f"process {process.pid} ended meanwhile; look at var/log")
    if state["refusal"]:
        raise StartError(state["refusal"])
    print(f"the gateway was restarted in {time.monotonic() - began:.1f} s")


def down(settings: Settings) -> None:
    """Stop the stack that ``up`` runs and wait until it is gone.

    Raises:
        StartError: it is still there although both parts have had their time.
    """
    process = _running(settings)
    if process is None:
        print("nothing is running")
        return
    process.terminate()
    seconds = 10 + 2 * settings.stop_seconds
    deadline = time.monotonic() + seconds
    while _running(settings):
        if time.monotonic() > deadline:
            raise StartError(f"process {process.pid} did not stop within {seconds:g} s; look at var/log")
        time.sleep(0.1)
    print("stopped")


def _first_prediction(settings: Settings, parts: list[Part]) -> dict:
    body = json.dumps({"text": SENTENCE}).encode()
    headers = {"content-type": "application/json"}
    if settings.api_key:
        headers["authorization"] = f"Bearer {settings.api_key}"
    request = urllib.request.Request(f"{settings.gateway_url}/v1/predict", body, headers)
    return json.loads(_wait_for(request, "no prediction was answered", settings, parts))


def _wait_for(request: urllib.request.Request | str, failure: str, settings: Settings, parts: list[Part]) -> bytes:
    """The body of the first answer with status 200.

    Raises:
        StartError: a part has ended, or ``failure`` is all that can be said after the time that there is.
    """
    deadline = time.monotonic() + settings.up_timeout_seconds
    refusal = "nothing listens yet"
    while time.monotonic() < deadline:
        for part in parts:
            if part.process.poll() is not None:
                raise StartError(part.last_error())
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.read()
        except urllib.error.HTTPError as exc:
            refusal = f"{exc.code} {exc.read(500).decode(errors='replace')}"
        except OSError as exc:
            refusal = str(exc)
        time.sleep(0.2)
    raise StartError(
        f"{failure} within {settings.up_timeout_seconds:.0f} s (the last try: {refusal}); "
        f"look at {_shown(settings.var / 'log')}, or allow more with NUNCHI_UP_TIMEOUT_SECONDS"
    )


def _welcome(settings: Settings, answer: dict, seconds: float) -> None:
    gateway = settings.gateway_url
    key = '-H "authorization: Bearer $NUNCHI_API_KEY" ' if settings.api_key else ""
    payload = json.dumps({"text": SENTENCE}, ensure_ascii=False)
    print(
        f"ready after {seconds:.1f} s: {SENTENCE} → {answer['label']} ({answer['confidence']:.2f})\n\n"
        f"  page     {settings.page_url}       in English: {settings.page_url}/en\n"
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


def _start_again(part: Part) -> None:
    """The complaint of a part that has answered before is printed once: what it misses may come back."""
    complaint = part.last_error() if part.process.returncode == USER_MUST_MEND else ""
    if not complaint:
        print(f"{part.name} ended with status {part.process.returncode}; starting it again", flush=True)
    elif complaint != part.complaint:
        print(f"{part.name} cannot go on: {complaint}; trying again until it can", flush=True)
    part.complaint = complaint
    part.start()


def _open_port(settings: Settings) -> socket.socket:
    """The gateway's port, bound; the gateway listens on it once it has found its settings in order."""
    port = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the past may be in TIME_WAIT
    try:
        port.bind((settings.host, settings.gateway_port))
    except OSError as exc:
        port.close()
        raise StartError(
            f"the gateway cannot listen on {settings.host}:{settings.gateway_port} ({exc.strerror}); stop what listens "
            "there, or set NUNCHI_GATEWAY_PORT (and NUNCHI_HOST) to something free"
        ) from None
    return port


def _read(pipe: int) -> bytes | None:
    """What a non-blocking pipe holds: None for nothing yet, b"" when nobody can write into it any more."""
    try:
        return os.read(pipe, 1)
    except BlockingIOError:
        return None


def _state_file(settings: Settings) -> Path:
    return settings.var / "run" / "up.json"


def _write_state(settings: Settings, *, restarts: int, refusal: str | None) -> None:
    """Who runs; how many rolling restarts have ended; why the last of them changed nothing."""
    me = psutil.Process()
    state = {"pid": me.pid, "started": me.create_time(), "restarts": restarts, "refusal": refusal}
    file = _state_file(settings)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    partial.replace(file)


def _read_state(settings: Settings) -> dict:
    try:
        return json.loads(_state_file(settings).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _running(settings: Settings) -> psutil.Process | None:
    """The ``up`` of this folder; a recycled process id is told apart by its start time."""
    try:
        state = _read_state(settings)
        process = psutil.Process(state["pid"])
    except (KeyError, psutil.NoSuchProcess):
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
    parser.add_argument("verb", choices=["up", "restart", "down"])
    arguments = parser.parse_args(argv)
    try:
        {"up": up, "restart": restart, "down": down}[arguments.verb](read_settings())
    except StartError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
