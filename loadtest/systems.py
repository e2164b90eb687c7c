"""The servers that are compared: how each is started, with which threads and settings, paused and stopped."""

import asyncio
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psutil

from loadtest import doors
from loadtest.doors import Door, HttpDoor
from loadtest.served import Served
from loadtest.settings import ROOT

PEERS = ROOT / "loadtest" / "peers"
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
START_SECONDS = 240.0
STOP_SECONDS = 30.0
TORCHSERVE_BATCH, TORCHSERVE_DELAY_MS = 8, 50
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class NotStarted(Exception):
    """A server ended, or did not answer in time; the message names its log."""


@dataclass
class System:
    """A server with its processes. ``about`` states threads and settings; the first of ``doors`` says when it is ready.

    ``may_pause``: it bears to be stopped while others have their turn. Ours is watched from inside, so it does not.
    """

    name: str
    about: str
    commands: list[list[str]]
    doors: list[Door]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = ROOT  # where it runs
    may_pause: bool = True
    _processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self) -> None:
        """Return at once; `wait_ready` waits."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUNCHI_")}
        with self.log.open("wb") as log:
            for command in self.commands:
                self._processes.append(
                    subprocess.Popen(
                        command,
                        cwd=self.folder,
                        env=inherited | self.environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        preexec_fn=_end_with_parent,
                    )
                )

    def wait_ready(self) -> None:
        """Raises:
        NotStarted: it ended, or its first door did not answer within START_SECONDS.
        """
        deadline = time.monotonic() + START_SECONDS
        while not asyncio.run(doors.answers(self.doors[0])):
            if any(process.poll() is not None for process in self._processes):
                raise NotStarted(f"{self.name} ended before it answered; its last words are in {self.log}")
            if time.monotonic() > deadline:
                raise NotStarted(f"{self.name} did not answer within {START_SECONDS:g} s; look at {self.log}")
            time.sleep(0.2)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self.resume()
        family = self.family()
        for process in reversed(self._processes):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        for each in family:  # what did not follow: TorchServe's launcher leaves its JVM
            with suppress(psutil.NoSuchProcess):
                each.terminate()
        for each in psutil.wait_procs(family, STOP_SECONDS)[1]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def family(self) -> list[psutil.Process]:
        found = []
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                root = psutil.Process(process.pid)
                found += [root, *root.children(recursive=True)]
        return found

    def cpu_seconds(self) -> float:
        """Of its processes that live, since each began."""
        total = 0.0
        for each in self.family():
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system
        return total

    def _signal(self, number: signal.Signals) -> None:
        if self.may_pause:
            for each in self.family():
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(number)


@dataclass(frozen=True)
class Stack:
    """Where ours listens while it is measured."""

    folder: Path
    repository: Path
    gateway_port: int
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def admin_key(self) -> str:
        """Of Triton, once it runs."""
        return (self.folder / "state" / "run" / "triton-admin-key").read_text(encoding="utf-8").strip()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "NUNCHI_VAR": str(self.folder / "state"),
            "NUNCHI_MODEL_REPOSITORY": str(self.repository),
            "NUNCHI_GATEWAY_PORT": str(self.gateway_port),
            "NUNCHI_TRITON_HTTP_PORT": str(self.http_port),
            "NUNCHI_TRITON_GRPC_PORT": str(self.grpc_port),
            "NUNCHI_TRITON_METRICS_PORT": str(self.metrics_port),
        }


def new_stack(folder: Path, repository: Path) -> Stack:
    return Stack(folder, repository, *_free_ports(4))


def ours(stack: Stack, served: Served, texts: list[str]) -> System:
    url = f"http://127.0.0.1:{stack.gateway_port}"
    return System(
        "Nunchi",
        f"python -m server and python -m gateway as make up starts them; {served.manifest['precision']}, padding-free",
        [[sys.executable, "-m", "server"], [sys.executable, "-m", "gateway"]],
        [doors.gateway(url, texts), doors.triton(f"127.0.0.1:{stack.grpc_port}", served, texts)],
        stack.folder / "nunchi.log",
        stack.environment,
        may_pause=False,
    )


def fastapi(folder: Path, checkpoint: Path, threads: int, texts: list[str]) -> System:
    (port,) = _free_ports(1)
    script = PEERS / "fastapi_pipeline.py"
    command = [sys.executable, str(script), "--checkpoint", str(checkpoint), "--port", str(port)]
    return System(
        "FastAPI + transformers",
        f"one uvicorn process, transformers.pipeline, torch fp32 on {threads} threads",
        [[*command, "--threads", str(threads)]],
        [HttpDoor("FastAPI + transformers", _json(texts), url=f"http://127.0.0.1:{port}/predict")],
        folder / "fastapi.log",
        {"HF_HUB_OFFLINE": "1"},
    )


def torchserve(folder: Path, checkpoint: Path, threads: int, texts: list[str]) -> System:
    """Packs the archive too.

    Raises:
        NotStarted: torch-model-archiver failed.
    """
    home = folder / "torchserve"
    shutil.rmtree(home, ignore_errors=True)
    (home / "tmp").mkdir(parents=True)
    model = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": TORCHSERVE_BATCH,
        "maxBatchDelay": TORCHSERVE_DELAY_MS,
        "handler": {"checkpoint": str(checkpoint), "threads": threads},
    }
    (home / "model.yaml").write_text(json.dumps(model), encoding="utf-8")  # JSON is YAML
    archive = [str(Path(sys.executable).parent / "torch-model-archiver"), "--model-name", "sentiment"]
    archive += ["--version", "1", "--handler", str(PEERS / "torchserve_handler.py")]
    archive += ["--config-file", str(home / "model.yaml"), "--export-path", str(home)]
    done = subprocess.run(archive, capture_output=True, text=True)
    if done.returncode:
        raise NotStarted(f"torch-model-archiver failed: {done.stderr.strip().splitlines()[-1]}")
    ports = _free_ports(5)
    addresses = ("inference_address", "management_address", "metrics_address")
    lines = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(addresses, ports, strict=False)]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}", "disable_token_authorization=true"]
    lines += [f"model_store={home}", "load_models=sentiment.mar", "job_queue_size=1000"]
    (home / "config.properties").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [str(Path(sys.executable).parent / "torchserve"), "--start", "--foreground", "--ncs"]
    return System(
        "TorchServe",
        f"one worker, batches of up to {TORCHSERVE_BATCH} within {TORCHSERVE_DELAY_MS} ms, padded to the longest; "
        f"torch fp32 on {threads} threads",
        [[*command, "--ts-config", str(home / "config.properties")]],
        [
            HttpDoor(
                "TorchServe",
                [text.encode() for text in texts],
                url=f"http://127.0.0.1:{ports[0]}/predictions/sentiment",
                headers={"content-type": "text/plain; charset=utf-8"},
            )
        ],
        folder / "torchserve.log",
        {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TMPDIR": str(home / "tmp"),  # its pid file lies there, and there may be another TorchServe
            "LOG_LOCATION": str(home),
            "METRICS_LOCATION": str(home),
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
        },
    )


def infinity(folder: Path, model: Path, threads: int, texts: list[str]) -> System:
    """``model`` is what peers/infinity_model.py wrote."""
    (port,) = _free_ports(1)
    command = [str(PEERS_PYTHON.parent / "infinity_emb"), "v2", "--model-id", ".", "--engine", "optimum"]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "sentiment"]
    command.append("--no-model-warmup")  # its own asks 1,500 tokens of a model that has 300 positions
    bodies = [orjson.dumps({"model": "sentiment", "input": [text]}) for text in texts]
    return System(
        "infinity",
        f"infinity_emb, Optimum's dynamic int8 per channel, ONNX Runtime on {threads} cores, batches of up to 32",
        [command],
        [HttpDoor("infinity, int8", bodies, url=f"http://127.0.0.1:{port}/classify")],
        folder / "infinity.log",
        {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "infinity-cache"),
            "DO_NOT_TRACK": "1",
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        },
        model,  # it finds the ONNX file of a local model only by a relative path
    )


def _json(texts: list[str]) -> list[bytes]:
    return [orjson.dumps({"text": text}) for text in texts]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _end_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
