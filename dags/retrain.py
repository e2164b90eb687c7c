"""Every Monday, or when enough new reviews have come: search, read test once, register a Candidate, tell Slack."""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, dag, task

from dags import announce
from dags.command import run
from dags.dataset import freeze
from dags.rules import CANDIDATE, ENOUGH, EVERY_TASK, SETTINGS, START


@dag(
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("0 5 * * 1", timezone="Asia/Seoul"), assets=[ENOUGH]
    ),
    start_date=START, catchup=False, max_active_runs=1, default_args=EVERY_TASK, doc_md=__doc__, tags=["nunchi"],
)  # fmt: skip
def retrain():
    @task
    def fix_the_reviews() -> dict[str, str]:
        return freeze(SETTINGS.collected, SETTINGS.var / "datasets", SETTINGS.retrain_config)

    @task(execution_timeout=timedelta(hours=12))
    def search(reviews: dict[str, str]) -> str:
        """A search that was cut off goes on, and one that has ended is left as it is."""
        name = reviews["name"]
        if Path(SETTINGS.var, "searches", name, "search.json").is_file():
            run("training.tune", "--resume", name)
        else:
            run(
                "training.tune", "--config", SETTINGS.retrain_config, "--name", name,
                "--dataset.kind", "collected", "--dataset.folder", reviews["folder"],
            )  # fmt: skip
        return name

    @task(execution_timeout=timedelta(hours=2), outlets=[CANDIDATE])
    def register(search: str, outlet_events) -> dict:
        version = run("training.registry", "register", search, "--json")
        outlet_events[CANDIDATE].extra = {"version": version["version"]}
        return version

    @task
    def tell(version: dict) -> None:
        announce.send(announce.registered(version))
        announce.send(announce.tested(version))

    tell(register(search(fix_the_reviews())))


retrain()
