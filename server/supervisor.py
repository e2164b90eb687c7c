"""Keeps one Triton alive: starts it, asks it every two seconds, and replaces it when it is dead, mute or wrong.

Why it exists: when a stub process (the Python side of one model version) dies, Triton 24.10 never restarts it, goes
on calling itself ready, and answers every request with an error.  So three things are watched, any of which ends a
life of Triton:

    the tritonserver process ended;
    a stub of the served version is dead (a zombie, because Triton does not know and does not reap it);
    the canary was answered wrong, or not at all while nothing else showed that Triton works.

The last is what tells a dead server from an overloaded one: a canary that waits behind a thousand requests is late,
but executions keep being counted, or the stub is at least using the CPU.  Restarting then would only lose the queue.
"""

import asyncio
import ctypes
import logging
import os
import re
import signal
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

import psutil

from server.bundle import MODEL, Bundle
from server.canary import Canary, NoAnswer, WrongAnswer
from server.claim import clear
from server.errors import CannotStart
from server.settings import Settings
from server.triton import EXIT_SECONDS, STUB, Layout, environment

CANARY_SECONDS = 2.0  # between two canaries; one of KcBERT's size takes both cores for 10 ms
CANARY_DEADLINE = 2.0  # of one canary
STATISTICS_DEADLINE = 1.0  # of the question whether anything was executed
WRONG_ANSWERS = 3  # to the same golden row, in a row: int8 answers move a little with the batch they share
MUTE_SECONDS = 5.0  # without an answer, a finished execution or CPU time
BUSY_CPU_SECONDS = 0.1  # of the stubs from one late canary to the next, when they compute and do not just exist
STUCK_SECONDS = 60.0  # without an answer or a finished execution, whatever the CPU does
STUB_SECONDS = 0.25  # between two looks at the stubs
SEARCHED_LOOKS = 8  # from one search for new stubs, which reads every process of the machine, to the next
SETTLED_SECONDS = 60.0  # a life this long starts the back-off anew
BACK_OFF_SECONDS = 4.0  # at most, between two lives: with a start of two seconds, callers wait less than ten
LOG_BYTES = 16 << 20  # of var/log/triton.log before it becomes triton.log.1
PR_SET_PDEATHSIG = 1

log = logging.getLogger("server")


