"""`make airflow`: its account, where it listens, what it leaves behind; and the .env in which its password is kept."""

import json
import os
import signal
import stat
import subprocess
import time
import urllib.error
import urllib.request

import pandas as pd
import psutil
import pytest

from dags.__main__ import PASSWORD, environment, keep_new_password
from dags.settings import Settings, read_settings
from tests.dags.airflow_home import PYTHON, ROOT, Airflow
from tests.review_site import ReviewSite, made_up_reviews
from tests.triton_process import free_ports

SECONDS = 300


class Served:
    """A running ``make airflow``."""

    def __init__(self, airflow: Airflow, port: int) -> None:
        self.airflow = airflow
        self.url = f"http://127.0.0.1:{port}"
        self.token: str | None = None
        self.log = airflow.var / "served.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [PYTHON, "-m", "dags"], cwd=ROOT, env=airflow.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def ask(self, path: str, body: dict | None = None) -> tuple[int, dict]:
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {self.token}"} if self.token else {}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, {}

    def wait(self, what: str, until) -> None:
        deadline = time.monotonic() + SECONDS
        while not until():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, f"{what}: {self.log.read_text()[-4000:]}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Three days of reviews, ten each, the last on 3 November."""
    with ReviewSite(made_up_reviews(30, newest="2026-11-03", per_day=10)) as site:
        site.file = site.describe(tmp_path_factory.mktemp("site") / "site.yaml", name="days")
        yield site


@pytest.fixture(scope="module")
def served(tmp_path_factory, site):
    [port] = free_ports(1)
    settings = {"NUNCHI_AIRFLOW_PORT": str(port), "NUNCHI_COLLECT_SITES": str(site.file)}
    settings |= {PASSWORD: "a-password-of-the-test", "NUNCHI_RETRAIN_REVIEWS": "20"}
    served = Served(Airflow(tmp_path_factory.mktemp("served"), settings), port)
    try:
        served.wait("ready", lambda: "ready: " in served.log.read_text())
        served.status, answer = served.ask("/auth/token", {"username": "nunchi", "password": "a-password-of-the-test"})
        served.token = answer.get("access_token")
        served.wait("the DAGs are read", lambda: len(served.ask("/api/v2/dags")[1].get("dags", [])) == 3)
        yield served
    finally:
        served.process.send_signal(signal.SIGTERM)
        try:
            served.process.wait(120)
        finally:
            served.process.kill()


@pytest.mark.timeout(600)
def test_who_knows_the_password_gets_in_and_admin_admin_does_not(served):
    assert served.status == 201
    assert served.ask("/auth/token", {"username": "admin", "password": "admin"})[0] == 401
    assert served.ask("/auth/token", {"username": "nunchi", "password": "nunchi"})[0] == 401
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(served.url + "/api/v2/dags", timeout=60)
    dags = {dag["dag_id"]: dag for dag in served.ask("/api/v2/dags")[1]["dags"]}
    assert set(dags) == {"collect_reviews", "retrain", "release"}
    assert all(dag["is_paused"] for dag in dags.values())  # nothing runs before somebody says so


def test_it_listens_on_loopback_only_and_its_passwords_are_its_owners(served):
    family = [psutil.Process(served.process.pid), *psutil.Process(served.process.pid).children(recursive=True)]
    listening = {
        connection.laddr.ip for each in family for connection in each.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }  # fmt: skip
    assert listening <= {"127.0.0.1", "::1"}
    file = served.airflow.var / "airflow" / "passwords.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "a-password-of-the-test" not in served.log.read_text()


def collected(airflow: Airflow) -> dict[str, list[str]]:
    """The ids of the reviews by day."""
    files = sorted((airflow.var / "collected").glob("site=days/day=*/*.parquet"))
    return {file.parent.name.removeprefix("day="): pd.read_parquet(file).review_id.tolist() for file in files}


