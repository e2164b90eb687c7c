"""A small parent for the serving process: it holds the port, stops things in order, and nothing outlives it.

Ray starts ten processes.  When one in the middle dies, its children are handed to the system and linger for minutes.
Here they are handed to the guardian instead (it is a "child subreaper"), which ends all of them when the serving
process has ended.  And if the guardian itself is killed, the kernel sends the serving process a SIGTERM.

Told to stop, it has the replica drain first (port.py), and only then tells the serving process to take Ray down.
"""

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from gateway.port import Port

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
DRAIN_SECONDS = 3.0  # beyond the deadline of requests: for idle connections, and to notice
STOP_SECONDS = 12.0  # beyond the deadline of requests: from a signal to the end by force
KILL_SECONDS = 2.0
FOLDER = "nunchi-ray-"  # in the temporary folder, with our pid: short, because Ray's socket paths may have 107 bytes


async def guard(command: list[str], listener: socket.socket, beside: int | None, deadline_seconds: float) -> int:
    """Run `command`, with a folder of its own appended to its arguments; return its exit status, everything ended.

    `listener` is the gateway's port, `beside` as in `Port`; a request is answered within `deadline_seconds`.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    remove_folders_of_the_dead()
    folder = Path(tempfile.gettempdir()) / f"{FOLDER}{os.getpid()}"
    folder.mkdir(mode=0o700)
    try:
        async with Port(listener, folder, beside) as port:
            try:
                # A session of its own, so that Ctrl-C in a terminal reaches us alone, and the order is kept.
                serving = await asyncio.create_subprocess_exec(*command, str(folder), start_new_session=True)
                ended, told = asyncio.create_task(serving.wait()), asyncio.create_task(told_to_stop.wait())
                await asyncio.wait([ended, told], return_when=asyncio.FIRST_COMPLETED)
                told.cancel()
                if not ended.done():
                    await stop(port, serving, deadline_seconds)
                return await ended
            finally:
                await asyncio.to_thread(end_descendants)  # in a thread, so that the port is answered meanwhile
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def stop(port: Port, serving: asyncio.subprocess.Process, deadline_seconds: float) -> None:
    """Drain, then have the serving process stop Ray; kill it when that takes too long."""
    limit = deadline_seconds + STOP_SECONDS
    try:
        async with asyncio.timeout(limit):
            await port.drain(deadline_seconds + DRAIN_SECONDS)
            with suppress(ProcessLookupError):
                serving.terminate()
            await serving.wait()
    except TimeoutError:
        print(f"error: the gateway did not stop within {limit:g} s; killing it", file=sys.stderr)
        with suppress(ProcessLookupError):
            serving.kill()


def end_descendants() -> None:
    """Kill what is left; more than once, because a process may start another while it is being looked for."""
    deadline = time.monotonic() + KILL_SECONDS
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=0.5)


def remove_folders_of_the_dead() -> None:
    """The folders of gateways that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        pid = folder.name.removeprefix(FOLDER)
        # Not ours either, where it bears our number: in a container every guardian has the same.
        if pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def die_with_guardian(folder: Path) -> None:
    """Called by the serving process: SIGTERM to us when the guardian, whose folder this is, is gone or goes."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(folder.name.removeprefix(FOLDER)):
        os.kill(os.getpid(), signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
