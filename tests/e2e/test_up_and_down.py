"""`make up` and `make down`: what they print, and that nothing stays behind, however they end."""

import json
import signal
import socket
import subprocess
import time

import httpx
import psutil
import pytest

from tests.gateway.gateway_process import wait_until
from tests.stack_process import ROOT, printed_curl

SERVED = str(json.loads((ROOT / "model_repository" / "serving.json").read_text(encoding="utf-8"))["version"])


def wait_until_clean(stack, seconds=20):
    deadline = time.monotonic() + seconds
    while any(stack.leftovers().values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert stack.leftovers() == {"processes": [], "shm": [], "ports": []}


def test_up_answers_the_curl_line_that_it_prints_and_ctrl_c_leaves_nothing(stack):
    stack.start()
    output = stack.wait_ready()
    answer = subprocess.run(["bash", "-c", printed_curl(output)], capture_output=True, text=True, check=True)
    prediction = json.loads(answer.stdout)
    assert prediction["label"] == "긍정"
    assert prediction["model_version"] == SERVED
    for address, title in ((stack.page_url, "눈치"), (f"{stack.page_url}/en", "Nunchi")):
        assert address in output
        assert title in httpx.get(address, follow_redirects=True, timeout=30).text
    assert len(stack.started) >= 5  # the server, Triton, its stub, the gateway, Ray's, and the page
    with httpx.stream("GET", f"{stack.page_url}/gradio_api/heartbeat/of-a-browser", timeout=30) as stream:
        assert stream.status_code == 200  # which Gradio's pages keep open as long as they are looked at
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(60) == 0, stack.output
    assert "killing it" not in stack.output
    wait_until_clean(stack)


def test_down_stops_what_up_started_and_says_so(stack):
    stack.start()
    stack.wait_ready()
    down = subprocess.run(stack.command("down"), cwd=ROOT, env=stack.environment, capture_output=True, text=True)
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    wait_until_clean(stack)
    again = subprocess.run(stack.command("down"), cwd=ROOT, env=stack.environment, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, "nothing is running\n")


def test_up_works_again_at_once_although_clients_held_connections_open(stack):
    """Connections that the server closes stay in TIME_WAIT for a minute; the next stack must get the port anyway."""
    stack.start()
    stack.wait_ready()
    with httpx.Client(base_url=stack.url, timeout=30) as client:
        assert client.post("/v1/predict", json={"text": "좋은 영화"}).status_code == 200
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(60) == 0
    stack.start()
    stack.wait_ready()
    assert httpx.post(f"{stack.url}/v1/predict", json={"text": "좋은 영화"}, timeout=30).status_code == 200


def test_even_kill_9_of_up_leaves_nothing(stack):
    stack.start()
    stack.wait_ready()
    stack.process.kill()
    stack.process.wait()
    wait_until_clean(stack, seconds=40)


def test_a_second_up_is_refused_while_the_first_runs(running):
    second = subprocess.run(running.command("up"), cwd=ROOT, env=running.environment, capture_output=True, text=True)
    assert second.returncode == 2
    assert second.stderr == (
        f"error: the stack is running already as process {running.process.pid}; stop it with make down\n"
    )


def test_a_killed_part_is_started_again(running):
    (gateway,) = [process for process in running.descendants("-m gateway") if process.ppid() == running.process.pid]
    gateway.kill()
    psutil.wait_procs([gateway], timeout=10)
    deadline = time.monotonic() + 60
    while subprocess.run(["bash", "-c", printed_curl(running.output)], capture_output=True).returncode != 0:
        assert time.monotonic() < deadline, running.output
        time.sleep(0.5)
    assert "gateway ended with status -9; starting it again" in running.output


def test_a_killed_page_is_started_again(running):
    (page,) = running.descendants("-m ui")
    page.kill()
    psutil.wait_procs([page], timeout=10)
    wait_until(lambda: httpx.get(running.page_url, timeout=30).status_code == 200, 60, "the page opens")
    assert "ui ended with status -9; starting it again" in running.output


def refusal(stack) -> str:
    """The one line with which `up` ends."""
    stack.start()
    assert stack.process.wait(120) == 2, stack.output
    last = stack.output.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in stack.output
    return last


@pytest.mark.parametrize("port", ["TRITON_GRPC_PORT", "GATEWAY_PORT", "UI_PORT"])
def test_a_port_in_use_is_one_sentence_with_the_setting_that_moves_it(stack, port):
    with socket.create_server(("127.0.0.1", stack.ports[port])):
        sentence = refusal(stack)
    assert str(stack.ports[port]) in sentence
    assert f"NUNCHI_{port}" in sentence
    wait_until_clean(stack)


def test_a_broken_bundle_is_one_sentence(stack):
    (model,) = stack.repository.glob("sentiment/*/model.onnx")
    model.write_bytes(model.read_bytes()[:-1000])
    sentence = refusal(stack)
    assert "model.onnx" in sentence
    wait_until_clean(stack)


def test_a_wrong_setting_is_one_sentence(stack):
    stack.ports["GATEWAY_PORT"] = 99999
    assert refusal(stack).startswith("error: NUNCHI_GATEWAY_PORT is '99999'")
