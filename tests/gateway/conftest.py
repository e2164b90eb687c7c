"""Real parts for the tests of gateway/: a Triton and a Ray Serve gateway for the session, repositories to break."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import write_bundle
from tests.gateway.gateway_process import GatewayProcess, running_gateway
from tests.gateway.served_app import ServedApp, served_app
from tests.triton_process import TritonProcess, running_triton


@pytest.fixture(scope="session", autouse=True)
def _no_variables_of_the_developer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        for name in list(os.environ):
            if name.startswith("NUNCHI_") or name == "RAY_ADDRESS":
                environment.delenv(name)
        yield


@pytest.fixture(scope="session")
def shared_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("shared") / "model_repository"
    write_bundle(repository)
    return repository


@pytest.fixture(scope="session")
def shared_triton(shared_repository: Path) -> Iterator[TritonProcess]:
    """A Triton nobody may break."""
    with running_triton(shared_repository, shared_repository.parent / "var") as triton:
        yield triton


@pytest.fixture(scope="session")
def shared_app(shared_repository: Path, shared_triton: TritonProcess) -> Iterator[ServedApp]:
    """The application under uvicorn, without Ray; nobody may break it."""
    with served_app(shared_repository, shared_triton.grpc_port) as app:
        yield app


@pytest.fixture(scope="session")
def shared_gateway(shared_repository: Path, shared_triton: TritonProcess) -> Iterator[GatewayProcess]:
    """`python -m gateway`, ready; nobody may break it."""
    with running_gateway(shared_repository, shared_triton.grpc_port) as gateway:
        yield gateway


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository with version 1, served, for this test alone."""
    write_bundle(tmp_path / "model_repository")
    return tmp_path / "model_repository"
