"""How the tritonserver binary of the nvidia-pytriton wheel is laid out, called and fenced in.

Only the binaries of that wheel are used; its Python code is never imported.  What looks odd here has its reason in the
source of Triton, branch r24.10:

    core/src/backend_model.cc:402-409           a Python-based backend is found in `<backends>/<name>/model.py` only
    core/src/backend_model.cc:329-338           and needs libtriton_python.so, its utilities and the stub beside it
    python_backend/src/stub_launcher.cc:340-390 the stub is started through bash with its paths unquoted
    python_backend/src/pb_stub.cc:2026-2031     the working directory comes before the backend folder on sys.path
"""

import importlib.util
import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from server.bundle import MODEL
from server.errors import CannotStart
from server.settings import Settings

LOOPBACK = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")
# Between Triton and the stub of a version, taken from /dev/shm at once: 50 of the largest batches of the longest texts.
# Room enough never to grow: stubs have died of reading at a page's edge, and a region that grows is moved. That the one
# comes of the other is a guess.
REGION_BYTES = 16 << 20
EXIT_SECONDS = 8  # for requests in flight when told to stop; the whole stop must fit in 15
# All that could change what the server does or read memory of this machine.  Inference, health, metadata and
# statistics stay open: whoever can reach the loopback address may ask.
RESTRICTED = "shared-memory,model-repository,model-config,trace,logging"
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Layout:
    """The private folder of one server: backends, the one library they lack, and an empty working directory.

    Empty, because Triton's stub has '' first on its import path: a folder `model/` there would be imported in place
    of the backend.
    """

    root: Path

    @property
    def backends(self) -> Path:
        return self.root / "backends"

    @property
    def libraries(self) -> Path:
        return self.root / "libraries"

    @property
    def working_directory(self) -> Path:
        return self.root / "empty"


def wheel() -> Path:
    """The `tritonserver` folder inside the installed wheel."""
    spec = importlib.util.find_spec("pytriton")
    root = Path(spec.submodule_search_locations[0], "tritonserver") if spec else None
    if root is None or not (root / "bin" / "tritonserver").is_file():
        raise CannotStart("the nvidia-pytriton wheel is not installed in this Python; run `make setup`")
    return root


def stub_of(version: tuple[int, int]) -> Path:
    """The stub process program built for this minor version of Python."""
    stubs = wheel() / "python_backend_stubs"
    stub = stubs / ".".join(map(str, version)) / STUB
    if not stub.is_file():
        there = ", ".join(sorted((folder.name for folder in stubs.iterdir()), key=lambda name: int(name[2:])))
        raise CannotStart(
            f"this is Python {'.'.join(map(str, version))}, nvidia-pytriton has stubs for {there}; use Python 3.11"
        )
    return stub


def lay_out(root: Path, libpython: Path) -> Layout:
    """Build the private folder anew; only the holder of the server's lock may do that."""
    layout = Layout(root)
    shutil.rmtree(root, ignore_errors=True)
    python, onnxruntime = layout.backends / "python", layout.backends / "onnxruntime"
    for folder in (python, onnxruntime, layout.libraries, layout.working_directory):
        folder.mkdir(parents=True)
    files = [path for path in (wheel() / "backends" / "python").iterdir() if path.is_file()]  # no __pycache__
    for file in (*files, stub_of(sys.version_info[:2])):
        shutil.copy(file, python)
    (python / STUB).chmod(0o755)
    shutil.copy(Path(__file__).parent / "backends" / "onnxruntime" / "model.py", onnxruntime)
    # A link, not its folder on the path: a conda or system folder would bring its other libraries along.
    (layout.libraries / libpython.name).symlink_to(libpython)
    return layout


def environment(layout: Layout) -> dict[str, str]:
    """All that Triton and its stubs get to see: no secret of ours, no PYTHON variable (the stub ignores those).

    The stub learns which environment it belongs to from the first `python3` on PATH, and from nothing else.
    """
    binaries = [str(Path(sys.executable).parent), str(Path(shutil.which("bash")).parent), "/usr/bin", "/bin"]
    return {
        "PATH": os.pathsep.join(dict.fromkeys(binaries)),
        "LD_LIBRARY_PATH": os.pathsep.join(
            [str(wheel().parent.parent / "nvidia_pytriton.libs"), str(layout.libraries)]
        ),
        "LC_ALL": "C.UTF-8",
        # Weights in pages of 2 MiB, where the kernel gives those to who asks: in pages of 4 KiB, finding them takes a
        # tenth of the time of a large model (export/EXPERIMENTS.md).  And one heap for all threads: of Triton's dozens,
        # each that once loaded a version would keep the remains of it in a heap of its own.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1",
    }


def command(settings: Settings, layout: Layout, admin_key: str, region_prefix: str) -> list[str]:
    """The command line.  `region_prefix` begins the name of every /dev/shm region of this server, and of no other."""
    return [
        str(wheel() / "bin" / "tritonserver"),
        f"--model-repository={settings.model_repository}",
        f"--backend-directory={layout.backends}",
        f"--cache-directory={wheel() / 'caches'}",
        "--model-control-mode=explicit",
        f"--load-model={MODEL}",
        "--disable-auto-complete-config",  # the bundle's configuration is complete; guessing costs a second
        "--strict-readiness=false",  # else a load beside the served version turns readiness off
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--http-address={LOOPBACK}",
        f"--grpc-address={LOOPBACK}",
        f"--metrics-address={LOOPBACK}",
        f"--http-port={settings.triton_http_port}",
        f"--grpc-port={settings.triton_grpc_port}",
        f"--metrics-port={settings.triton_metrics_port}",
        f"--http-restricted-api={RESTRICTED}:admin-key={admin_key}",
        f"--grpc-restricted-protocol={RESTRICTED}:admin-key={admin_key}",
        "--metrics-config=summary_latencies=true",
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        f"--backend-config=python,shm-default-byte-size={REGION_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={region_prefix}",
        "--log-format=ISO8601",
        *(tracing(settings.otlp_endpoint) if settings.otlp_endpoint else ()),
    ]


def tracing(endpoint: str) -> list[str]:
    """OpenTelemetry spans to the collector at this base URL, for the requests that come with a trace and no others.

    Level TIMESTAMPS, because TENSORS would send what the texts were made into.
    """
    return [
        "--trace-config=mode=opentelemetry",
        "--trace-config=rate=0",  # of requests without a traceparent; those with one are always traced
        "--trace-config=level=TIMESTAMPS",
        f"--trace-config=opentelemetry,url={endpoint.rstrip('/')}/v1/traces",
        "--trace-config=opentelemetry,resource=service.name=nunchi-triton",
    ]


def admin_key(settings: Settings) -> str:
    """The key of the restricted APIs: the user's, or a new one per start in var/run/triton-admin-key (mode 0600)."""
    file = settings.var / "run" / "triton-admin-key"
    file.unlink(missing_ok=True)  # of an earlier start
    if settings.triton_admin_key is not None:
        return settings.triton_admin_key.get_secret_value()
    key = secrets.token_urlsafe(32)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(key + "\n")
    return key
