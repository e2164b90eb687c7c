"""A real `python -m gateway` for a test: `with running_gateway(repository, triton.grpc_port) as gateway: ...`."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.triton_process import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 150  # generous: Ray starts ten processes, and the machine may be busy
STOP_SECONDS = 30


class NotStarted(Exception):
    """`python -m gateway` ended, or stayed silent, before the line that was waited for."""

    def __init__(self, status: int | None, output: str) -> None:
        super().__init__(f"python -m gateway did not start (exit status {status}):\n{output}")
        self.status = status
        self.output = output


@dataclass
class GatewayProcess:
    process: subprocess.Popen
    port: int
    lines: list[str] = field(default_factory=list)
    _heard: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, *, seconds: float = START_SECONDS) -> str:
        def found() -> str | None:
            return next((line for line in self.lines if re.search(pattern, line)), None)

        with self._heard:
            self._heard.wait_for(lambda: found() or self._ended, seconds)
            line = found()
        if line is None:
            raise NotStarted(self.process.poll(), self.output)
        return line

    def family(self) -> list[psutil.Process]:
        """The process and everything it started, as it is now."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def replica(self) -> psutil.Process:
        return next(each for each in self.family() if "ServeReplica" in "".join(each.cmdline()))

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(seconds)

    def _listen(self) -> None:
        for line in self.process.stdout:
            with self._heard:
                self.lines.append(line.rstrip("\n"))
                self._heard.notify_all()
        with self._heard:
            self._ended = True
            self._heard.notify_all()


def start_gateway(repository: Path, triton_grpc_port: int, **environment: str) -> GatewayProcess:
    """Start it and return at once; `environment` adds to or overrides its variables."""
    (port,) = free_ports(1)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NUNCHI_", "RAY_"))}
    settings = {
        "NUNCHI_MODEL_REPOSITORY": str(repository),
        "NUNCHI_GATEWAY_PORT": str(port),
        "NUNCHI_TRITON_GRPC_PORT": str(triton_grpc_port),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway"],
        cwd=ROOT,
        env=inherited | settings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    gateway = GatewayProcess(process, port)
    threading.Thread(target=gateway._listen, daemon=True).start()
    return gateway


@contextmanager
def running_gateway(repository: Path, triton_grpc_port: int, **environment: str) -> Iterator[GatewayProcess]:
    """A gateway that listens and answers; stopped in the end, and by force if it does not obey."""
    gateway = start_gateway(repository, triton_grpc_port, **environment)
    family = [psutil.Process(gateway.process.pid)]
    try:
        gateway.wait_for_line("listening on")
        gateway.wait_for_line("answers")
        family = gateway.family()
        yield gateway
    finally:
        with suppress(subprocess.TimeoutExpired):
            gateway.stop()
        for each in family:  # only a broken gateway leaves any
            with suppress(psutil.NoSuchProcess):
                each.kill()
        gateway.process.wait()
        gateway.process.stdout.close()


def wait_until(condition, seconds: float, what: str) -> float:
    """Ask until `condition()` is true, and return how long it took; an answer that fails counts as no."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        with suppress(httpx.TransportError):
            if condition():
                return time.monotonic() - started
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")
