"""Real servers for the tests of server/: one for the whole session, and a repository for a test of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import write_bundle
from tests.triton_process import TritonProcess, running_triton


@pytest.fixture(scope="session")
def shared_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("shared") / "model_repository"
    write_bundle(repository)
    return repository


@pytest.fixture(scope="session")
def shared_triton(shared_repository: Path) -> Iterator[TritonProcess]:
    """A server nobody may break.  It must not have restarted by the end of the session."""
    with running_triton(shared_repository, shared_repository.parent / "var") as triton:
        yield triton
        assert " restart " not in triton.output


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository with version 1, served, for this test alone."""
    write_bundle(tmp_path / "model_repository")
    return tmp_path / "model_repository"
