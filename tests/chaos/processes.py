"""What the processes of a stack hold, over time: memory, file descriptors, and what lies in /dev/shm."""

import re
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from tests.stack_process import Stack

ROLES = {
    "ServeReplica": "gateway replica",
    "triton_python_backend_stub": "Triton's stubs",
    "bin/tritonserver": "tritonserver",
    "-m gateway": "python -m gateway",
    "-m server": "python -m server",
    "deploy.local": "make up",
    "raylet/raylet": "raylet",
    "gcs_server": "Ray's gcs_server",
    "ServeController": "Ray Serve's controller",
    "ProxyActor": "Ray Serve's proxy",
}


@dataclass
class Held:
    """What the processes of one role hold together.

    ``memory`` is anonymous memory in bytes: shares of libraries change whenever another program starts or ends.
    ``descriptors`` are those of files and pipes: how many connections there are is for the clients to say, and a stub
    inherits what its Triton had open.
    """

    memory: int = 0
    descriptors: int = 0
    processes: int = 0


@dataclass
class Sample:
    seconds: float  # since the watch began
    roles: dict[str, Held]
    shm_entries: int
    shm_bytes: int


@dataclass
class Watch:
    """Samples a stack every ``period`` seconds while the block lasts.

    /dev/shm is counted without what lay there before the stack began; other programs of the machine may add to it.
    """

    stack: Stack
    period: float
    samples: list[Sample] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def roles(self) -> list[str]:
        return sorted({role for sample in self.samples for role in sample.roles})

    def series(self, role: str) -> list[tuple[float, Held]]:
        return [(sample.seconds, sample.roles[role]) for sample in self.samples if role in sample.roles]

    def _run(self) -> None:
        while not self._stop.is_set():
            self.samples.append(self._look())
            self._stop.wait(self.period)

    def _look(self) -> Sample:
        roles: dict[str, Held] = defaultdict(Held)
        root = psutil.Process(self.stack.process.pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # it ends while we look
                held = roles[role_of(process)]
                held.memory += anonymous_memory(process)
                held.descriptors += descriptors(process)
                held.processes += 1
        sizes = []
        for path in Path("/dev/shm").iterdir():
            with suppress(FileNotFoundError):
                if path.name not in self.stack.shm_before:
                    sizes.append(path.stat().st_size)
        return Sample(time.monotonic() - self._began, dict(roles), len(sizes), sum(sizes))


def anonymous_memory(process: psutil.Process) -> int:
    with suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
        return 1024 * int(found[1]) if found else 0
    return 0


def descriptors(process: psutil.Process) -> int:
    """Of all but sockets.  psutil would look up both ends of each connection, which halts a busy stack for 0.3 s."""
    count = 0
    with suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                count += not entry.readlink().as_posix().startswith("socket:")
    return count


def role_of(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    return next((role for mark, role in ROLES.items() if mark in command), "others of Ray")


def replica_memory(stack: Stack) -> int:
    """Resident bytes of the gateway's replica."""
    (replica,) = stack.descendants("ServeReplica")
    return replica.memory_info().rss


def fate_of(outcomes) -> str:
    """How requests ended, for the message of an assertion."""
    fates = Counter(f"{each.status} {each.code} {'' if each.right is None else each.right}" for each in outcomes)
    return ", ".join(f"{fate}: {count}" for fate, count in fates.most_common())