@pytest.mark.timeout(900)
def test_a_backfill_by_days_collects_each_once_and_done_again_changes_nothing(served, site):
    """By the scheduler, as a user asks for it; what it brings is enough for a retraining, which is told once."""
    airflow, days = served.airflow, ("2026-11-01", "2026-11-02")
    assert airflow.command("dags", "unpause", "collect_reviews").returncode == 0

    def back_fill(*options: str) -> None:
        dates = ["--from-date", days[0], "--to-date", days[-1], "--max-active-runs", "1"]
        done = airflow.command("backfill", "create", "--dag-id", "collect_reviews", *dates, *options)
        assert done.returncode == 0, done.stderr
        served.wait("the backfill", lambda: not airflow.ask("SELECT id FROM backfill WHERE completed_at IS NULL"))
        states = airflow.ask("SELECT state FROM dag_run WHERE run_type = 'backfill'")
        assert states == [("success",)] * len(days), states

    back_fill()
    first = collected(airflow)
    wanted = {day: {each.review_id for each in site.reviews if each.written_at.startswith(day)} for day in days}
    assert {day: set(ids) for day, ids in first.items()} == wanted
    assert [len(ids) for ids in first.values()] == [10, 10]
    back_fill("--reprocess-behavior", "completed")
    assert collected(airflow) == first
    events = "SELECT asset.name, event.extra FROM asset_event event JOIN asset ON asset.id = event.asset_id"
    told = [(name, json.loads(extra)) for name, extra in airflow.ask(f"{events} ORDER BY event.id")]
    news = ("nunchi-reviews", {"new": 10})
    assert told == [news, news, ("nunchi-enough-reviews", {})]


@pytest.mark.timeout(900)
def test_a_registration_starts_the_release_of_that_version(served):
    """There is no version 7, so it comes as far as the gates: a promotion that fails leaves nothing to roll back."""
    airflow = served.airflow
    assert airflow.command("dags", "unpause", "release").returncode == 0
    [(asset,)] = airflow.ask("SELECT id FROM asset WHERE name = 'nunchi-candidate'")
    assert served.ask("/api/v2/assets/events", {"asset_id": asset, "extra": {"version": 7}})[0] == 200
    ended = "SELECT state FROM dag_run WHERE dag_id = 'release' AND state NOT IN ('queued', 'running')"
    served.wait("the release", lambda: airflow.ask(ended))
    run = airflow.last_run("release")
    assert (run.state, run.handed_on) == ("failed", {"candidate": 7})
    never = dict.fromkeys(("gates", "tell_refused", "export", "smoke", "tell_promoted"), "upstream_failed")
    assert run.tasks == {"candidate": "success", "promote": "failed", "roll_back": "skipped", **never}


def test_it_ends_when_told_and_leaves_no_process_behind(served):
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert len(family) >= 3
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(120) == 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_a_password_is_made_once_and_kept_where_only_its_owner_reads(tmp_path):
    file = tmp_path / ".env"
    file.write_text("NUNCHI_GATEWAY_PORT=9000")
    file.chmod(0o644)
    password = keep_new_password(file)
    assert len(password) >= 32
    assert file.read_text() == f"NUNCHI_GATEWAY_PORT=9000\n{PASSWORD}={password}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shell = f"set -a; . {file}; set +a; printf %s ${PASSWORD}"
    assert subprocess.run(["bash", "-c", shell], capture_output=True, text=True).stdout == password
    assert keep_new_password(tmp_path / "other") != password


def test_a_short_password_is_refused_without_being_shown(airflow):
    refused = Airflow(airflow.var, {PASSWORD: "admin"}).command("version")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: NUNCHI_AIRFLOW_PASSWORD: it has fewer than 16 characters; unset it, and make airflow makes one\n"
    )


def test_the_slack_connection_is_made_of_a_token_or_an_address(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("NUNCHI_", "SLACK_", "AIRFLOW"))]:
        monkeypatch.delenv(name)
    assert "AIRFLOW_CONN_SLACK_WEBHOOK" not in environment(read_settings())
    monkeypatch.setenv("SLACK_WEBHOOK_TOKEN", "T0/B0/x")
    variables = environment(read_settings())
    assert json.loads(variables["AIRFLOW_CONN_SLACK_WEBHOOK"]) == {"conn_type": "slackwebhook", "password": "T0/B0/x"}
    assert "SLACK_WEBHOOK_TOKEN" not in variables
    monkeypatch.setenv("SLACK_WEBHOOK_URL", "http://127.0.0.1:9/services/T1/B1/y")
    assert "T1/B1/y" in environment(read_settings())["AIRFLOW_CONN_SLACK_WEBHOOK"]


def test_a_setting_of_airflow_that_is_set_already_stands(monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "16")
    monkeypatch.setenv("AIRFLOW_HOME", "/somebody/elses")
    variables = environment(Settings())
    assert variables["AIRFLOW__CORE__PARALLELISM"] == "16"
    assert variables["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].endswith(
        "/airflow/airflow.db?timeout=120"
    )  # not SQLite's 5 s
    assert variables["AIRFLOW_HOME"].endswith("/airflow") and variables["AIRFLOW_HOME"] != "/somebody/elses"
