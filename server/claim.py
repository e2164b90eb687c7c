"""One server per state folder: who holds it, and what a server that was killed left behind.

Every server has its own prefix for its /dev/shm regions.  Triton and its stubs carry it on their command lines, so
whatever carries it belongs to that server and nothing else does: no pid is remembered, and none can be mistaken.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from server.errors import CannotStart
from server.triton import SHARED_MEMORY, STUB

PROGRAMS = {"tritonserver", STUB, "bash"}  # bash, for the moment in which it becomes the stub
KILL_SECONDS = 5


@contextmanager
def claim(var: Path) -> Iterator[str]:
    """Hold `var` for this process and yield its region prefix; `CannotStart` when another server holds it.

    What an earlier holder left is cleared before, what this one leaves is cleared after.  The lock goes away with
    the process, however it ends.
    """
    file = var / "run" / "triton.lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a+", encoding="utf-8")
    except OSError as error:
        raise CannotStart(f"{file} cannot be written ({error.strerror}); set NUNCHI_VAR to a folder of yours") from None
    with stream:
        stream.seek(0)
        holder = read_holder(stream.read())
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(
                f"process {holder.get('pid', '?')} already serves with the state folder {var}; "
                f"stop it with `make down` or set NUNCHI_VAR to another folder"
            ) from None
        if holder:
            clear(holder["region_prefix"])
        prefix = f"nunchi_{secrets.token_hex(6)}_"
        stream.truncate(0)
        json.dump({"pid": os.getpid(), "region_prefix": prefix}, stream)
        stream.flush()
        try:
            yield prefix
        finally:
            clear(prefix)
            stream.truncate(0)


def read_holder(text: str) -> dict:
    """`pid` and `region_prefix` of the last holder; {} when it left in good order or in the middle of writing."""
    try:
        return json.loads(text)
    except ValueError:
        return {}


def clear(region_prefix: str) -> None:
    """Kill the Triton processes with this prefix and remove their regions."""
    deadline = time.monotonic() + KILL_SECONDS
    while survivors := processes(region_prefix):
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {survivors[0].pid} has not died of SIGKILL within {KILL_SECONDS} s")
        for process in survivors:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)
    for region in SHARED_MEMORY.glob(f"{region_prefix}*"):
        region.unlink(missing_ok=True)


def processes(region_prefix: str) -> list[psutil.Process]:
    """The running tritonserver and stub processes that carry the prefix; a zombie no longer carries anything."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or [""]
        if os.path.basename(arguments[0]) in PROGRAMS and any(region_prefix in argument for argument in arguments):
            found.append(process)
    return found
