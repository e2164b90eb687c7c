"""Locust's users against the real stack: every door, every shape, and the exit status."""

import csv
import re
import subprocess
import sys
import time

import pytest

from tests.stack_process import ROOT
from tests.triton_process import free_ports

FILES = "loadtest/locustfile.py"


def locust(environment: dict[str, str], user: str, *options: str, files: str = FILES) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "locust", "-f", files, user, "--headless", "--only-summary", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def row(prefix, name: str) -> dict[str, str]:
    """Of the statistics that Locust wrote."""
    with open(f"{prefix}_stats.csv", newline="", encoding="utf-8") as file:
        return next(row for row in csv.DictReader(file) if row["Name"] == name)


@pytest.mark.parametrize("user", ["GatewaySingle", "GatewayBatch", "TritonGrpc", "TritonHttp"])
def test_each_user_is_answered_in_a_closed_loop(running, tmp_path, user):
    done = locust(running, user, "-u", "4", "-r", "100", "-t", "1s", "--batch", "16", "--csv", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    stats = row(tmp_path / "run", user)
    assert int(stats["Request Count"]) > 0
    assert stats["Failure Count"] == "0"
    splits = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("split")]
    assert splits == (["tokenization", "queue", "inference", "total"] if user.startswith("Gateway") else [])


def test_arrivals_come_at_their_rate_and_steps_go_one_after_the_other(running, tmp_path):
    texts = tmp_path / "mine.txt"
    texts.write_text("정말 좋다\n지루 하다\n", encoding="utf-8")
    options = ["--arrivals", "20", "--steps", "1,3", "--step-seconds", "1.5", "--texts", str(texts)]
    options += ["--csv", str(tmp_path / "run")]
    began = time.monotonic()
    done = locust(running, "GatewaySingle", *options, files=f"{FILES},loadtest/steps.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"Ramping to (\d+) users", done.stderr) == ["1", "3"]
    # 20 a second of each user and never more, however fast the answers are: waiting callers would ask several hundred
    assert 0 < int(row(tmp_path / "run", "GatewaySingle")["Request Count"]) <= 3 * 20 * (time.monotonic() - began)


def test_a_p95_beyond_the_limit_ends_with_one(running):
    done = locust(running, "TritonGrpc", "-u", "1", "-t", "1s", "--max-p95", "0.001")
    assert done.returncode == 1
    assert "failed: p95 is " in done.stdout


def test_failures_end_with_one_unless_so_many_are_allowed(running):
    closed = running | {"NUNCHI_GATEWAY_PORT": str(free_ports(1)[0])}
    options = ["-u", "1", "-t", "1s", "--arrivals", "5"]
    done = locust(closed, "GatewaySingle", *options, "--max-failures", "0.99")
    assert done.returncode == 1
    assert "failed: 100.00% of the requests failed, 99.00% may" in done.stdout
    assert locust(closed, "GatewaySingle", *options, "--max-failures", "1").returncode == 0


def test_a_file_without_texts_is_one_sentence(running, tmp_path):
    (tmp_path / "empty.tsv").write_text("id\tdocument\n1\t\n", encoding="utf-8")
    done = locust(running, "GatewaySingle", "-t", "1s", "--texts", str(tmp_path / "empty.tsv"))
    assert done.returncode != 0
    assert "empty.tsv has no text; write one per line, or a TSV with a column document or text" in done.stderr
