"""Runs a command of the project in its own environment, as a task: what it says goes to the log, its last line on.

Nothing of the project is imported here, and the command sees neither Airflow's variables nor Slack's webhook.
"""

import json
import logging
import os
import shlex
import signal
import subprocess
import threading
from collections import deque
from contextlib import suppress
from typing import IO, Any

from dags.settings import ROOT

log = logging.getLogger(__name__)

PYTHON = ROOT / ".venv" / "bin" / "python"
STOP_SECONDS = 30.0
HIDDEN = ("AIRFLOW", "SLACK_", "NUNCHI_AIRFLOW_", "PYTHONPATH", "VIRTUAL_ENV", "_AIRFLOW")


class CommandFailed(Exception):
    """The message is the command with its status and the last thing it said."""


def run(module: str, *arguments: object, answers: tuple[int, ...] = (0,)) -> Any:
    """``python -m module arguments…``; what its last line on stdout says: JSON as a value, else text, None for none.

    The command dies with the task: when it is stopped, runs into its time limit, or is killed.

    Args:
        answers: the exit statuses with which the command has done its work.

    Raises:
        CommandFailed: it ended with another.
    """
    command = [str(PYTHON), "-m", module, *map(str, arguments)]
    shown = shlex.join(["python", *command[1:]])
    log.info("$ %s", shown)
    process = subprocess.Popen(
        on_a_leash(command), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    errors, output = _Tail(process.stderr), _Tail(process.stdout)
    try:
        status = process.wait()
    finally:
        _end(process)
        for pipe in (output, errors):
            pipe.join(STOP_SECONDS)
    if status not in answers:
        raise CommandFailed(f"{shown} ended with status {status}: {errors.last or output.last or 'it said nothing'}")
    with suppress(ValueError):
        return json.loads(output.last or "null")
    return output.last


def on_a_leash(command: list[str]) -> list[str]:
    """The command as one that dies with this process; it wants the root of the checkout as working directory."""
    return [str(PYTHON), "-m", "gateway.leash", str(os.getpid()), *command]


def environment() -> dict[str, str]:
    """What a command sees: this process's variables without Airflow's own and without secrets it has no use for."""
    return {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}


class _Tail(threading.Thread):
    """Logs each line of a pipe as it comes and keeps the last one that is not blank."""

    def __init__(self, pipe: IO[str]) -> None:
        super().__init__(daemon=True)
        self.pipe = pipe
        self.lines: deque[str] = deque(maxlen=1)
        self.start()

    @property
    def last(self) -> str | None:
        return self.lines[0] if self.lines else None

    def run(self) -> None:
        with self.pipe:
            for line in self.pipe:
                if line := line.strip():
                    log.info("%s", line)
                    self.lines.append(line)


def _end(process: subprocess.Popen) -> None:
    """Whatever the command has started goes with it, also what it has left behind."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            break
