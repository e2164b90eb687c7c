"""The gateway on a Ray cluster: several replicas on several nodes, one address, Serve's HAProxy on every node.

    eval "$(python -m gateway.cluster)"              on each node, before `ray start`: the variables it needs
    RAY_ADDRESS=… python -m gateway                  brings the gateway to that cluster, and takes it away in the end
    import_path: gateway.cluster:application         what a RayService names (deploy/k8s)

Clients ask any node at NUNCHI_GATEWAY_PORT.  HAProxy sends a request to the replica with the fewest connections, on
whatever node.  When that replica goes without a word, HAProxy asks another one: a prediction changes nothing, so it may
be asked twice.  Operations may not, so nobody may operate here, whatever NUNCHI_ADMIN_KEY says; releases are commands.

All nodes see the same model repository, each replica by itself: they turn to a new version within a tenth of a second
of each other, and one answer comes from one version all the same.  `/metrics` and the limits of a candidate are of one
replica.
"""

import asyncio
import logging
import os
import shlex
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from gateway.app import create_app
from gateway.bundle import read_bundle
from gateway.errors import CannotStart
from gateway.keys import Keys
from gateway.listener import stand_behind_the_proxy
from gateway.log import configure_log
from gateway.serve import (
    APPLICATION,
    QUIET,
    SHUTDOWN_SECONDS,
    Stop,
    check_triton,
    common_environment,
    deploy,
    deployment,
    hidden,
    stop_on_signals,
)
from gateway.settings import Settings, read_settings

if TYPE_CHECKING:
    from ray.serve import Application

UPSCALE_SECONDS = 3.0  # for which more replicas have to be wanted
CONNECT_SECONDS = 5.0
DRAIN_SECONDS = 5  # in which every HAProxy has heard that a replica goes
ASK_SECONDS = 60.0  # a node for what it was started with

BEHIND_HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_SECONDS),
}

log = logging.getLogger("gateway")


def environment() -> dict[str, str]:
    """What every process of the cluster has to find in its environment, from `ray start` on."""
    return common_environment() | BEHIND_HAPROXY


def application(arguments: dict[str, str] | None = None) -> "Application":
    """The gateway with the settings of the node that builds it, for Serve's `import_path`; takes no arguments."""
    return application_of(read_settings())


def application_of(settings: Settings) -> "Application":
    settings = settings.model_copy(update={"admin_key": None})
    # One event loop keeps one core busy, so the nodes have as many replicas as cores at most.
    return deployment(settings, lambda: replica_app(settings), num_cpus=1, **scale(settings))


def scale(settings: Settings) -> dict[str, object]:
    """How many replicas, as Serve wants to be told."""
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": settings.replicas,
            "initial_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.requests_per_replica,
            "upscale_delay_s": UPSCALE_SECONDS,
            "downscale_delay_s": settings.scale_down_seconds,
        }
    }


def replica_app(settings: Settings) -> ASGIApp:
    """The application, built in the replica, whose stderr Ray keeps."""
    configure_log(sys.stderr, settings.log_format)
    app = create_app(settings, read_bundle(settings.repository))
    stand_behind_the_proxy(app.state.doorman)
    return hidden(app)


def run(settings: Settings) -> int:
    """Serve on the cluster of RAY_ADDRESS until a signal comes; CannotStart for what the user must fix."""
    with suppress(Stop):
        stop_on_signals()
        configure_log(sys.stderr, settings.log_format)
        Keys(settings.api_key, settings.keys_path)  # so that a file that will not do is refused here
        asyncio.run(check_triton(settings, read_bundle(settings.repository)))
        os.environ.update(environment())
        # Imported here because Ray reads its environment while it is imported.
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            join(settings)
            stop_on_signals()  # again, because Ray has put in its own
            address = {"host": settings.host, "port": settings.gateway_port}
            serve.start(proxy_location="EveryNode", http_options=address, logging_config=QUIET)
            deploy(application_of(settings))
            nodes = sum(node["Alive"] for node in ray.nodes())
            log.info("listening on port %d of %d nodes (docs at /docs)", settings.gateway_port, nodes)
            threading.Event().wait()
        finally:
            leave(settings.deadline_seconds)
    return 0


def join(settings: Settings) -> None:
    """CannotStart where no cluster is, or one of its nodes was started without what `environment` says."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    host, _, port = settings.ray_address.rpartition(":")
    try:
        if port.isdigit():  # Ray itself would go on trying for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=settings.ray_address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        raise CannotStart(
            f"RAY_ADDRESS is {settings.ray_address}, where no Ray cluster answers ({error}); start one there with "
            "`ray start`, or unset RAY_ADDRESS to serve on this machine alone"
        ) from error
    switch, *_ = BEHIND_HAPROXY.items()

    def looks_as_it_should() -> bool:  # defined here, so that Ray sends it along: a node may lack this module
        import importlib.util
        import os

        return os.environ.get(switch[0]) == switch[1] and importlib.util.find_spec("gateway") is not None

    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))(
            looks_as_it_should
        ).remote()
        for node in nodes
    ]
    for node, answer in zip(nodes, ray.get(asked, timeout=ASK_SECONDS), strict=True):
        if not answer:
            raise CannotStart(
                f"node {node['NodeManagerAddress']} of the cluster was started without the gateway or its variables; "
                'run `eval "$(python -m gateway.cluster)"` there before `ray start`'
            )


def leave(deadline_seconds: float) -> None:
    """Take the gateway from the cluster once what is in flight is answered, and Serve too when nobody else uses it."""
    import ray
    from ray import serve

    def take_away() -> None:
        serve.delete(APPLICATION)
        if not serve.status().applications:
            serve.shutdown()

    if ray.is_initialized():
        taking_away = threading.Thread(target=take_away, daemon=True)
        taking_away.start()
        taking_away.join(deadline_seconds + DRAIN_SECONDS + SHUTDOWN_SECONDS)
        ray.shutdown()


if __name__ == "__main__":
    for name, value in environment().items():
        print(f"export {name}={shlex.quote(value)}")
