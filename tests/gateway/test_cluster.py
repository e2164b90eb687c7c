"""The gateway on a Ray cluster, for real and in small: two nodes on this machine, each with its HAProxy."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.cluster import environment, scale
from gateway.settings import Settings
from loadtest.traffic import Oracle, Traffic
from tests.bundles import write_bundle
from tests.gateway.cluster_process import START_SECONDS, ClusterProcess, running_cluster
from tests.gateway.gateway_process import ROOT, wait_until
from tests.triton_process import TritonProcess, free_ports, running_triton

SENTENCE = {"text": "정말 재미 좋다"}
RATE = 40.0
SCALE_SECONDS = 90.0  # generous: a replica starts in three, on a machine with nothing else to do
HEALED_SECONDS = 10.0
MOST_CUT = 10


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[Path, TritonProcess]]:
    repository = tmp_path_factory.mktemp("cluster") / "model_repository"
    write_bundle(repository)
    with running_triton(repository, repository.parent / "var") as triton:
        yield repository, triton


@pytest.fixture(scope="module")
def settings(served) -> dict[str, str]:
    repository, triton = served
    return {"NUNCHI_MODEL_REPOSITORY": str(repository), "NUNCHI_TRITON_GRPC_PORT": str(triton.grpc_port)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterProcess]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def oracle(served) -> Oracle:
    return Oracle.of(served[0])


def test_the_number_of_replicas_is_fixed_unless_it_may_grow():
    assert scale(Settings(replicas=3)) == {"num_replicas": 3}
    growing = scale(Settings(replicas=2, max_replicas=5, requests_per_replica=7, scale_down_seconds=9))
    config = growing["autoscaling_config"]
    assert (config["min_replicas"], config["initial_replicas"], config["max_replicas"]) == (2, 2, 5)
    assert (config["target_ongoing_requests"], config["downscale_delay_s"]) == (7, 9)


def test_without_a_cluster_it_is_one_sentence(settings):
    (nobody,) = free_ports(1)
    cluster = ClusterProcess(None, f"127.0.0.1:{nobody}", environment(), {"head_http": free_ports(1)[0]}, {})
    gateway = cluster.start_gateway(**settings)
    assert gateway.process.wait(START_SECONDS) == 2
    (line,) = [line for line in gateway.lines if line.startswith("error: ")]
    assert f"RAY_ADDRESS is 127.0.0.1:{nobody}, where no Ray cluster answers" in line
    gateway.process.stdout.close()


def test_replicas_come_and_go_with_the_load(cluster, settings, oracle):
    varying = {"NUNCHI_MAX_REPLICAS": "2", "NUNCHI_REQUESTS_PER_REPLICA": "2", "NUNCHI_SCALE_DOWN_SECONDS": "2"}
    with cluster.running_gateway(**settings, **varying) as gateway:
        assert count(cluster) == 1
        with Traffic(cluster.url, oracle, rate=None, callers=8) as traffic:
            wait_until(lambda: count(cluster) == 2, SCALE_SECONDS, "there are two replicas")
            wait_until(lambda: len(cluster.asked()) == 2, SCALE_SECONDS, "HAProxy knows both")
            wait_until(lambda: min(cluster.asked().values()) > 20, SCALE_SECONDS, "both are asked")
        wait_until(lambda: count(cluster) == 1, SCALE_SECONDS, "there is one replica again")
        with Traffic(cluster.url, oracle, rate=RATE) as after:
            time.sleep(1)
        assert traffic.failures() + after.failures() == []
        assert gateway.stop(START_SECONDS) == 0
    wait_until(lambda: count(cluster) == 0, SCALE_SECONDS, "the gateway has left the cluster")


def count(cluster: ClusterProcess) -> int:
    return sum(len(cluster.replicas(node)) for node in cluster.nodes)


@pytest.fixture(scope="module")
def gateway(cluster, settings) -> Iterator[ClusterProcess]:
    with cluster.running_gateway(**settings, NUNCHI_REPLICAS="2", NUNCHI_ADMIN_KEY="k" * 16):
        wait_until(
            lambda: [len(cluster.replicas(node)) for node in ("head", "worker")] == [1, 1],
            START_SECONDS,
            "each node has a replica",
        )
        yield cluster


def test_two_replicas_on_two_nodes_answer_at_the_address_of_either(gateway):
    def answers(url: str) -> bool:
        answer = httpx.post(f"{url}/v1/predict", json=SENTENCE, headers={"x-request-id": "mine"}, timeout=20)
        return (answer.status_code, answer.headers.get_list("x-request-id")) == (200, ["mine"])

    for url in (gateway.url, gateway.other_url):
        wait_until(lambda url=url: answers(url), START_SECONDS, f"{url} answers")
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        bodies = {client.post("/v1/predict", json=SENTENCE).content for _ in range(20)}
        assert len(bodies) == 1
    assert len(gateway.asked()) == 2
    assert min(gateway.asked().values()) > 0


def test_errors_come_through_as_they_are(gateway):
    answer = httpx.post(f"{gateway.url}/v1/predict", json={"text": ""}, timeout=20)
    assert (answer.status_code, answer.json()["code"]) == (422, "empty_text")
    assert answer.headers["content-type"] == "application/problem+json"


def test_nobody_may_operate_where_a_request_may_be_asked_twice(gateway):
    answer = httpx.post(
        f"{gateway.url}/v1/operations", json={"what": "rollback"}, headers={"x-admin-key": "k" * 16}, timeout=20
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed")


def test_a_node_that_dies_under_load_costs_no_more_than_what_it_was_working_on(gateway, oracle):
    """The last test of this cluster: the node does not come back."""
    with Traffic(gateway.url, oracle, RATE) as traffic:
        traffic.wait_for(40, time.monotonic(), START_SECONDS)
        killed = time.monotonic()
        gateway.kill("worker")
        traffic.wait_for(int(HEALED_SECONDS * RATE), killed + HEALED_SECONDS, START_SECONDS)
    assert [outcome for outcome in traffic.outcomes if outcome.right is False] == []
    lost = traffic.failures()
    assert len(lost) <= MOST_CUT, lost
    assert all(outcome.due < killed + HEALED_SECONDS for outcome in lost), lost
    assert [len(gateway.replicas(node)) for node in ("head", "worker")] == [1, 0]


def test_a_node_without_the_variables_is_named(settings):
    """A cluster as `ray start` makes one when nobody has told it anything."""
    code = "from ray.cluster_utils import Cluster; c = Cluster(True, head_node_args={'include_dashboard': False}); "
    code += "print(c.address, flush=True); input(); c.shutdown()"
    plain = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    around = {name: value for name, value in environment().items() if "HA_PROXY" not in name} | plain
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **around},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().strip()
        cluster = ClusterProcess(process, address, environment() | plain, {"head_http": free_ports(1)[0]}, {})
        gateway = cluster.start_gateway(**settings)
        assert gateway.process.wait(START_SECONDS) == 2, gateway.output
        assert "error: node 127.0.0.1 of the cluster was started without the gateway or its variables" in gateway.output
        gateway.process.stdout.close()
    finally:
        process.communicate("\n", timeout=START_SECONDS)
