"""docker-compose.yml as Docker Compose reads it, with secrets of the tests."""

import pytest

from tests.deploy.compose import Compose


@pytest.fixture(scope="session")
def compose(tmp_path_factory) -> Compose:
    compose = Compose(tmp_path_factory.mktemp("compose"))
    compose.make_secrets()
    return compose
