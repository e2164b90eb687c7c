"""Faults under traffic: callers get the right answer, or 503 with Retry-After; never a hang, never a wrong answer."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "model_repository"
SERVED = str(json.loads((MODELS / "serving.json").read_text(encoding="utf-8"))["version"])
MANIFEST = json.loads((MODELS / "sentiment" / SERVED / "manifest.json").read_text(encoding="utf-8"))


class Traffic:
    """Callers that ask golden rows one after another and keep what came back."""

    def __init__(self, url: str, callers: int = 4):
        self.url = url
        self.outcomes: list[tuple[float, int, bool]] = []  # when, status, whether right (or refused as promised)
        self.slowest = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(callers)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self._stop.is_set():
                row = MANIFEST["golden"][number % len(MANIFEST["golden"])]
                number += 1
                began = time.monotonic()
                answer = client.post("/v1/predict", json={"text": row["text"], "return_probs": True})
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.outcomes.append((time.monotonic(), answer.status_code, self._kept_promise(answer, row)))
                time.sleep(0.02)

    @staticmethod
    def _kept_promise(answer: httpx.Response, row: dict) -> bool:
        if answer.status_code != 200:
            return answer.status_code in (503, 504) and (answer.status_code == 504 or "retry-after" in answer.headers)
        given = [answer.json()["probs"][label["name"]] for label in MANIFEST["labels"]]
        shifts = [abs(a - b) for a, b in zip(given, row["probabilities"], strict=True)]
        return max(shifts) <= MANIFEST["golden_probability_tolerance"]

    def wait_for_answers(self, after: float, count: int, seconds: float) -> float:
        """Seconds from ``after`` to the last of ``count`` answers with status 200 that came later."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            good = [when for when, status, _ in list(self.outcomes) if when > after and status == 200]
            if len(good) >= count:
                return good[count - 1] - after
            time.sleep(0.05)
        raise AssertionError(f"no {count} answers within {seconds} s: {self.outcomes[-20:]}")


@pytest.mark.parametrize("victim", ["triton_python_backend_stub", "bin/tritonserver"])
def test_killing_the_stub_or_triton_under_traffic_heals_within_ten_seconds(running, victim):
    with Traffic(running.url) as traffic:
        traffic.wait_for_answers(time.monotonic(), 40, seconds=20)
        victims = running.descendants(victim)
        assert victims
        killed = time.monotonic()
        for process in victims:
            process.kill()
        while not any(when > killed and status == 503 for when, status, _ in traffic.outcomes):
            assert time.monotonic() < killed + 10, "nobody noticed that it was dead"
            time.sleep(0.02)
        noticed = max(when for when, status, _ in traffic.outcomes if status == 503)
        traffic.wait_for_answers(noticed, 40, seconds=10 - (noticed - killed))
    assert {status for _, status, _ in traffic.outcomes} <= {200, 503, 504}
    assert all(kept for _, _, kept in traffic.outcomes)
    assert traffic.slowest < 16  # the gateway's deadline, and the way there and back


def test_a_killed_gateway_replica_is_replaced_on_the_same_port(running):
    (replica, *_) = [process for process in running.descendants("ray::") if "Replica" in " ".join(process.cmdline())]
    replica.kill()
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx.post(f"{running.url}/v1/predict", json={"text": "좋은 영화"}, timeout=5).status_code == 200:
                break
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)


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
