"""The shipped model on a Ray cluster of two nodes: replicas that come and go, and a node that dies under load."""

import time

import pytest

from loadtest.traffic import Oracle, Traffic
from tests.gateway.cluster_process import ClusterProcess, running_cluster
from tests.gateway.gateway_process import ROOT, wait_until
from tests.triton_process import running_triton

RATE = 50.0
BEFORE_SECONDS, AFTER_SECONDS = 10.0, 30.0
PATIENCE = 150.0


def count(cluster: ClusterProcess) -> int:
    return sum(len(cluster.replicas(node)) for node in cluster.nodes)


@pytest.mark.full
def test_figures_of_a_cluster(tmp_path, figures):
    repository = ROOT / "model_repository"
    oracle = Oracle.of(repository)
    with running_triton(repository, tmp_path / "var") as triton, running_cluster() as cluster:
        settings = {"NUNCHI_MODEL_REPOSITORY": str(repository), "NUNCHI_TRITON_GRPC_PORT": str(triton.grpc_port)}
        varying = {"NUNCHI_MAX_REPLICAS": "2", "NUNCHI_REQUESTS_PER_REPLICA": "4", "NUNCHI_SCALE_DOWN_SECONDS": "5"}
        with cluster.running_gateway(**settings, **varying):
            with Traffic(cluster.url, oracle, rate=None, callers=16) as traffic:
                began = time.monotonic()
                wait_until(
                    lambda: len(cluster.asked()) == 2 and min(cluster.asked().values()) > 0, PATIENCE, "two replicas"
                )
                figures.record(
                    "cluster: 16 callers come", "to answers of a second replica", time.monotonic() - began, "s"
                )
            began = time.monotonic()
            wait_until(lambda: count(cluster) == 1, PATIENCE, "one replica again")
            figures.record("cluster: they go", "to one replica (5 s of patience)", time.monotonic() - began, "s")
            figures.record("cluster: both", "failed", len(traffic.failures()), f"of {len(traffic.outcomes)}")
        wait_until(lambda: count(cluster) == 0, PATIENCE, "no replica")
        with cluster.running_gateway(**settings, NUNCHI_REPLICAS="2"):
            wait_until(lambda: count(cluster) == 2, PATIENCE, "two replicas")
            with Traffic(cluster.url, oracle, RATE) as traffic:
                time.sleep(BEFORE_SECONDS)
                killed = time.monotonic()
                cluster.kill("worker")
                traffic.wait_for(int(AFTER_SECONDS * RATE), killed, PATIENCE)
            lost = traffic.failures()
            assert not [outcome for outcome in traffic.outcomes if outcome.right is False]
            scenario = f"cluster: a node killed, {RATE:g} requests per second"
            last = max((outcome.due - killed for outcome in [*lost, *traffic.refusals()]), default=0.0)
            figures.record(scenario, "cut", len(lost), f"of {len(traffic.outcomes)}")
            figures.record(scenario, "refused", len(traffic.refusals()))
            figures.record(scenario, "last request not answered fell due after", max(last, 0.0), "s")
            figures.record(scenario, "p99 before", 1000 * traffic.percentile(99, before=killed), "ms")
            figures.record(scenario, "p99 in the 5 s after", 1000 * traffic.percentile(99, killed, killed + 5), "ms")
            figures.record(scenario, "slowest answer", 1000 * traffic.percentile(100, killed), "ms")
