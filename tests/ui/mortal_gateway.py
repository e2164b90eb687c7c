"""A gateway that a test may kill and start again at the same address, over a Triton that lives on.

It is tests/gateway/served_app.py in a process of its own, so that SIGKILL takes it in the midst of an answer.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.gateway.gateway_process import wait_until
from tests.gateway.served_app import served_app
from tests.triton_process import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent


class MortalGateway:
    def __init__(self, repository: Path, triton_grpc_port: int) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = [str(repository), str(triton_grpc_port), str(self.port)]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ui.mortal_gateway", *self._arguments], cwd=ROOT, env=dict(os.environ)
        )
        wait_until(lambda: httpx.get(f"{self.url}/readyz").status_code == 200, 30, "the gateway is ready")

    def kill(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@contextmanager
def mortal_gateway(repository: Path, triton_grpc_port: int) -> Iterator[MortalGateway]:
    gateway = MortalGateway(repository, triton_grpc_port)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.kill()


if __name__ == "__main__":
    repository, triton_grpc_port, port = sys.argv[1:]
    with served_app(Path(repository), int(triton_grpc_port), gateway_port=int(port)):
        signal.pause()
