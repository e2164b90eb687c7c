"""The Ray that a search runs on: one of its own on this machine, or the cluster that ``RAY_ADDRESS`` names."""

import fcntl
import functools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.config import TuneConfig
from training.errors import SearchError
from training.settings import ROOT

OBJECT_STORE_BYTES = 128 << 20  # only figures and settings travel through it
SOCKET_ROOM = 40  # characters that Ray's longest socket name leaves to the folder it lies in
PREFIX, OWNER = "nunchi-ray-", "owner"

NICENESS = 3
"""Of the trials, on a Ray of their own. Where a core is fought for, a server beside them gets two thirds of it (weight
1024 to 526) and they one third; Ray's 15 would leave them 3 %, and a person waits. Without a rival it costs nothing."""


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Ray for the block. One that this process has already started is used and left running.

    Raises:
        SearchError: no cluster answers at ``RAY_ADDRESS``.
    """
    before = dict(os.environ)
    address = os.environ.get("RAY_ADDRESS")
    environment = _environment()
    try:
        os.environ.update(environment)
        if _running():
            yield
        elif address:
            with _joined(address, environment):
                yield
        else:
            with temporary_folder() as folder, _started(folder):
                yield
    finally:
        # Ray adds names of its own; those of others are left alone, as another thread may be setting them.
        for name in {*os.environ, *before, *environment}:
            if name in environment or name.startswith(("RAY_", "TUNE_")):
                os.environ.pop(name, None)
                os.environ.update({name: before[name]} if name in before else {})


def _running() -> bool:
    ray = sys.modules.get("ray")  # not imported yet: that reads the environment, which is not settled here
    return ray is not None and ray.is_initialized()


@contextmanager
def _started(folder: Path) -> Iterator[None]:
    os.environ.update(_private())
    # Imported here because Ray reads its environment while it is imported.
    import ray

    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
        )
        yield
    finally:
        ray.shutdown()


@contextmanager
def _joined(address: str, environment: dict[str, str]) -> Iterator[None]:
    import ray

    try:
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": environment},
            )
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise SearchError(
                f"RAY_ADDRESS is {address}, and no Ray cluster of this version answers there "
                f"({str(exc).splitlines()[0]}); start one with ray start --head, or unset RAY_ADDRESS"
            ) from exc
        yield
    finally:
        ray.shutdown()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """For Ray's sockets and logs, 1 MB or more. What a killed process has left is removed before.

    Its owner holds a lock in it, which the kernel takes away with the process, however that ends.
    """
    parent = _short_folder()
    for left in parent.glob(f"{PREFIX}*/{OWNER}"):
        with suppress(OSError), left.open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / f".{OWNER}").open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            (folder / f".{OWNER}").rename(folder / OWNER)  # nobody sees it without its lock
            yield folder


def _short_folder() -> Path:
    """Where sockets can lie: their whole path has 107 bytes."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) <= SOCKET_ROOM and folder.is_dir() else Path("/tmp")


def trials_that_fit(tune: TuneConfig) -> tuple[int, float]:
    """How many trials can run at one time on the Ray that is connected, and the GPUs that each of their workers gets.

    Raises:
        SearchError: not even one fits.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = tune.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    workers = sum(
        int(min(node.get("CPU", 0) / tune.cpus_per_worker, node.get("GPU", 0) / gpus if gpus else float("inf")))
        for node in nodes
    )
    if workers < tune.workers_per_trial:
        raise SearchError(
            f"a trial needs {tune.workers_per_trial} workers with {tune.cpus_per_worker:g} CPU and {gpus:g} GPU each, "
            f"and {workers} of them fit on {_said(nodes)}; lower tune.workers_per_trial, tune.cpus_per_worker or "
            "tune.gpus_per_worker, or join a larger cluster through RAY_ADDRESS"
        )
    fit = workers // tune.workers_per_trial
    return min(fit, tune.concurrent or fit), gpus


def _said(nodes: list[dict]) -> str:
    return ", ".join(f"a node with {node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)


def _environment() -> dict[str, str]:
    """For the driver and the trials alike."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same everywhere
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # importing torch on a busy machine takes its time
        "RAY_AIR_NEW_OUTPUT": "0",  # the old output is silent when told to be
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the search's folder holds the figures
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search at once, and it can be resumed
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may fail before its first epoch
        # So long a stopped trial may take to leave its process to the next. After Ray's 2 s, too few on a busy machine,
        # the next one fails to start, and the search stands still for good.
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
        "TUNE_WARN_THRESHOLD_S": "30",
    }


@functools.cache
def _token() -> str:
    """One for the life of the process: Ray remembers the first it has read, also when it is started again."""
    return secrets.token_hex(32)


def _private() -> dict[str, str]:
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # in truth: bind to loopback only
        "RAY_AUTH_MODE": "token",  # except a port that takes pickles, so that asks for a secret
        "RAY_AUTH_TOKEN": _token(),
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it prints a stack at every SIGTERM
        "RAY_worker_niceness": str(NICENESS),
    }
