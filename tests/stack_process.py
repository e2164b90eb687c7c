"""The whole stack as a user starts it: `python -m deploy.local up`, on free ports, over a copy of the repository."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.triton_process import free_ports

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120
SETTINGS = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "GATEWAY_PORT", "UI_PORT")


@dataclass
class Stack:
    """`make up` for a test: its own ports, state folder and copy of the shipped model repository."""

    var: Path
    repository: Path
    ports: dict[str, int]
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None
    started: list[psutil.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['GATEWAY_PORT']}"

    @property
    def page_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['UI_PORT']}"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUNCHI_")}
        ports = {f"NUNCHI_{name}": str(port) for name, port in self.ports.items()}
        folders = {"NUNCHI_VAR": str(self.var), "NUNCHI_MODEL_REPOSITORY": str(self.repository)}
        return {**inherited, **ports, **folders, **self.settings}

    @property
    def output(self) -> str:
        return (self.var / "up.txt").read_text(encoding="utf-8")

    def command(self, verb: str) -> list[str]:
        return [sys.executable, "-m", "deploy.local", verb]

    def start(self) -> None:
        with (self.var / "up.txt").open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                self.command("up"), cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def wait_ready(self) -> str:
        """What `up` printed once it was ready; fails with its output when it ends before."""
        deadline = time.monotonic() + START_SECONDS
        while "stops all of it" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)
        self.started = psutil.Process(self.process.pid).children(recursive=True)
        return self.output

    def descendants(self, name: str) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        alive = [process for process in found if process.status() != psutil.STATUS_ZOMBIE]
        return [process for process in alive if name in " ".join(process.cmdline())]

    def leftovers(self) -> dict[str, list]:
        """What a stopped stack has left behind; every list should be empty."""
        started_since = [path.name for path in Path("/dev/shm").iterdir() if path.name not in self.shm_before]
        lines = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
        prefixes = [found[0] for line in lines for found in re.finditer(r"nunchi_[0-9a-f]+_", line)]
        shm = [name for name in started_since if not name.startswith(tuple(prefixes))]  # of a Triton that runs: others'
        listening = {item.laddr.port for item in psutil.net_connections("tcp") if item.status == psutil.CONN_LISTEN}
        return {
            "processes": [process for process in self.started if process.is_running()
                          and process.status() != psutil.STATUS_ZOMBIE],
            "shm": shm,
            "ports": sorted(listening & set(self.ports.values())),
        }  # fmt: skip

    def __post_init__(self):
        self.shm_before = {path.name for path in Path("/dev/shm").iterdir()}

    def end(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()


def new_stack(folder: Path, repository: Path = ROOT / "model_repository", **settings: str) -> Stack:
    """Over a copy of ``repository``; ``settings`` are more variables of its environment."""
    (folder / "var").mkdir(parents=True)
    shutil.copytree(repository, folder / "models")
    return Stack(
        folder / "var", folder / "models", dict(zip(SETTINGS, free_ports(len(SETTINGS)), strict=True)), settings
    )


def printed_curl(output: str) -> str:
    return re.search(r"^\s+(curl .*)$", output, re.MULTILINE)[1]
