"""The processes behind gRPC: the stub that runs the model, and tritonserver, which can be made to stand still."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.triton_process import TritonProcess


def processes(triton: TritonProcess, name: str) -> list[psutil.Process]:
    family = psutil.Process(triton.process.pid).children(recursive=True)
    return [each for each in family if name in each.cmdline()[0]]


def stubs(triton: TritonProcess) -> list[psutil.Process]:
    return processes(triton, "triton_python_backend_stub")


@contextmanager
def stopped_triton(triton: TritonProcess) -> Iterator[None]:
    """Triton takes requests and answers nothing in this block.  Keep it short: the server replaces a mute one."""
    (server,) = processes(triton, "tritonserver")
    server.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send_signal(signal.SIGCONT)
