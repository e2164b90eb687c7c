"""The running stack: clients that leave, the measurement of its overhead, and what it answers.

What happens when its processes are killed or stand still is in tests/chaos/test_faults.py.
"""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "model_repository"
SERVED = str(json.loads((MODELS / "serving.json").read_text(encoding="utf-8"))["version"])
MANIFEST = json.loads((MODELS / "sentiment" / SERVED / "manifest.json").read_text(encoding="utf-8"))


def test_a_client_that_hangs_up_frees_its_place(running):
    """Through Ray's own server: a batch of long texts is abandoned, and nothing is in flight soon after."""

    def in_flight() -> float:
        metrics = httpx.get(f"{running.url}/metrics", timeout=30).text
        return float(re.search(r"^nunchi_gateway_in_flight_texts (\S+)", metrics, re.MULTILINE)[1])

    body = json.dumps({"texts": ["정말 재미있는 영화였다 " * 25] * 1000}, ensure_ascii=False).encode()
    head = (
        "POST /v1/predict/batch HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {len(body)}",
    )
    with socket.create_connection(("127.0.0.1", running.ports["GATEWAY_PORT"])) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        deadline = time.monotonic() + 20
        while in_flight() < 1000:
            assert time.monotonic() < deadline, "the batch was never let in"
    hung_up = time.monotonic()
    while in_flight() > 0:
        assert time.monotonic() < hung_up + 5, "the place of a client that left was not freed"
        time.sleep(0.02)


def test_the_overhead_measurement_runs_against_a_running_stack(running):
    command = [sys.executable, "-m", "loadtest.overhead", "--requests", "20"]
    done = subprocess.run(command, cwd=ROOT, env=running.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^added    p50 +-?[\d.]+ ms$", done.stdout, re.MULTILINE)


def test_without_a_stack_the_overhead_measurement_says_so_in_one_line(stack):
    command = [sys.executable, "-m", "loadtest.overhead", "--requests", "20"]
    done = subprocess.run(command, cwd=ROOT, env=stack.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: the stack does not answer .*; start it with make up\n", done.stderr)


def test_rows_of_a_batch_equal_the_single_answers(running):
    texts = [row["text"] for row in MANIFEST["golden"]]
    with httpx.Client(base_url=running.url, timeout=30) as client:
        batch = client.post("/v1/predict/batch", json={"texts": texts, "return_probs": True}).json()["predictions"]
        for row, text in zip(batch, texts, strict=True):
            single = client.post("/v1/predict", json={"text": text, "return_probs": True}).json()
            assert row["probs"]["positive"] == pytest.approx(
                single["probs"]["positive"], abs=MANIFEST["parity"]["batch_probability_tolerance"]
            )


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("진짜 재밌어요 ㅋㅋㅋㅋ 강추!!", "긍정"),
        ("돈 아깝다 시간 낭비 최악", "부정"),
        ("<b>인생 영화</b>입니다 👍👍", "긍정"),
        ("지루해서 졸았음ㅠㅠ 노잼 😴", "부정"),
        ("정말 감동적이고 여운이 남는 명작", "긍정"),
        ("스토리도 엉망이고 연기도 별로", "부정"),
    ],
)
def test_plain_feelings_are_read_right(running, text, label):
    assert httpx.post(f"{running.url}/v1/predict", json={"text": text}, timeout=30).json()["label"] == label
