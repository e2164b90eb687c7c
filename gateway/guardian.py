"""A small parent for the serving process, so that nothing outlives the gateway, whatever kills it.

Ray starts ten processes.  When one in the middle dies, its children are handed to the system and linger for minutes.
Here they are handed to the guardian instead (it is a "child subreaper"), which ends all of them when the serving
process has ended.  And if the guardian itself is killed, the kernel sends the serving process a SIGTERM.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
STOP_SECONDS = 12.0  # from a signal to the end by force
KILL_SECONDS = 2.0
FOLDER = "nunchi-ray-"  # in the temporary folder, with our pid: short, because Ray's socket paths may have 107 bytes


def guard(command: list[str]) -> int:
    """Run `command`, with a folder of its own appended to its arguments; return its exit status, everything ended."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    remove_folders_of_the_dead()
    folder = Path(tempfile.gettempdir()) / f"{FOLDER}{os.getpid()}"
    folder.mkdir(mode=0o700)
    told_to_stop = threading.Event()
    serving: subprocess.Popen | None = None

    def stop(number: int, frame: object) -> None:
        told_to_stop.set()
        if serving is not None:
            serving.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        serving = subprocess.Popen([*command, str(folder)])
        if told_to_stop.is_set():
            serving.terminate()
        return _wait(serving, told_to_stop)
    finally:
        end_descendants()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(serving: subprocess.Popen, told_to_stop: threading.Event) -> int:
    deadline = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            return serving.wait(0.2)
        if told_to_stop.is_set():
            deadline = deadline or time.monotonic() + STOP_SECONDS
            if time.monotonic() > deadline:
                print(f"error: the gateway did not stop within {STOP_SECONDS:g} s; killing it", file=sys.stderr)
                serving.kill()
                return serving.wait()


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
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def die_with_parent() -> None:
    """Called by the serving process: SIGTERM to us when the guardian is gone, also when it is gone already."""
    parent = os.getppid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
