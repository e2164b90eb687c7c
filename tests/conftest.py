"""Options of the whole suite; pytest takes them only from a conftest.py that it loads before it collects."""

import signal


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="tests/chaos in the lengths the README quotes (minutes), not the short ones"
    )
    parser.addoption("--screenshots", action="store_true", help="tests/ui also writes docs/screenshots/*.png")


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in its background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "full: too long for every day; left out without --full")
    config.addinivalue_line("markers", "screenshots: writes into docs/; left out without --screenshots")


def pytest_collection_modifyitems(config, items):
    for name in ("full", "screenshots"):
        if not config.getoption(f"--{name}"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(name)])
            items[:] = [item for item in items if not item.get_closest_marker(name)]
