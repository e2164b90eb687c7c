"""What Slack is told: figures and links, within what Block Kit takes, whatever a reason says."""

import pytest

from dags import announce
from deploy.slack_channel import fault_of

VERSION = {
    "version": 7, "stage": "Champion", "run": "5071", "encoder": "nano", "search": "reviews-2026-11-29-2c4d2e6f",
    "trial": "trial-03", "judged_against": "the Champion, version 5", "forced": False,
    "metrics": {
        "dataset": "reviews test", "rows": 12345, "accuracy": 0.8912, "f1": 0.891,
        "accuracy_interval": [0.8856, 0.8965],
    },
    "gates": {
        "better": "passed: better: +0.40 points to the Champion",
        "behaviour": "failed: 170 of 226 cases; too few: irony 3 of 22, <70%> & more",
    },
}  # fmt: skip
SMOKE = {"sent": 100, "right": 99, "refused": 1, "failed": 0, "p50_ms": 3.2, "p99_ms": 9.9, "versions": {"4": 99}}
MESSAGES = {
    "registration": announce.registered(VERSION),
    "test results": announce.tested(VERSION),
    "promotion": announce.promoted(VERSION, 4, SMOKE),
    "refusal": announce.refused(VERSION),
    "rollback": announce.rolled_back(VERSION, 4, "version 3 serves again, not version 4"),
    "rollback of what was never exported": announce.rolled_back(VERSION, None, "version 5 is the Champion again"),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_slack_takes_it_and_it_leads_to_the_model(kind):
    message = MESSAGES[kind]
    assert fault_of(message) is None
    assert "7" in message["text"]
    assert "<http://127.0.0.1:5050/#/models/sentiment/versions/7|model>" in announce.as_text(message)


def test_the_figures_are_in_it():
    registered, tested = (announce.as_text(MESSAGES[kind]) for kind in ("registration", "test results"))
    assert "reviews-2026-11-29-2c4d2e6f" in registered and "trial-03" in registered
    assert "0.8912 (95 % interval 0.8856-0.8965)" in tested and "12,345" in tested
    promoted = announce.as_text(MESSAGES["promotion"])
    assert "99 of 100 right, 1 refused; p50 3.2 ms, p99 9.9 ms" in promoted
    assert "+0.40 points to the Champion" in promoted and "*answers as version*\n4" in promoted
    assert "http://127.0.0.1:8080/v1/model" in promoted


def test_a_refusal_says_which_gate_and_why_and_that_the_champion_stays():
    message = MESSAGES["refusal"]
    assert message["text"] == "✋ Version 7 is refused: behaviour"
    text = announce.as_text(message)
    assert "170 of 226 cases; too few: irony 3 of 22" in text
    assert "The Champion stays, and goes on answering." in text


def test_a_rollback_says_what_failed_and_what_answers():
    assert "failed its smoke test as version 4" in MESSAGES["rollback"]["text"]
    assert "version 3 serves again, not version 4" in announce.as_text(MESSAGES["rollback"])
    assert "its export failed" in MESSAGES["rollback of what was never exported"]["text"]


def test_a_reason_cannot_call_anybody_or_break_the_message():
    assert "&lt;70%&gt; &amp; more" in announce.as_text(MESSAGES["refusal"])
    long = announce.message(
        "t" * 500, {"name": "v" * 5000, "none": None}, "<!channel> " * 1000, links={"log": "http://x"}
    )
    assert fault_of(long) is None
    assert "<!channel>" not in announce.as_text(long)


def test_links_lead_to_the_servers_that_are_named(monkeypatch):
    monkeypatch.setenv("NUNCHI_MLFLOW_TRACKING_URI", "http://mlflow.inside:5000/")
    monkeypatch.setenv("NUNCHI_REGISTERED_MODEL", "movies")
    assert "<http://mlflow.inside:5000/#/models/movies/versions/7|model>" in announce.as_text(announce.tested(VERSION))
