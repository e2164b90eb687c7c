"""A real `python -m server` for a test: `with running_triton(repository, var_dir) as triton: ...`.

It listens on free loopback ports, keeps its state under `var_dir`, and is stopped the way a user stops it (SIGTERM).
The block is entered when the server has printed that it answers; a server that refuses to start raises `NotStarted`
with its exit status and its `error:` line.
"""

import itertools
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 90  # generous: a loaded machine; a healthy start takes about two
STOP_SECONDS = 20


class NotStarted(Exception):
    """`python -m server` ended, or stayed silent, before it answered."""

    def __init__(self, status: int | None, output: str) -> None:
        super().__init__(f"python -m server did not start (exit status {status}):\n{output}")
        self.status = status
        self.output = output


@dataclass
class TritonProcess:
    """A `python -m server` and where to reach it."""

    process: subprocess.Popen
    http_port: int
    grpc_port: int
    metrics_port: int
    var_dir: Path
    lines: list[str] = field(default_factory=list)
    _heard: threading.Condition = field(default_factory=threading.Condition)

    @property
    def admin_key(self) -> str:
        return (self.var_dir / "run" / "triton-admin-key").read_text(encoding="utf-8").strip()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, *, count: int = 1, seconds: float = START_SECONDS) -> str:
        """Return the `count`-th line of the log that contains `pattern` (a regular expression), once it is there."""

        def found() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        with self._heard:
            self._heard.wait_for(lambda: len(found()) >= count or self._ended, seconds)
            matches = found()
        if len(matches) < count:
            raise NotStarted(self.process.wait(STOP_SECONDS) if self._ended else None, self.output)
        return matches[count - 1]

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, as Ctrl-C or `make down` would; return the exit status."""
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

    _ended: bool = False


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, and that this run gives to nobody else.

    They lie below those that the kernel gives to outgoing connections, or one of these could take a port between here
    and the program it is for.  Each worker of pytest-xdist has a range of its own.
    """
    found = []
    while len(found) < count:
        port = next(_ports)
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        found.append(port)
    return found


def _own_ports() -> Iterator[int]:
    first, last = 10_000, 32_000  # Linux gives 32768 and up
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (last - first) // WORKERS
    start = random.randrange(size)  # another run on this machine most likely begins elsewhere
    for place in itertools.count(start):
        yield first + (worker % WORKERS) * size + place % size


WORKERS = 8
_ports = _own_ports()


def server_environment(repository: Path, var_dir: Path, ports: tuple[int, int, int]) -> dict[str, str]:
    """The environment of `python -m server`: ours without any NUNCHI_ variable of the developer, plus these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUNCHI_")}
    return inherited | {
        "NUNCHI_MODEL_REPOSITORY": str(repository),
        "NUNCHI_VAR": str(var_dir),
        "NUNCHI_TRITON_HTTP_PORT": str(ports[0]),
        "NUNCHI_TRITON_GRPC_PORT": str(ports[1]),
        "NUNCHI_TRITON_METRICS_PORT": str(ports[2]),
    }


def start_triton(
    repository: Path, var_dir: Path, *, ports: tuple[int, int, int] | None = None, **environment: str
) -> TritonProcess:
    """Start `python -m server` and return at once; `environment` adds to or overrides its variables."""
    ports = ports or tuple(free_ports(3))
    process = subprocess.Popen(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env=server_environment(repository, var_dir, ports) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    triton = TritonProcess(process, *ports, var_dir=Path(var_dir))
    threading.Thread(target=triton._listen, daemon=True).start()
    return triton


@contextmanager
def running_triton(repository: Path, var_dir: Path, **environment: str) -> Iterator[TritonProcess]:
    """A server that answers; stopped at the end of the block, and by force if it does not obey."""
    triton = start_triton(repository, var_dir, **environment)
    try:
        triton.wait_for_line(r"\bready\b")
        yield triton
    finally:
        with suppress(subprocess.TimeoutExpired):
            triton.stop()
        if triton.process.poll() is None:
            triton.process.kill()
            triton.process.wait()
        triton.process.stdout.close()
