"""The gateway as one Ray Serve application: refuse what is broken, start Ray, serve, stop all of it again.

Thin on purpose.  Clients talk straight to the replica's own port ("direct ingress"): Ray Serve's Python proxy, its
access log and the log stream to this process would each cost more than the model.  A private Ray is started on
loopback, which ends with this process and leaves any other Ray on the machine alone; cluster.py joins a running one.

What runs where: this process starts Ray and waits.  The replica is a Ray worker: `replica_app` builds the FastAPI
application there.  It borrows the port from the guardian (port.py) and writes its log into a named pipe that this
process copies to stderr.
"""

import asyncio
import gc
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.app import create_app
from gateway.bundle import Bundle, read_bundle
from gateway.errors import CannotStart, RequestError
from gateway.guardian import die_with_guardian
from gateway.keys import Keys
from gateway.listener import borrow_the_port
from gateway.log import configure_log
from gateway.proof import prove
from gateway.settings import ROOT, Settings
from gateway.triton import Triton

APPLICATION = "nunchi"
PREFLIGHT_SECONDS = 10.0  # for a Triton that is there; one that is not is noticed at once
OBJECT_STORE_BYTES = 80 * 1024 * 1024  # Ray's minimum; nothing of ours goes through it
SHUTDOWN_SECONDS = 1.0  # beyond the deadline of requests: for Serve to take the application down
WATCH_SECONDS = 0.2
GC_ALLOCATIONS = 20_000  # more objects than at the last look for cycles; Python looks every 700
LOOPBACK = "127.0.0.1"
QUIET = {"log_level": "WARNING", "enable_access_log": False}
CONSOLE = "console"  # the named pipe in the folder
RAY_ENDED = 1  # exit status: nothing the user must mend, the gateway should be started again

log = logging.getLogger("gateway")


class Stop(BaseException):
    """SIGTERM or SIGINT came."""


def run(settings: Settings, folder: Path) -> int:
    """Serve until a signal comes; Ray keeps its files in `folder`.  CannotStart for what the user must fix."""
    with suppress(Stop):
        stop_on_signals()
        die_with_guardian(folder)
        configure_log(sys.stderr, settings.log_format)
        Keys(settings.api_key, settings.keys_path)  # so that a file that will not do is refused here
        bundle = read_bundle(settings.repository)
        asyncio.run(check_triton(settings, bundle))
        os.environ.update(ray_environment(settings))
        console(folder)
        serve(settings, folder)
    return 0


def serve(settings: Settings, folder: Path) -> None:
    # Imported here because Ray reads its environment while it is imported.
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        leave_out_what_nobody_asks()
        ray.init(
            address="local",
            num_cpus=0,  # so that no idle workers are started; nothing here asks for a CPU
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
        )
        stop_on_signals()  # again, because Ray has put in its own
        # Port 0: Serve insists on its proxy too, so let it sit on any free loopback port.
        serve.start(http_options={"host": LOOPBACK, "port": 0}, logging_config=QUIET)
        deploy(deployment(settings, lambda: replica_app(settings, folder), num_cpus=0, num_replicas=1))
        log.info("listening on http://%s:%d (docs at /docs)", settings.host, settings.gateway_port)
        wait()
    finally:
        stop(settings.deadline_seconds)


def deployment(
    settings: Settings, build: Callable[[], ASGIApp], *, num_cpus: float, **scale: object
) -> "serve.Application":
    """The gateway as a Serve application; `build` makes the ASGI application in each replica, `scale` says how many."""
    from ray import serve

    options = serve.deployment(serve.ingress(build)()).options(
        name="gateway",
        max_ongoing_requests=1_000_000,  # admission is ours (admission.py); Serve's would answer without a code
        ray_actor_options={"num_cpus": num_cpus},
        health_check_period_s=1,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=settings.deadline_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=QUIET,
        **scale,
    )
    return options.bind()


def deploy(application: "serve.Application") -> None:
    """Run it and wait until a replica is up; CannotStart, with what Serve says, when none comes up."""
    from ray import serve

    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        deployments = serve.status().applications[APPLICATION].deployments.values()
        reason = _reason([each.message for each in deployments])
        raise CannotStart(f"Ray Serve could not start the gateway: {reason}") from error


