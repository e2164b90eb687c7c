"""A task runs a command of the project: what comes back, what it sees, and that it never outlives its task."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from dags.command import CommandFailed, environment, run
from dags.settings import ROOT
from tests.triton_process import free_ports

SECONDS = 60


@pytest.fixture
def said(tmp_path, monkeypatch):
    """Make ``python -m said`` print these lines and end with this status."""

    def make(*lines: str, errors: str = "", status: int = 0) -> str:
        printed = "".join(f"print({line!r})\n" for line in lines)
        code = f"import sys\n{printed}print({errors!r}, file=sys.stderr)\nsys.exit({status})\n"
        (tmp_path / "said.py").write_text(code, encoding="utf-8")
        return "said"

    monkeypatch.setattr("dags.command.environment", lambda: {**os.environ, "PYTHONPATH": str(tmp_path)})
    return make


def test_the_last_line_comes_back_as_what_it_is(said):
    assert run(said("reading", '{"version": 7, "stage": "Champion"}', "")) == {"version": 7, "stage": "Champion"}
    assert run(said("12")) == 12
    assert run(said("model_repository/sentiment/4")) == "model_repository/sentiment/4"
    assert run(said(errors="only a word to the log")) is None


def test_a_failure_names_the_command_its_status_and_what_it_said_last(said):
    with pytest.raises(CommandFailed) as failure:
        run(said("on the way", errors="error: version 9 is not there", status=2), "promote", 9)
    assert str(failure.value) == "python -m said promote 9 ended with status 2: error: version 9 is not there"
    assert run(said('{"alarm": "the layout changed"}', status=3), answers=(0, 3)) == {"alarm": "the layout changed"}


def test_a_command_sees_its_settings_and_no_secret_of_airflow_or_slack(monkeypatch):
    for name in (
        "NUNCHI_VAR",
        "NUNCHI_AIRFLOW_PASSWORD",
        "SLACK_WEBHOOK_TOKEN",
        "AIRFLOW_CONN_SLACK_WEBHOOK",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "x")
    seen = environment()
    assert seen["NUNCHI_VAR"] == "x"
    assert not [name for name in seen if "AIRFLOW" in name or "SLACK" in name or name == "PYTHONPATH"]


class TimeIsUp(BaseException):
    """As Airflow's AirflowTaskTimeout: raised by a signal, wherever the task is."""


def test_a_command_ends_when_its_task_runs_into_its_time_limit():
    [port] = free_ports(1)

    def stop(*_):
        raise TimeIsUp

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        threading.Thread(target=lambda: (wait(port, up=True), os.kill(os.getpid(), signal.SIGUSR1))).start()
        with pytest.raises(TimeIsUp):
            run("http.server", port, "--bind", "127.0.0.1")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not listens(port)


def test_a_command_dies_with_a_task_that_is_killed():
    [port] = free_ports(1)
    code = f"from dags.command import run; run('http.server', {port}, '--bind', '127.0.0.1')"
    task = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait(port, up=True)
    task.kill()
    task.wait()
    wait(port, up=False)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait(port: int, *, up: bool) -> None:
    deadline = time.monotonic() + SECONDS
    while listens(port) != up:
        assert time.monotonic() < deadline, f"port {port}"
        time.sleep(0.05)
