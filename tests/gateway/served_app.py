"""The gateway's application under a real uvicorn in a thread, for tests that need other settings.

Everything but Ray is there: `with served_app(repository, triton.grpc_port, max_in_flight=10) as app: app.post(...)`.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from gateway.app import create_app
from gateway.bundle import read_bundle
from gateway.connection import Connection
from gateway.doorman import Doorman
from gateway.settings import Settings
from tests.gateway.gateway_process import wait_until
from tests.triton_process import free_ports

KEEP_ALIVE_SECONDS = 2


@dataclass
class ServedApp:
    url: str
    client: httpx.Client
    doorman: Doorman

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def predict(self, text: str, **more: object) -> httpx.Response:
        return self.client.post("/v1/predict", json={"text": text, **more})

    def batch(self, texts: list[str], **more: object) -> httpx.Response:
        return self.client.post("/v1/predict/batch", json={"texts": texts, **more})

    def is_ready(self) -> bool:
        return self.client.get("/readyz").status_code == 200

    def metric(self, name: str) -> float:
        """The value of a metric, written as Prometheus shows it, labels included."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)


@contextmanager
def served_app(
    repository: Path, triton_grpc_port: int, *, wait_for_triton: bool = True, **settings: object
) -> Iterator[ServedApp]:
    port = settings.pop("gateway_port", None) or free_ports(1)[0]
    chosen = Settings(model_repository=repository, gateway_port=port, triton_grpc_port=triton_grpc_port, **settings)
    app = create_app(chosen, read_bundle(repository))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=functools.partial(Connection, app.state.doorman),
            ws="none",
            host="127.0.0.1",
            port=port,
            log_level="critical",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            served = ServedApp(f"http://127.0.0.1:{port}", client, app.state.doorman)
            wait_until(lambda: client.get("/healthz").status_code == 200, 20, "the application listens")
            if wait_for_triton:
                wait_until(served.is_ready, 20, "the application is ready")
            yield served
    finally:
        server.should_exit = True
        thread.join(20)
