"""One running stack with a tiny model for the tests of this room that leave it whole."""

import os
from collections.abc import Iterator

import pytest

from tests.bundles import write_bundle
from tests.gateway.gateway_process import running_gateway
from tests.triton_process import running_triton


@pytest.fixture(scope="session")
def running(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment of a command that is to find the stack."""
    folder = tmp_path_factory.mktemp("stack")
    repository = folder / "model_repository"
    write_bundle(repository)
    with (
        running_triton(repository, folder / "var") as triton,
        running_gateway(repository, triton.grpc_port) as gateway,
    ):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUNCHI_")}
        yield inherited | {
            "NUNCHI_GATEWAY_PORT": str(gateway.port),
            "NUNCHI_TRITON_HTTP_PORT": str(triton.http_port),
            "NUNCHI_TRITON_GRPC_PORT": str(triton.grpc_port),
            "NUNCHI_MODEL_REPOSITORY": str(repository),
        }
