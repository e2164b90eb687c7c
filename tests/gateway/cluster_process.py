"""A real Ray cluster of two nodes on this machine, for a test: `with running_cluster() as cluster: ...`.

It lives in a process of its own, because Ray reads its environment once, and on loopback only.  The nodes have one core
each, as Ray counts them, and each has its own HAProxy, whose ports are chosen here, below those that the kernel gives
away.  As a program (`python -m tests.gateway.cluster_process PORTS`) it is that process.
"""

import csv
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.gateway.gateway_process import GatewayProcess, wait_until
from tests.triton_process import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 150
STOP_SECONDS = 60
INGRESS_PORTS = 8  # for replicas, of both nodes
# A node that is gone is noticed after two seconds, not after half a minute.
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@dataclass
class ClusterProcess:
    process: subprocess.Popen
    address: str
    environment: dict[str, str]
    ports: dict[str, int]
    nodes: dict[str, int]  # the process of each node's raylet

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['head_http']}"

    @property
    def other_url(self) -> str:
        """The same service, by the HAProxy of the other node."""
        return f"http://127.0.0.1:{self.ports['worker_http']}"

    def replicas(self, node: str) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [each for each in family(self.nodes[node]) if each.name().startswith("ray::ServeRepl")]
        return []

    def asked(self) -> dict[str, int]:
        """How many requests each replica has got from the head's HAProxy, by that HAProxy's own count."""
        page = httpx.get(f"http://127.0.0.1:{self.ports['head_stats']}/stats;csv", timeout=10).text
        rows = csv.DictReader(io.StringIO(page.removeprefix("# ")))
        return {row["svname"]: int(row["stot"]) for row in rows if row["svname"].startswith("SERVE_REPLICA")}

    def kill(self, node: str) -> None:
        """Everything that runs there, at once, as when a machine loses its power."""
        for each in family(self.nodes[node]):
            with suppress(psutil.NoSuchProcess):
                each.kill()

    def start_gateway(self, **environment: str) -> GatewayProcess:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway"],
            cwd=ROOT,
            env=self.environment
            | {"RAY_ADDRESS": self.address, "NUNCHI_GATEWAY_PORT": str(self.ports["head_http"])}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        gateway = GatewayProcess(process, self.ports["head_http"])
        threading.Thread(target=gateway._listen, daemon=True).start()
        return gateway

    @contextmanager
    def running_gateway(self, **environment: str) -> Iterator[GatewayProcess]:
        """A gateway on this cluster, ready at the head's port; taken away in the end."""
        gateway = self.start_gateway(**environment)
        try:
            gateway.wait_for_line("listening on")
            wait_until(lambda: httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200, START_SECONDS, "ready")
            yield gateway
        finally:
            with suppress(subprocess.TimeoutExpired):
                gateway.stop(STOP_SECONDS)
            gateway.process.kill()
            gateway.process.wait()
            gateway.process.stdout.close()


def family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


@contextmanager
def running_cluster() -> Iterator[ClusterProcess]:
    names = ["head_http", "head_stats", "head_metrics", "worker_http", "worker_stats", "worker_metrics", "fallback"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    first = ports_in_a_row(INGRESS_PORTS)
    with tempfile.TemporaryDirectory(prefix="nunchi-proxy-") as folder:  # short: sockets are in there
        environment = node_environment() | {
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + INGRESS_PORTS),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports["fallback"]),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["head_stats"]),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["head_metrics"]),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.cluster_process", json.dumps(ports)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        there: list[psutil.Process] = []
        try:
            told = json.loads(next(line for line in process.stdout if line.startswith("{")))
            cluster = ClusterProcess(process, told["address"], environment, ports, told["nodes"])
            there = family(process.pid)
            yield cluster
            there += family(process.pid)
        finally:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=STOP_SECONDS)  # the end of its input
            process.kill()
            process.wait()
            for each in there:
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def ports_in_a_row(count: int) -> int:
    """The first of so many free ports with nothing between them."""
    found = free_ports(count)
    while found != list(range(found[0], found[0] + count)):
        found = free_ports(count)
    return found[0]


def node_environment() -> dict[str, str]:
    """What `python -m gateway.cluster` has a node started with; on loopback only, and with a secret all the same."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NUNCHI_", "RAY_"))}
    command = [sys.executable, "-m", "gateway.cluster"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    exported = subprocess.run(
        ["bash", "-euc", f"{said.stdout}env -0"], env=inherited, capture_output=True, text=True, check=True
    ).stdout
    return dict(each.split("=", 1) for each in exported.split("\0") if each) | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def main(ports: dict[str, int]) -> None:
    """Start the nodes, print where they are, and stop them when standard input ends."""
    from ray.cluster_utils import Cluster

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which then ends our input
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": SOON}
    )
    own = {
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(ports["worker_http"]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["worker_stats"]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["worker_metrics"]),
    }
    worker = cluster.add_node(num_cpus=1, env_vars=own)
    nodes = {"head": raylet(cluster.head_node), "worker": raylet(worker)}
    print(json.dumps({"address": cluster.address, "nodes": nodes}), flush=True)
    sys.stdin.read()
    with suppress(Exception):  # a node may have been killed
        cluster.shutdown()


def raylet(node: object) -> int:
    return node.all_processes["raylet"][0].process.pid


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
