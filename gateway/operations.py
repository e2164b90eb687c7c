"""What an operator may have the gateway do: the project's own commands, one at a time; only a rollback waits for none.

Each runs as a process of its own, as `make` would run it, with the repository and the addresses of this gateway;
nothing of it is imported.  It ends with the gateway.  The latest ones are kept in memory, with what they said, and
forgotten with the process: the log has their beginnings and ends.
"""

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Literal

from gateway.errors import NotAvailable, NotFound, OperationRunning
from gateway.schemas import OperationRequest
from gateway.settings import ROOT, Settings

COMMANDS = {
    "promote": ("export.candidate", "promote"),
    "rollback": ("export.rollback",),
    "candidate-start": ("export.candidate", "start"),
    "candidate-end": ("export.candidate", "end"),
}
KEPT = 20
LINES_KEPT = 200  # of one operation, the last ones
LONGEST_LINE = 1000  # characters
STOP_SECONDS = 5.0  # for a command to take back what it has begun, when the gateway ends

log = logging.getLogger(__name__)


@dataclass
class Operation:
    """One command, at work or ended.  Written by the thread that watches it."""

    what: str
    identity: str = field(default_factory=lambda: secrets.token_hex(8))
    state: Literal["running", "done", "failed"] = "running"
    began: str = field(default_factory=lambda: _now())
    ended: str | None = None
    lines: list[str] = field(default_factory=list)
    result: str | None = None
    process: subprocess.Popen[str] | None = None

    @property
    def shown(self) -> dict[str, object]:
        """As OperationAnswer (schemas.py) documents it."""
        return {
            "id": self.identity,
            "what": self.what,
            "state": self.state,
            "began": self.began,
            "ended": self.ended,
            "lines": list(self.lines),
            "result": self.result,
        }

    def say(self, line: str) -> None:
        self.lines.append(line)
        del self.lines[:-LINES_KEPT]

    def come_to(self, line: str) -> None:
        self.result = line


class Operations:
    """Used from the event loop; each command is watched by a thread, which lives as long as the command."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: dict[str, Operation] = {}  # the oldest first
        self._watches: dict[str, threading.Thread] = {}  # of those at work
        self._closed = False

    @property
    def latest(self) -> list[Operation]:
        """The newest first."""
        return [*reversed(self._kept.values())]

    def find(self, identity: str) -> Operation:
        """NotFound for one that there was not, or not since the gateway was started."""
        operation = self._kept.get(identity)
        if operation is None:
            raise NotFound(
                f"there is no such operation among the last {KEPT} of this gateway; GET /v1/operations lists them"
            )
        return operation

    def begin(self, asked: OperationRequest, *, request_id: str, client: str, key_name: str | None) -> Operation:
        """Returns at once.  OperationRunning while another is at work, NotAvailable without the commands.

        A promotion is at work for its soak too, the very minute in which one wants to roll back: a rollback is let in
        beside it, and the commands settle the rest among themselves.
        """
        running = next((each for each in self.latest if each.state == "running"), None)
        if running and (asked.what != "rollback" or running.what == "rollback"):
            raise OperationRunning(
                f"{running.what} ({running.identity}) is at work since {running.began}, and one operation runs at a "
                f"time; wait until GET /v1/operations/{running.identity} says that it has ended"
            )
        module, *arguments = COMMANDS[asked.what]
        if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
            raise NotAvailable(
                f"{asked.what} is a command of the folder export, which is not installed beside this gateway; run "
                f"`python -m {' '.join([module, *arguments])}` where the project is checked out"
            )
        if asked.what == "candidate-start":
            arguments += ["--mode", asked.mode, "--share", str(asked.share)]
        operation = Operation(asked.what)
        self._kept[operation.identity] = operation
        while len(self._kept) > KEPT:
            self._kept.pop(next(iter(self._kept)))
        about = {"operation": operation.identity, "request_id": request_id, "client": client, "key": key_name}
        fields = {name: value for name, value in about.items() if value}
        log.info("%s begins", " ".join(["python -m", module, *arguments]), extra={"fields": fields})
        command = [sys.executable, "-m", module, *arguments]
        watch = threading.Thread(target=self._run, args=[operation, command, fields], name="operation", daemon=True)
        self._watches[operation.identity] = watch
        watch.start()
        return operation

    def close(self) -> None:
        """Have what is at work take back what it has begun, or end it.  Waits for it, so not for the event loop."""
        self._closed = True
        until = time.monotonic() + STOP_SECONDS
        running = [each for each in self.latest if each.state == "running"]
        for operation in running:
            if operation.process:
                operation.process.send_signal(signal.SIGINT)
        for operation in running:
            if watch := self._watches.get(operation.identity):
                watch.join(max(0.0, until - time.monotonic()))
            if operation.process and operation.state == "running":
                with suppress(ProcessLookupError):
                    os.killpg(operation.process.pid, signal.SIGKILL)

    def _run(self, operation: Operation, command: list[str], fields: dict[str, str]) -> None:
        try:
            status = self._follow(operation, command)
        except OSError as error:
            status = 1
            operation.say(f"error: the command could not be run: {error.strerror}")
        if status and not operation.lines:
            operation.say(f"error: the command ended with status {status} and said nothing")
        operation.ended = _now()
        operation.state = "failed" if status else "done"
        log.log(
            logging.ERROR if status else logging.INFO,
            "%s %s: %s",
            operation.what,
            operation.state,
            (operation.lines[-1] if status else operation.result) or "it said nothing",
            extra={"fields": fields},
        )
        self._watches.pop(operation.identity)

    def _follow(self, operation: Operation, command: list[str]) -> int:
        """The exit status."""
        with subprocess.Popen(
            [sys.executable, "-m", "gateway.leash", str(os.getpid()), *command],
            cwd=ROOT,
            env=_environment(self._settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that whatever it starts can be ended with it
        ) as process:
            operation.process = process
            if self._closed:
                process.kill()
            results = threading.Thread(target=_listen, args=[process.stdout, operation.come_to])
            results.start()
            _listen(process.stderr, operation.say)
            results.join()
            return process.wait()


def _listen(stream: IO[str], hear: Callable[[str], None]) -> None:
    for line in stream:
        if line.strip():
            hear(line.rstrip()[:LONGEST_LINE])


def _environment(settings: Settings) -> dict[str, str]:
    """Ours, without what is for Ray and without the admin key; the gateway that it asks is this one."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ours.pop("NUNCHI_ADMIN_KEY", None)
    return ours | {
        "PYTHONUNBUFFERED": "1",
        "NUNCHI_MODEL_REPOSITORY": str(settings.repository),
        "NUNCHI_TRITON_GRPC_HOST": settings.triton_grpc_host,
        "NUNCHI_TRITON_GRPC_PORT": str(settings.triton_grpc_port),
        "NUNCHI_HOST": settings.host,
        "NUNCHI_GATEWAY_PORT": str(settings.gateway_port),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
