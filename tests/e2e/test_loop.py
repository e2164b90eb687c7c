"""`make loop` on small data: from crawl to live answer by the DAGs, under load, and the drill; then what can go wrong.

The encoder is one layer of 32, and learns from the behaviour suite's own sentences, which no real training may do: so
it passes in seconds the gates that stand between a real model and the shipped one, which serves in the beginning.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest

from deploy.slack_channel import slack_channel
from tests.dags.airflow_home import Airflow
from tests.training.lessons import FILLING, behaviour_as_lessons, sentences, write_encoder
from tests.triton_process import free_ports

ROOT = Path(__file__).resolve().parents[2]
# The version that a clone serves; what the loop releases comes after it.
SHIPPED = json.loads((ROOT / "model_repository" / "serving.json").read_text(encoding="utf-8"))["version"]
CONFIG = """
dataset: {{kind: sample, dev_share: 0.15}}
model: {{encoder: {encoder}, max_length: 32, dropout: 0.0}}
train: {{epochs: 10, batch_size: 32, learning_rate: 0.01, precision: fp32, word_dropout: 0.0}}
tune: {{trials: 1, space: {{train.seed: {{choices: [1]}}}}}}
"""


def reviews() -> pd.DataFrame:
    """The lessons four times in other company, so that each is learnt from whatever part of them becomes test."""
    lessons = behaviour_as_lessons()
    company = [" ".join(FILLING[place : place + 3]) for place in (0, 4, 8)]
    more = [lessons.assign(document=lessons.document + " " + words) for words in company]
    rows = pd.concat([sentences(300, seed=1), lessons, *more], ignore_index=True)
    return rows.assign(id=range(len(rows)))[["id", "document", "label"]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(the folder it left, what it printed)."""
    root = tmp_path_factory.mktemp("loop")
    rows = reviews()
    lines = ["\t".join(map(str, row)) for row in [rows.columns, *rows.itertuples(index=False)]]
    (root / "reviews.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_encoder(root / "tiny", [*rows.document] * 2)
    (root / "tiny.yaml").write_text(CONFIG.format(encoder=root / "tiny"), encoding="utf-8")
    options = ["--reviews", root / "reviews.tsv", "--config", root / "tiny.yaml", "--repository", "model_repository"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NUNCHI_", "SLACK_"))}
    done = subprocess.run(
        [sys.executable, "-m", "deploy.loop", *options],
        cwd=ROOT, env={**inherited, "NUNCHI_VAR": str(root), "COLUMNS": "200"}, capture_output=True, text=True,
    )  # fmt: skip
    logs = "".join(log.read_text()[-3000:] for log in sorted((root / "loop" / "log").glob("*.txt"))[-1:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs
    return root / "loop", done.stdout


@pytest.mark.timeout(1800)
def test_the_candidate_beats_what_serves_on_a_fresh_clone_and_answers(ran):
    folder, _ = ran
    first, second = json.loads((folder / "model_registry.json").read_text(encoding="utf-8"))["versions"]
    assert (first["stage"], second["stage"]) == ("Champion", "Candidate")
    assert first["tags"]["judged_against"] == f"the served bundle, version {SHIPPED}"
    assert first["tags"]["gate.better"].startswith("passed: better: +")
    serving = json.loads((folder / "model_repository" / "serving.json").read_text(encoding="utf-8"))
    assert (serving["version"], serving["previous"]) == (SHIPPED + 1, SHIPPED)


def test_turned_stars_win_on_their_own_test_rows_and_lose_by_the_behaviour_suite(ran):
    folder, printed = ran
    poisoned = json.loads((folder / "model_registry.json").read_text(encoding="utf-8"))["versions"][1]
    assert poisoned["tags"]["judged_against"] == "the Champion, version 1"
    assert poisoned["tags"]["gate.behaviour"].startswith("failed: ")
    assert "version 2 is refused: behaviour failed" in printed


def test_no_request_was_answered_wrong_and_both_versions_answered(ran):
    folder, _ = ran
    figures = json.loads((folder / "traffic.txt").read_text(encoding="utf-8").splitlines()[-1])
    assert set(figures["versions"]) == {str(SHIPPED), str(SHIPPED + 1)}
    assert figures["failed"] == 0
    assert figures["right"] > 100


def test_slack_was_told_in_order(ran):
    folder, printed = ran
    messages = json.loads((folder / "slack.json").read_text(encoding="utf-8"))
    told = [re.sub(r": .*|[^\w ]+ ?", "", message["text"]).strip() for message in messages]
    assert told == [
        "Candidate 1 is registered", "Candidate 1 on test", "Version 1 is the Champion and answers",
        "Candidate 2 is registered", "Candidate 2 on test", "Version 2 is refused",
    ]  # fmt: skip
    assert all(message["text"] in printed for message in messages)
    assert "The Champion stays" in json.dumps(messages[-1], ensure_ascii=False)


def test_it_leaves_no_process_behind(ran):
    mine = {"NUNCHI_VAR": str(ran[0])}
    left = [each for each in psutil.process_iter(["environ"]) if mine.items() <= (each.info["environ"] or {}).items()]
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture
def forced(ran):
    """The refused version was promoted by force, with no stack running; its release has yet to come."""
    folder, _ = ran
    names = ("GATEWAY_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
    ports = {f"NUNCHI_{name}": str(port) for name, port in zip(names, free_ports(4), strict=True)}
    airflow = Airflow(folder, ports | {"NUNCHI_MODEL_REPOSITORY": str(folder / "model_repository")})
    command = [sys.executable, "-m", "training.registry", "promote", "2", "--force"]
    subprocess.run(command, cwd=ROOT, env=airflow.environment, check=True, capture_output=True)
    return airflow


def state(airflow: Airflow) -> tuple[int, int]:
    """(the Champion, the version that serves)."""
    versions = json.loads((airflow.var / "model_registry.json").read_text(encoding="utf-8"))["versions"]
    [champion] = [version["number"] for version in versions if version["stage"] == "Champion"]
    serving = json.loads((airflow.var / "model_repository" / "serving.json").read_text(encoding="utf-8"))
    return champion, serving["version"]


@pytest.mark.timeout(900)
def test_a_release_that_fails_its_smoke_test_is_rolled_back(forced):
    """Nothing answers at the gateway's port."""
    with slack_channel() as channel:
        run = forced.test("release", "--conf", '{"version": 2}', SLACK_WEBHOOK_URL=channel.url, NUNCHI_SOAK_SECONDS="0")
    assert run.state == "failed"
    assert run.tasks == {
        "candidate": "success", "promote": "success", "gates": "success", "tell_refused": "skipped",
        "export": "success", "smoke": "failed", "roll_back": "success", "tell_promoted": "upstream_failed",
    }  # fmt: skip
    assert (run.handed_on["candidate"], run.handed_on["export"]) == (2, SHIPPED + 2)
    assert state(forced) == (1, SHIPPED + 1)
    assert [message["text"] for message in channel.messages] == [
        "🔥 release: smoke failed", f"↩️ Version 2 is rolled back: it failed its smoke test as version {SHIPPED + 2}"
    ]  # fmt: skip
    assert "nothing answers at http://127.0.0.1:" in json.dumps(channel.messages[0])
    assert "version 1 is the registry's Champion again" in json.dumps(channel.messages[1])


@pytest.mark.timeout(900)
def test_a_champion_that_cannot_be_exported_steps_down_again(forced):
    with slack_channel() as channel:
        run = forced.test(
            "release", "--conf", '{"version": 2}', SLACK_WEBHOOK_URL=channel.url, NUNCHI_SOAK_SECONDS="-1"
        )
    assert (run.state, run.tasks["export"], run.tasks["smoke"]) == ("failed", "failed", "upstream_failed")
    assert run.tasks["roll_back"] == "success"
    assert state(forced) == (1, SHIPPED + 1)
    assert [message["text"] for message in channel.messages] == [
        "🔥 release: export failed", "↩️ Version 2 is rolled back: its export failed"
    ]  # fmt: skip
    assert "NUNCHI_SOAK_SECONDS is" in json.dumps(channel.messages[0])
