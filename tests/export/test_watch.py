"""`python -m export --watch` with a real MLflow and a real Triton: it releases what the alias says, once."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.build import Order
from export.rollback import main as rollback
from export.watch import LONGEST_PAUSE_SECONDS, POLL_SECONDS, Watch
from tests.export.live import House, asking, running_house
from tests.export.registry import Register, as_training_leaves_it
from tests.gateway.served_app import served_app
from training.registry import Registry
from training.settings import Settings as TrainingSettings

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> House:
    with running_house(tmp_path_factory.mktemp("watch")) as house:
        yield house


@pytest.fixture
def register(house, trained, tmp_path, monkeypatch) -> Register:
    """A registry for this test alone."""
    monkeypatch.delenv("NUNCHI_MLFLOW_TRACKING_URI", raising=False)
    name = f"of-{tmp_path.name}"
    for variable, value in {**house.environment, "NUNCHI_REGISTERED_MODEL": name}.items():
        monkeypatch.setenv(variable, value)
    checkpoint = as_training_leaves_it(trained, tmp_path / "checkpoint")
    return Register(TrainingSettings(), checkpoint)


@pytest.fixture
def order(reviews_file) -> Order:
    return Order("fp32", reviews_file, 1000, None)


def test_the_champion_is_released_when_its_alias_moves_and_again_when_it_moves_back(house, register, order, caplog):
    caplog.set_level(logging.INFO)
    start = house.serving["version"]
    with served_app(house.repository, house.triton.grpc_port) as app:
        settings = house.settings.model_copy(update={"gateway_port": app.port})
        watch = Watch(house.repository, settings, order, soak_seconds=0)
        assert watch.step() == POLL_SECONDS
        assert house.serving["version"] == start, "there is no Champion yet"
        with asking(house):
            first, _ = register.crown()
            watch.step()
            assert house.serving["version"] == start + 1
            assert re.search(
                rf"version {first} of the registry answers as version {start + 1}, \d+\.\d s after its alias was seen",
                caplog.text,
            )
            watch.step()
            assert house.named == sorted(house.loaded) == [start + 1], "its soak is over"
            register.crown()
            watch.step()
            assert house.serving["version"] == start + 2
            register.crown(first)
            watch.step()
            assert house.serving["version"] == start + 1
            before = house.serving
            watch.step()
            assert house.serving == before


def test_what_a_rollback_has_left_is_not_released_again_also_not_by_another_watch(
    house, register, order, caplog, capsys
):
    caplog.set_level(logging.INFO)
    first, _ = register.crown()
    watch = Watch(house.repository, house.settings, order, soak_seconds=60)
    watch.step()
    second, _ = register.crown()
    watch.step()
    released = house.serving["version"]

    assert rollback([]) == 0
    assert f"version {released - 1} serves again, not version {released}" in capsys.readouterr().out
    assert Registry(register.settings).champion().number == int(second), "MLflow's own page moved the alias before"
    assert f"the registry's Champion stays version {second}" in caplog.text
    for watching in (watch, Watch(house.repository, house.settings, order, soak_seconds=60)):
        watching.step()
        assert house.serving["version"] == released - 1
    assert f"version {second} of the registry was rolled back here, and is not released again" in caplog.text
    assert first != second


def test_a_rollback_takes_the_champion_of_the_registry_along(house, register, order, capsys):
    first, _ = register.crown()
    watch = Watch(house.repository, house.settings, order, soak_seconds=60)
    watch.step()
    registry = Registry(register.settings)
    registry.ledger.rebuild()
    second, _ = register.register()
    registry.ledger.crown("promote", int(second), instead_of=int(first))
    watch.step()
    for wanted in (first, second):
        assert rollback([]) == 0
        assert f"version {wanted} is the registry's Champion again" in capsys.readouterr().out
        assert registry.champion().number == int(wanted)


def test_a_champion_that_is_refused_is_tried_once(house, register, order, caplog):
    caplog.set_level(logging.INFO)
    before = house.serving
    number, _ = register.crown()
    watch = Watch(house.repository, house.settings, Order("fp32", Path("/nowhere.tsv"), 1000, None), soak_seconds=0)
    for _ in range(3):
        assert watch.step() == POLL_SECONDS
    assert caplog.text.count(f"version {number} of the registry is refused: /nowhere.tsv does not exist") == 1
    assert house.serving == before


def test_an_mlflow_that_is_away_is_mentioned_once_and_asked_less_and_less_often(
    house, register, order, caplog, monkeypatch, tmp_path
):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("NUNCHI_MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/away/mlflow.db")
    watch = Watch(house.repository, house.settings, order, soak_seconds=0)
    (tmp_path / "away").write_text("a file, where a folder has to be")
    pauses = [watch.step() for _ in range(8)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2 * POLL_SECONDS, LONGEST_PAUSE_SECONDS)
    assert caplog.text.count("; asking again") == 1

    (tmp_path / "away").unlink()
    (tmp_path / "away").mkdir()
    Register(TrainingSettings(), register.checkpoint).crown()
    before = house.serving["version"]
    assert watch.step() == POLL_SECONDS
    assert house.serving["version"] == before + 1


def test_sigterm_ends_the_watch_cleanly(house, register):
    command = [sys.executable, "-m", "export", "--watch"]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | house.environment, stderr=subprocess.PIPE, text=True
    ) as watching:
        lines = []
        while "watching the Champion" not in "".join(lines):
            lines.append(watching.stderr.readline())
            assert lines[-1], lines
        time.sleep(0.2)
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(10) == 0
        assert "stopped watching" in watching.stderr.read()