def leave_out_what_nobody_asks() -> None:
    """Start Ray without the autoscaler's monitor, the dashboard's server and the log monitor.

    Ray 2.60 starts all three whatever it is told, and waits for the second, which has nothing to show without a
    dashboard: 280 MB, and a second of every start and so of every recovery.
    """
    from ray._private.node import Node

    for start in ("start_monitor", "start_api_server", "start_log_monitor"):
        setattr(Node, start, lambda self, **options: None)


def _reason(messages: list[str]) -> str:
    """Why Serve gave up: the last line of the replica's traceback."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def replica_app(settings: Settings, folder: Path) -> ASGIApp:
    """The application, built in the replica.  Hidden in a function: Serve would match each route a second time."""
    # Without blocking: when nobody reads our stderr, log lines are lost, and the replica does not stand still.
    console_pipe = os.fdopen(os.open(folder / CONSOLE, os.O_WRONLY | os.O_NONBLOCK), "w", buffering=1)
    configure_log(console_pipe, settings.log_format)
    app = create_app(settings, read_bundle(settings.repository))
    borrow_the_port(folder, app, app.state.doorman)
    return hidden(app)


def hidden(app: ASGIApp) -> ASGIApp:
    """`app`, ready to answer, as a plain function."""
    spare_the_collector()

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return gateway


def spare_the_collector() -> None:
    """Have Python look for reference cycles seldom, and never again among what is there now: it was 8 % of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS)


def ray_environment(settings: Settings) -> dict[str, str]:
    """What Ray and the tokenizers have to find in the environment of every process."""
    port = settings.gateway_port
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # in truth: everything of Ray binds to loopback only,
        "RAY_AUTH_MODE": "token",  # except a port of the replica that takes pickles, so that asks for a secret
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),  # the end is excluded: exactly this port
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PORT_QUARANTINE_S": "0",  # a replica that died is replaced on the same port at once
        # What Ray does when nothing happens takes a tenth of a core; these spare a third of that.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",  # not 0.1: one replica, which rarely dies
        "RAY_enable_metrics_collection": "0",  # nobody can ask for Ray's, and ours are the application's
    } | common_environment()


def common_environment() -> dict[str, str]:
    """The part that the nodes of a cluster share (cluster.py)."""
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # direct ingress among others
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "gateway.edge.middlewares",
        "RAY_worker_niceness": "0",  # Ray would run the replica at 15, behind everything else on the machine
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it prints a stack at every SIGTERM
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "TOKENIZERS_PARALLELISM": "false",  # the tokenizer thread must not take the cores the model needs
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }


async def check_triton(settings: Settings, bundle: Bundle) -> None:
    """ModelMismatch when Triton is up and disagrees with the bundle.  One that is not up yet is waited for later."""
    async with Triton(settings.triton_address) as triton:
        try:
            await prove(triton, bundle, seconds=PREFLIGHT_SECONDS)
        except RequestError as error:
            log.info("waiting for Triton at %s: %s", settings.triton_address, error.cause or error)


def stop_on_signals() -> None:
    """The first SIGTERM or SIGINT raises Stop; later ones change nothing, stopping is under way."""

    def stop(number: int, frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise Stop

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)


def console(folder: Path) -> None:
    """Make a named pipe; what is written into it comes out at our stderr."""
    path = folder / CONSOLE
    os.mkfifo(path, 0o600)
    # Opened for writing as well, so that reading does not end when a replica does.
    reader = os.fdopen(os.open(path, os.O_RDWR), encoding="utf-8", errors="replace")

    def copy() -> None:
        for line in reader:
            sys.stderr.write(line)
            sys.stderr.flush()

    threading.Thread(target=copy, daemon=True, name="console").start()


def wait() -> None:
    """Until a signal raises Stop, or Ray's own processes are gone, without which Ray cannot even be shut down."""
    children = [(each, each.name()) for each in psutil.Process().children()]
    vital = [(process, name) for process, name in children if name in ("raylet", "gcs_server")]
    pause = threading.Event()
    while not pause.wait(WATCH_SECONDS):
        for process, name in vital:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                log.error("Ray's %s ended, so the gateway ends; start it again", name)
                os._exit(RAY_ENDED)  # the guardian ends what is left


def stop(deadline_seconds: float) -> None:
    """Let requests in flight finish, then stop Ray, or leave the cluster.  The guardian ends what is left."""
    import ray
    from ray import serve

    if ray.is_initialized():
        draining = threading.Thread(target=serve.delete, args=[APPLICATION], daemon=True)
        draining.start()
        draining.join(deadline_seconds + SHUTDOWN_SECONDS)
        ray.shutdown()
