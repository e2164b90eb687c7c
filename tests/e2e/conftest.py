import pytest

from tests.stack_process import new_stack


@pytest.fixture
def stack(tmp_path):
    """A stack that is not started yet."""
    stack = new_stack(tmp_path)
    yield stack
    stack.end()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One running stack for the tests of a module that leave it whole."""
    stack = new_stack(tmp_path_factory.mktemp("stack"))
    stack.start()
    stack.wait_ready()
    yield stack
    stack.end()
