"""What holds for every task, and the assets by which one DAG starts another."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from airflow.sdk import Asset

from dags.announce import failed
from dags.settings import read_settings

SETTINGS = read_settings()
SEOUL = ZoneInfo("Asia/Seoul")
START = datetime(2026, 1, 1, tzinfo=SEOUL)

REVIEWS = Asset("nunchi-reviews")
"""A crawl brought new ones; its ``extra`` says how many."""
ENOUGH = Asset("nunchi-enough-reviews")
"""They are enough for a retraining."""
CANDIDATE = Asset("nunchi-candidate")
"""A version was registered; its ``extra`` says which."""

EVERY_TASK = {
    "retries": 2,
    "retry_delay": timedelta(seconds=SETTINGS.airflow_retry_seconds),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(hours=1),
    "execution_timeout": timedelta(minutes=10),
    "on_failure_callback": failed,
}