class Supervisor:
    """Runs Triton with `command` until it is cancelled."""

    def __init__(
        self, settings: Settings, bundle: Bundle, layout: Layout, command: list[str], region_prefix: str
    ) -> None:
        self.settings = settings
        self.bundle = bundle
        self.layout = layout
        self.command = command
        self.region_prefix = region_prefix
        self.log_file = settings.var / "log" / "triton.log"
        self.answered = False  # ever: before that, a failure is the user's to mend, after it ours

    async def run(self) -> None:
        """One life of Triton after the other.  Raises `CannotStart` when the first does not come to answer."""
        failures = 0
        while True:
            began = time.monotonic()
            problem = await self.live()
            if not self.answered:
                raise CannotStart(f"Triton does not answer: {problem} (full log: {self.log_file})")
            failures = 1 if time.monotonic() - began > SETTLED_SECONDS else failures + 1
            delay = min(BACK_OFF_SECONDS, 2.0 ** (failures - 2)) if failures > 1 else 0.0
            log.error("restart in=%.1fs failures=%d problem=%r", delay, failures, problem)
            await asyncio.sleep(delay)

    async def live(self) -> str:
        """Start Triton, watch it, and return what was wrong with it once it is gone."""
        began = time.monotonic()
        spoken = self.open_log()
        process = await self.spawn()
        stubs = Stubs(process.pid)
        try:
            async with Canary(self.settings.model_repository, self.bundle, self.settings.triton_grpc_port) as canary:
                problem = await first(self.ended(process, spoken), stubs.died(canary), self.first_answer(canary, began))
                if problem is None:
                    stubs.search()  # a stub that dies before it is known leaves no command line to know it by
                    self.report_ready(process, canary, began)
                    problem = await first(self.ended(process, spoken), stubs.died(canary), silence(canary, stubs))
                self.bundle = canary.bundle
                return problem
        except asyncio.CancelledError:
            log.info("stopping pid=%d", process.pid)
            await terminate(process)
            raise
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            clear(self.region_prefix)

    async def spawn(self) -> asyncio.subprocess.Process:
        prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

        def die_with_parent() -> None:
            """In the child: when this supervisor is killed, Triton gets the signal that stops it properly."""
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it was killed a moment ago
                os._exit(1)

        with self.log_file.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *self.command,
                cwd=self.layout.working_directory,
                env=environment(self.layout),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the supervisor, which then stops Triton
                preexec_fn=die_with_parent,
            )

    async def ended(self, process: asyncio.subprocess.Process, spoken: int) -> str:
        status = await process.wait()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return last_words(self.log_file, spoken) or f"tritonserver ended ({how}) without a reason"

    async def first_answer(self, canary: Canary, began: float) -> str | None:
        """Wait until every golden row is answered right (None), or return why that has not happened in time."""
        problem = "it never listened"
        while (left := began + self.settings.triton_start_seconds - time.monotonic()) > 0:
            try:
                return await canary.check_all(left)
            except NoAnswer as error:
                problem = str(error)
            except WrongAnswer as error:
                return str(error)
            await asyncio.sleep(0.05)
        limit = self.settings.triton_start_seconds
        return f"no answer within NUNCHI_TRITON_START_SECONDS={limit:g} s of its start, the last attempt: {problem}"

    def report_ready(self, process: asyncio.subprocess.Process, canary: Canary, began: float) -> None:
        self.answered = True
        log.info(
            "ready version=%d grpc=%d http=%d metrics=%d pid=%d seconds=%.1f",
            canary.bundle.version,
            self.settings.triton_grpc_port,
            self.settings.triton_http_port,
            self.settings.triton_metrics_port,
            process.pid,
            time.monotonic() - began,
        )

    def open_log(self) -> int:
        """Make sure there is a log, turn it over when it is long, and return its length in bytes."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.touch()
        if self.log_file.stat().st_size > LOG_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
            self.log_file.touch()
        return self.log_file.stat().st_size


class Stubs:
    """The stub processes of one tritonserver: one per loaded version and instance."""

    def __init__(self, server: int) -> None:
        self.server = server
        self.versions: dict[psutil.Process, int] = {}

    async def died(self, canary: Canary) -> str:
        """Return once a stub of the served version is dead; report the death of another version's, which answers none.

        A stub that ends in good order, because its version was unloaded, is reaped by Triton within milliseconds.  So
        one that is a zombie at two looks in a row died, and Triton has not noticed.
        """
        suspects: set[psutil.Process] = set()
        looks = 0
        while True:
            if looks % SEARCHED_LOOKS == 0:
                self.search()
            looks += 1
            zombies = {stub for stub in self.versions if status(stub) == psutil.STATUS_ZOMBIE}
            for stub in zombies & suspects:
                version = self.versions.pop(stub)
                if version == canary.bundle.version:
                    return f"the stub of version {version} died (process {stub.pid})"
                log.error("stub died version=%d pid=%d; version=%d serves on", version, stub.pid, canary.bundle.version)
            suspects = zombies
            await asyncio.sleep(STUB_SECONDS)

    def search(self) -> None:
        known = {stub: version for stub, version in self.versions.items() if status(stub) is not None}
        with suppress(psutil.Error):
            for child in psutil.Process(self.server).children():
                if child not in known and (version := version_of(child)):
                    known[child] = version
        self.versions = known

    def cpu_seconds(self) -> float:
        total = 0.0
        for stub in self.versions:
            with suppress(psutil.Error):
                times = stub.cpu_times()
                total += times.user + times.system
        return total


def status(process: psutil.Process) -> str | None:
    """None when the process is gone, reaped and all."""
    try:
        return process.status() if process.is_running() else None
    except psutil.Error:
        return None


def version_of(process: psutil.Process) -> int | None:
    """The version a stub serves, from the model path on its command line; None for any other process."""
    with suppress(psutil.Error):
        arguments = process.cmdline()
        if arguments and os.path.basename(arguments[0]) == STUB:
            match = re.search(rf"/{MODEL}/(\d+)/", arguments[1])
            return int(match.group(1)) if match else None
    return None


async def silence(canary: Canary, stubs: Stubs) -> str:
    """Ask on and on; return when the answers are wrong, or missing for another reason than too much work."""
    sign = work = time.monotonic()  # of the last sign of life, of the last finished work
    executions, cpu = None, stubs.cpu_seconds()  # as of the last canary
    wrong, excuse = 0, ""
    while True:
        began = time.monotonic()
        try:
            await canary.check_next(CANARY_DEADLINE)
        except WrongAnswer as error:
            wrong += 1
            log.warning("wrong answer count=%d: %s", wrong, error)
            if wrong == WRONG_ANSWERS:
                return str(error)
            continue
        except NoAnswer as error:
            if error.dead_stub:
                return str(error)
            before, executions = executions, await canary.executions(STATISTICS_DEADLINE)
            before_cpu, cpu = cpu, stubs.cpu_seconds()
            now = time.monotonic()
            worked = error.late and None not in (before, executions) and executions != before
            if worked or error.not_loaded:
                sign = work = now
                excuse = report_once(excuse, "overloaded" if worked else f"not loaded: {error}")
            elif error.late and cpu - before_cpu > BUSY_CPU_SECONDS:
                sign = now
            if now - sign > MUTE_SECONDS or now - work > STUCK_SECONDS:
                return f"no answer for {now - work:.0f} s: {error}"
        else:
            sign = work = time.monotonic()
            executions, cpu = None, stubs.cpu_seconds()
            wrong, excuse = 0, ""
        await asyncio.sleep(max(0.0, began + CANARY_SECONDS - time.monotonic()))


def report_once(before: str, now: str) -> str:
    if now != before:
        log.warning("canary unanswered, no restart: %s", now)
    return now


async def first(*watchers: Coroutine) -> str | None:
    """What the first of them to finish returns; the others are cancelled."""
    tasks = [asyncio.ensure_future(watcher) for watcher in watchers]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def terminate(process: asyncio.subprocess.Process) -> None:
    """Let Triton finish the requests in flight, for as long as it was told to and a little more."""
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(TimeoutError):
        async with asyncio.timeout(EXIT_SECONDS + 1):
            await process.wait()


def last_words(log_file: Path, start: int) -> str:
    """The reason Triton gave for ending, from what it logged after byte `start`; '' when it gave none.

    Its `error:` paragraph if there is one, else its last line of level E.  Python stack traces in it are left out.
    """
    with log_file.open("rb") as stream:
        stream.seek(start)
        text = stream.read().decode("utf-8", "replace")
    text = re.sub(r"\n\nAt:\n(?: {2}.*\n)*", "", text)
    paragraphs = re.findall(r"^error: (.+?)(?=^\d{4}-\d\d-\d\dT|\Z)", text, re.MULTILINE | re.DOTALL)
    lines = re.findall(r'^\S+Z E \d+ \S+ "(.+)"$', text, re.MULTILINE)
    return " ".join((paragraphs or lines or [""])[-1].split()).rstrip(";")
