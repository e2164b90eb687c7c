"""The DAG files as Airflow reads them, and what a failure, a retry and a secret look like in a real run."""

import json
import subprocess

import pytest

from tests.dags.airflow_home import PYTHON, ROOT

READ = """
import json, os, sys, time
from dags.__main__ import environment
from dags.settings import read_settings
os.environ.update(environment(read_settings()))
from airflow.dag_processing.dagbag import DagBag
from airflow.dag_processing.bundles.manager import DagBundlesManager  # so that Airflow itself is imported

def listed(callbacks):  # a mapped task has the one it was given
    return callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]

folder = os.environ["AIRFLOW__CORE__DAGS_FOLDER"]
before, found = set(sys.modules), {}
for name in ("collect_reviews", "retrain", "release"):
    began = time.process_time()
    bag = DagBag(os.path.join(folder, name + ".py"), collect_dags=True)
    seconds = time.process_time() - began
    assert not bag.import_errors, bag.import_errors
    [dag] = bag.dags.values()
    tasks = {
        task.task_id: {
            "retries": task.retries, "backoff": task.retry_exponential_backoff,
            "limit": task.execution_timeout and task.execution_timeout.total_seconds(),
            "tells": [each.__name__ for each in listed(task.on_failure_callback)],
        }
        for task in dag.tasks
    }
    found[dag.dag_id] = {"seconds": seconds, "catchup": dag.catchup, "runs": dag.max_active_runs, "tasks": tasks}
print(json.dumps({"dags": found, "imported": sorted(set(sys.modules) - before)}))
"""
HEAVY = {"torch", "transformers", "mlflow", "ray", "pandas", "pyarrow", "scrapy", "numpy", "slack_sdk", "requests"}
OURS = {"training", "export", "gateway", "server", "ui", "loadtest", "deploy"}


@pytest.fixture(scope="module")
def read(airflow):
    done = subprocess.run([PYTHON, "-c", READ], cwd=ROOT, env=airflow.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_each_file_is_read_in_under_a_second_and_imports_nothing_heavy_or_of_ours(read):
    assert set(read["dags"]) == {"collect_reviews", "retrain", "release"}
    for dag in read["dags"].values():
        assert dag["seconds"] < 1
    imported = {module.split(".")[0] for module in read["imported"]}
    assert imported & (HEAVY | OURS) == set()
    assert "airflow.providers.slack" not in read["imported"]


def test_every_task_is_tried_again_with_back_off_within_a_time_limit_and_tells_when_it_fails(read):
    tasks = {f"{dag}.{task}": facts for dag, found in read["dags"].items() for task, facts in found["tasks"].items()}
    assert len(tasks) == 16
    for name, facts in tasks.items():
        assert facts["retries"] >= 1 and facts["backoff"] == 2, name
        assert 60 <= facts["limit"] <= 12 * 3600, name
        assert facts["tells"] == ["failed"], name
    for dag in read["dags"].values():
        assert (dag["catchup"], dag["runs"]) == (False, 1)


@pytest.mark.timeout(900)
def test_a_task_that_fails_is_tried_three_times_and_slack_hears_of_it_once(airflow, channel):
    """Nothing is collected, so there is nothing to retrain on."""
    run = airflow.test("retrain", SLACK_WEBHOOK_URL=channel.url, NUNCHI_AIRFLOW_PASSWORD="p4ssw0rd-p4ssw0rd-p4ssw0rd")
    assert run.state == "failed"
    never = dict.fromkeys(("search", "register", "tell"), "upstream_failed")
    assert run.tasks == {"fix_the_reviews": "failed", **never}
    [(tries,)] = airflow.ask("SELECT try_number FROM task_instance WHERE task_id = 'fix_the_reviews'")
    assert tries == 3
    [message] = channel.messages
    assert message["text"] == "🔥 retrain: fix_the_reviews failed"
    text = json.dumps(message, ensure_ascii=False)
    assert "holds no site=…/day=…/*.parquet; run the DAG collect_reviews first" in text
    assert f"http://127.0.0.1:8081/dags/retrain/runs/{run.id}/tasks/fix_the_reviews" in text
    seen = run.output.encode() + airflow.everything_it_wrote()
    assert channel.path.encode() not in seen
    assert channel.path.rpartition("/")[2].encode() not in seen


@pytest.mark.timeout(900)
def test_slack_away_or_without_a_token_changes_nothing_but_the_log(airflow, channel):
    channel.answer = (500, "internal_error")
    away = airflow.test("retrain", SLACK_WEBHOOK_URL=channel.url)
    assert (away.state, away.tasks["fix_the_reviews"]) == ("failed", "failed")
    assert "internal_error" in away.output
    assert channel.path.rpartition("/")[2] not in away.output
    without = airflow.test("retrain")
    assert "no SLACK_WEBHOOK_TOKEN in .env, so Slack is not told: 🔥 retrain: fix_the_reviews failed" in without.output
