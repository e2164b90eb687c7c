"""Everything that can be known before Triton is started, so that a user reads one sentence and not Triton's log.

`python -m server` runs `check_machine` first, and `check_ports` once the state folder is its own.  Each function looks
at one thing and raises `CannotStart` with the remedy.
"""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil

from server.bundle import Bundle, check_files, read_served_bundle
from server.errors import CannotStart
from server.settings import Settings
from server.triton import LOOPBACK, REGION_BYTES, SHARED_MEMORY, stub_of

GLIBC = (2, 35)  # of the wheel's tag, manylinux_2_35
SHARED_MEMORY_BYTES = 3 * REGION_BYTES  # two versions side by side, and one on its way in
ELSEWHERE = "use such a machine, or a virtual one"


def check_machine(settings: Settings) -> tuple[Bundle, Path]:
    """Look at everything but the ports, cheapest first; return the bundle to serve and the stub's libpython."""
    check_platform(platform.system(), platform.machine(), platform.libc_ver())
    check_paths(settings)
    check_programs(sys.executable)
    stub_of(sys.version_info[:2])
    libpython = find_libpython(libpython_folders(), loader_libraries())
    check_shared_memory(SHARED_MEMORY)
    bundle = read_served_bundle(settings.model_repository)
    check_files(bundle)
    return bundle, libpython


def check_platform(system: str, machine: str, libc: tuple[str, str]) -> None:
    if (system, machine) != ("Linux", "x86_64"):
        raise CannotStart(f"the embedded Triton runs on Linux x86_64, this is {system} {machine}; {ELSEWHERE}")
    name, version = libc
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC:
        wanted = ".".join(map(str, GLIBC))
        raise CannotStart(
            f"the embedded Triton needs glibc {wanted} or newer (Debian 12, Ubuntu 22.04), "
            f"this is {name or 'another libc'} {version}".rstrip()
            + f"; {ELSEWHERE}"
        )


def check_paths(settings: Settings) -> None:
    """Triton 24.10 starts its stub with `bash -c` and quotes nothing, so a space would end the path."""
    for name, path in (("NUNCHI_MODEL_REPOSITORY", settings.model_repository), ("NUNCHI_VAR", settings.var)):
        unsafe = sorted(set(re.sub(r"[A-Za-z0-9_./-]", "", str(path))))
        if unsafe:
            raise CannotStart(
                f"{name} is {path}, and Triton cannot use a path with {' '.join(map(repr, unsafe))}; "
                f"move it to one of letters, digits, '.', '_', '-' and '/' only"
            )


def check_programs(executable: str) -> None:
    if shutil.which("bash") is None:
        raise CannotStart("bash is not on PATH, and Triton starts its Python backend with it; install bash")
    python3 = Path(executable).with_name("python3")
    if not python3.exists():
        raise CannotStart(
            f"{python3} does not exist, and Triton's Python backend finds its packages through that name; "
            f"make the environment anew with `make setup`"
        )


def libpython_folders() -> list[Path]:
    """Where the running interpreter would keep its shared library.

    LIBDIR is right for Debian, Docker's python images, pyenv and conda; the interpreters uv downloads were built
    elsewhere and keep it under their prefix.
    """
    return [Path(sysconfig.get_config_var("LIBDIR") or "/"), Path(sys.base_prefix) / "lib"]


def loader_libraries() -> list[Path]:
    """Every library the loader knows by name (`ldconfig -p`); none where there is no ldconfig."""
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if ldconfig is None:
        return []
    listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
    return [Path(line.split(" => ")[1]) for line in listing.splitlines() if " => " in line and "x86-64" in line]


def find_libpython(folders: list[Path], libraries: list[Path]) -> Path:
    """The shared library of the running Python's minor version: the wheel's stub needs it and does not bring it."""
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{minor}.so.1.0"
    candidates = [folder / name for folder in folders] + [library for library in libraries if library.name == name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise CannotStart(
        f"Triton's Python backend needs {name}, which is neither in {' or '.join(map(str, folders))} nor known to "
        f"the loader; install it (Debian and Ubuntu: apt install libpython{minor}) or use a Python built with "
        f"--enable-shared"
    )


def check_shared_memory(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CannotStart(f"{folder} is missing or not writable, and Triton talks to its backend through it; mount it")
    free = shutil.disk_usage(folder).free
    if free < SHARED_MEMORY_BYTES:
        raise CannotStart(
            f"{folder} has {free >> 20} MiB free, the server needs {SHARED_MEMORY_BYTES >> 20}; "
            f"remove what is left there, or give it more (docker run --shm-size=256m)"
        )


def check_ports(ports: dict[str, int]) -> None:
    """`ports`: each port by the variable that sets it.  Free now is not reserved: Triton may still lose the race."""
    for variable, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not hold a port
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise CannotStart(
                    f"port {port} cannot be used ({error.strerror.lower()}{holder(port)}); "
                    f"stop what holds it or set {variable} to another port"
                ) from None


def holder(port: int) -> str:
    """' by nginx, process 12' for the process that listens on `port`, '' when that is not ours to see."""
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            try:
                return f" by {psutil.Process(connection.pid).name()}, process {connection.pid}"
            except psutil.Error:
                return ""
    return ""
