import pytest

from deploy.slack_channel import slack_channel
from tests.dags.airflow_home import Airflow


@pytest.fixture(scope="session")
def airflow(tmp_path_factory):
    """One Airflow for the tests that need no more than its database."""
    return Airflow(tmp_path_factory.mktemp("airflow"))


@pytest.fixture
def channel():
    with slack_channel() as channel:
        yield channel
