"""`python -m gateway` as a program: what it refuses, what it survives, and what it leaves behind (nothing)."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.bundles import set_serving, write_bundle
from tests.gateway.gateway_process import GatewayProcess, running_gateway, start_gateway, wait_until
from tests.gateway.triton_parts import stopped_triton
from tests.triton_process import free_ports

STOP_SECONDS = 15
FOREIGN_RAY = """
import ray, sys
ray.init(address="local", num_cpus=0, include_dashboard=False, log_to_driver=False)
@ray.remote(num_cpus=0)
def lives(): return "lives"
for line in sys.stdin:
    print(ray.get(lives.remote()), flush=True)
"""


def predict(gateway: GatewayProcess) -> int:
    return httpx.post(f"{gateway.url}/v1/predict", json={"text": "영화"}, timeout=10).status_code


def metrics(gateway: GatewayProcess) -> str:
    return httpx.get(f"{gateway.url}/metrics", timeout=10).text


def folder_of(gateway: GatewayProcess) -> Path:
    return Path(tempfile.gettempdir()) / f"nunchi-ray-{gateway.process.pid}"


def assert_all_gone(gateway: GatewayProcess, family: list[psutil.Process], seconds: float) -> None:
    """Every process ended, the port free, no shared memory, no folder."""
    deadline = time.monotonic() + seconds
    gateway.process.wait(seconds)
    _, alive = psutil.wait_procs(family[1:], timeout=deadline - time.monotonic())
    assert not alive, [each.cmdline()[:3] for each in alive]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", gateway.port))
    assert not [each for each in Path("/dev/shm").glob("plasma*") if not opened_by_somebody(each)]


def opened_by_somebody(file: Path) -> bool:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(mapping.path == str(file) for mapping in process.memory_maps()):
                return True
    return False


def refused(gateway: GatewayProcess) -> str:
    """The one line with which it ended."""
    assert gateway.process.wait(60) == 2
    wait_until(lambda: gateway._ended, 10, "its output ends")
    gateway.process.stdout.close()
    (line,) = [each for each in gateway.lines if each.startswith("error: ")]
    assert "Traceback" not in gateway.output
    return line


def test_a_broken_bundle_is_one_line_and_exit_status_2(repository):
    set_serving(repository, 7)
    line = refused(start_gateway(repository, free_ports(1)[0]))
    assert "names version 7" in line


def test_a_triton_with_other_labels_is_one_line_and_exit_status_2(tmp_path, shared_triton):
    write_bundle(tmp_path, labels=3)
    line = refused(start_gateway(tmp_path, shared_triton.grpc_port))
    assert "reports the outputs logits FP32[-1, 2]" in line and "its manifest says logits FP32[-1, 3]" in line


def test_a_bad_setting_is_one_line_and_exit_status_2(repository):
    line = refused(start_gateway(repository, 1, NUNCHI_DEADLINE_SECONDS="soon"))
    assert "NUNCHI_DEADLINE_SECONDS is 'soon'" in line


def test_a_port_in_use_is_one_line_and_exit_status_2(repository):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused(start_gateway(repository, 1, NUNCHI_GATEWAY_PORT=str(port)))
    assert f"cannot listen on 127.0.0.1:{port}" in line and "NUNCHI_GATEWAY_PORT" in line


@pytest.fixture
def foreign_ray():
    """Somebody else's Ray on this machine."""
    process = subprocess.Popen(
        [sys.executable, "-c", FOREIGN_RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )

    def lives() -> bool:
        process.stdin.write(b"?\n")
        process.stdin.flush()
        return process.stdout.readline() == b"lives\n"

    assert lives()
    yield lives
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


def test_a_killed_replica_is_replaced_and_sigterm_ends_everything_of_ours_and_nothing_else(
    shared_repository, shared_triton, foreign_ray
):
    with running_gateway(shared_repository, shared_triton.grpc_port) as gateway:
        assert predict(gateway) == 200
        first = gateway.replica()
        first.kill()
        psutil.wait_procs([first], timeout=10)
        wait_until(lambda: predict(gateway) == 200, 60, "the new replica answers on the same port")
        assert gateway.replica().pid != first.pid
        listeners = {
            connection.laddr.ip
            for process in gateway.family()
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listeners <= {"127.0.0.1", "::ffff:127.0.0.1", "::"}  # "::" is Serve's own, which asks for the token
        family = gateway.family()
        assert len(family) > 5
        started = time.monotonic()
        with ThreadPoolExecutor(1) as client:
            with stopped_triton(shared_triton):
                under_way = client.submit(predict, gateway)
                wait_until(lambda: "in_flight_texts 1.0" in metrics(gateway), 5, "a request is under way")
                gateway.process.terminate()
                time.sleep(1)
            assert under_way.result() == 200  # it was waited for
        assert gateway.stop() == 0
        assert time.monotonic() - started < STOP_SECONDS
        assert_all_gone(gateway, family, seconds=1)
        assert not folder_of(gateway).exists()
        assert foreign_ray()


def test_on_every_address_only_the_gateways_own_port_is_open(shared_repository, shared_triton):
    """Ray Serve's proxy, which knows no key, stays on loopback."""
    settings = {"NUNCHI_HOST": "0.0.0.0", "NUNCHI_API_KEY": "a-key-of-the-tests"}
    with running_gateway(shared_repository, shared_triton.grpc_port, **settings) as gateway:
        open_to_others = {
            connection.laddr.port
            for process in gateway.family()
            for connection in process.net_connections("tcp4")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.ip == "0.0.0.0"
        }
    assert open_to_others == {gateway.port}


@pytest.mark.parametrize("victim", ["guardian", "serving process", "raylet"])
def test_whatever_is_killed_nothing_outlives_the_gateway(shared_repository, shared_triton, victim):
    with running_gateway(shared_repository, shared_triton.grpc_port) as gateway:
        family = gateway.family()
        if victim == "raylet":
            victims = [each for each in family if each.name() == "raylet"]
        else:
            victims = [family[0] if victim == "guardian" else psutil.Process(family[0].pid).children()[0]]
        victims[0].kill()
        assert_all_gone(gateway, family, seconds=STOP_SECONDS)
        assert gateway.process.wait(5) != 0
    shutil.rmtree(folder_of(gateway), ignore_errors=True)


def test_a_signal_while_it_starts_ends_it_too(shared_repository, shared_triton):
    gateway = start_gateway(shared_repository, shared_triton.grpc_port)
    wait_until(lambda: any(each.name() == "raylet" for each in gateway.family()), 60, "Ray is starting")
    family = gateway.family()
    os.kill(gateway.process.pid, signal.SIGINT)
    gateway.process.wait(STOP_SECONDS)
    assert_all_gone(gateway, family, seconds=1)
    gateway.process.stdout.close()
