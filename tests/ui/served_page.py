"""The page under a real uvicorn in a thread: `with served_page(gateway_url, var) as url: ...`, on a free port."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from tests.gateway.gateway_process import wait_until
from tests.triton_process import free_ports
from ui.app import create_app
from ui.settings import Settings


@contextmanager
def served_page(gateway_url: str, var: Path, **settings: object) -> Iterator[str]:
    (port,) = free_ports(1)
    chosen = Settings(gateway_url=gateway_url, ui_port=port, var=var, **settings)
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        # In the loop: outside of one, Gradio makes a loop of its own for its locks and never closes it.
        config = uvicorn.Config(create_app(chosen), host="127.0.0.1", port=port, log_level="critical")
        servers.append(uvicorn.Server(config))
        await servers[0].serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: httpx.get(f"{url}/healthz").status_code == 200, 20, "the page listens")
        yield url
    finally:
        for server in servers:
            server.should_exit = True
            server.force_exit = True  # a browser may hold its event stream open
        thread.join(20)
