"""Every night: what was written on the sites the day before, in Seoul's time."""

from datetime import datetime, timedelta

from airflow.sdk import CronDataIntervalTimetable, dag, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.command import run
from dags.rules import CANDIDATE, ENOUGH, EVERY_TASK, REVIEWS, SEOUL, SETTINGS, START

LAYOUT_CHANGED = 3  # exit status of a crawl that found pages but no reviews on them


@dag(
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="Asia/Seoul"),
    start_date=START, catchup=False, max_active_runs=1, default_args=EVERY_TASK, doc_md=__doc__, tags=["nunchi"],
)  # fmt: skip
def collect_reviews():
    @task
    def sites() -> list[str]:
        if not SETTINGS.sites:
            raise AirflowFailException("no site is named; set NUNCHI_COLLECT_SITES=path/to/site.yaml in .env")
        return SETTINGS.sites

    @task(execution_timeout=timedelta(hours=4), max_active_tis_per_dag=1)
    def crawl(site: str, data_interval_start: datetime, data_interval_end: datetime) -> dict:
        """Resumes where a crawl that was cut off stood; what is there already is not taken twice."""
        since, until = (moment.astimezone(SEOUL).date() for moment in (data_interval_start, data_interval_end))
        report = run(
            "training.collection", "crawl", "--site", site, "--since", since, "--until", until,
            "--output", SETTINGS.collected, answers=(0, LAYOUT_CHANGED),
        )  # fmt: skip
        if report["alarm"]:
            raise AirflowFailException(f"{site}: {report['alarm']}")  # asking again would not mend the description
        return report

    @task(outlets=[REVIEWS])
    def count(reports: list[dict], outlet_events) -> int:
        """How many are new. Nothing new is no news: a run that is done again counts nothing twice."""
        new = sum(report["new"] for report in reports)
        if not new:
            raise AirflowSkipException("no new reviews")
        outlet_events[REVIEWS].extra = {"new": new}
        return new

    @task(inlets=[REVIEWS, CANDIDATE], outlets=[ENOUGH])
    def enough(new: int, inlet_events) -> int:
        """Those since the last registration, once they are enough for a retraining before the week is over."""
        registered = max((event.timestamp for event in inlet_events[CANDIDATE]), default=START)
        waiting = sum(event.extra["new"] for event in inlet_events[REVIEWS] if event.timestamp > registered)
        if waiting < SETTINGS.retrain_reviews:
            raise AirflowSkipException(f"{waiting:,} reviews wait; {SETTINGS.retrain_reviews:,} are enough")
        return waiting

    enough(count(crawl.expand(site=sites())))


collect_reviews()
