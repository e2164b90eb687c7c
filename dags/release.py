"""For each Candidate: gates → promote → export → smoke test through the gateway → Slack; or why it stays as it was."""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import Param, TriggerRule, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags import announce
from dags.command import run
from dags.rules import CANDIDATE, EVERY_TASK, START


@dag(
    schedule=[CANDIDATE], params={"version": Param(None, type=["null", "integer"], minimum=1)},
    start_date=START, catchup=False, max_active_runs=1, default_args=EVERY_TASK, doc_md=__doc__, tags=["nunchi"],
)  # fmt: skip
def release():
    @task
    def candidate(params, triggering_asset_events) -> int:
        """The version that was asked for, or else the one whose registration has started this run."""
        registered = [event.extra["version"] for event in triggering_asset_events.get(CANDIDATE, [])]
        if not (params["version"] or registered):
            raise ValueError("no Candidate has started this run; name one: --conf '{\"version\": 7}'")
        return params["version"] or registered[-1]

    @task(execution_timeout=timedelta(hours=2))
    def promote(version: int) -> dict:
        return run("training.registry", "promote", version, "--json")

    @task.branch
    def gates(version: dict) -> str:
        return "export" if version["stage"] == "Champion" else "tell_refused"

    @task
    def tell_refused(version: dict) -> None:
        announce.send(announce.refused(version))

    @task(execution_timeout=timedelta(hours=1))
    def export(version: dict) -> int:
        """The number under which the model repository has it, once it answers."""
        return int(Path(run("export", "--champion", version["version"])).name)

    @task(retries=1)
    def smoke(bundle: int) -> dict:
        return run("loadtest.traffic", "--version", bundle, "--rate", 20, "--seconds", 5, "--json")

    @task
    def tell_promoted(version: dict, bundle: int, seen: dict) -> None:
        announce.send(announce.promoted(version, bundle, seen))

    @task(trigger_rule=TriggerRule.ONE_FAILED)
    def roll_back(ti) -> None:
        """What answered before answers again, and its model is the Champion again."""
        version, bundle = (ti.xcom_pull(task_ids=task) for task in ("promote", "export"))
        if version is None:
            raise AirflowSkipException("nothing was promoted")
        if bundle is None:
            said = run("training.registry", "rollback", "--leaving", version["version"])
        else:
            said = run("export.rollback", "--leaving", bundle)
        announce.send(announce.rolled_back(version, bundle, said))

    version = promote(candidate())
    bundle = export(version)
    seen = smoke(bundle)
    gates(version) >> [bundle, tell_refused(version)]
    tell_promoted(version, bundle, seen)
    [bundle, seen] >> roll_back()


release()
