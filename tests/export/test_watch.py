"""`python -m export --watch` with a real MLflow and a real Triton: it releases what the alias says, once."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from export import publish
from export.build import NICENESS, Order
from export.errors import TritonLost
from export.publish import open_stage
from export.rollback import main as rollback
from export.triton import Triton
from export.watch import LONGEST_PAUSE_SECONDS, LOSSES, POLL_SECONDS, Watch
from tests.export.live import House, asking, running_house, unreadable
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


def test_a_second_promotion_after_a_rollback_is_meant(house, register, order, caplog):
    caplog.set_level(logging.INFO)
    first, _ = register.crown()
    watch = Watch(house.repository, house.settings, order, soak_seconds=60)
    watch.step()
    second, _ = register.crown()
    watch.step()
    released = house.serving["version"]
    assert rollback([]) == 0
    for number, wanted in ((first, released - 1), (second, released)):
        register.crown(number)
        watch.step()
        assert house.serving["version"] == wanted, caplog.text


def test_a_second_promotion_that_meets_another_command_is_tried_again(house, register, order):
    first, _ = register.crown()
    watch = Watch(house.repository, house.settings, order, soak_seconds=60)
    watch.step()
    second, _ = register.crown()
    watch.step()
    released = house.serving["version"]
    assert rollback([]) == 0
    register.crown(first)
    watch.step()
    register.crown(second)
    with open_stage(house.repository):
        assert watch.step() > POLL_SECONDS
    assert house.serving["version"] == released - 1
    watch.step()
    assert house.serving["version"] == released


def test_a_soak_goes_on_until_the_repository_is_free(house, register, order):
    register.crown()
    watch = Watch(house.repository, house.settings, order, soak_seconds=0)
    watch.step()
    released = house.serving
    with open_stage(house.repository):
        assert watch.step() == POLL_SECONDS
    assert house.named == [released["previous"], released["version"]]
    watch.step()
    assert house.named == sorted(house.loaded) == [released["version"]]


@pytest.mark.parametrize("how", ["renamed away", "unreadable", "broken"])
def test_a_repository_that_is_away_is_waited_for_and_never_made_anew(house, register, order, caplog, how):
    register.crown()
    watch = Watch(house.repository, house.settings, order, soak_seconds=0)
    watch.step()
    released = house.serving
    register.crown()
    with spoiled(house.repository, how):
        assert watch.step() > POLL_SECONDS
        assert how != "renamed away" or not house.repository.exists()
    assert "; asking again" in caplog.text
    assert house.serving == released
    watch.step()
    assert house.serving["version"] == released["version"] + 1
    watch.step()
    assert house.named == sorted(house.loaded) == [released["version"] + 1], "no soak was forgotten"


@contextmanager
def spoiled(repository: Path, how: str):
    serving, away = repository / "serving.json", repository.with_name("away")
    content = serving.read_bytes()
    if how == "unreadable":
        with unreadable(repository):
            yield
        return
    serving.write_bytes(b"{") if how == "broken" else repository.rename(away)
    try:
        yield
    finally:
        serving.write_bytes(content) if how == "broken" else away.rename(repository)


def test_a_repository_that_goes_while_the_champion_is_fetched_is_not_made_anew(house, register, order, monkeypatch):
    watch = Watch(house.repository, house.settings, order, soak_seconds=0)
    watch.step()
    register.crown()
    before, away, fetch = house.serving, house.repository.with_name("away"), Registry.fetch

    def fetch_and_move_away(registry, version):
        house.repository.rename(away)
        return fetch(registry, version)

    monkeypatch.setattr(Registry, "fetch", fetch_and_move_away)
    assert watch.step() > POLL_SECONDS
    monkeypatch.undo()
    assert not house.repository.exists()
    away.rename(house.repository)
    assert house.serving == before


def test_a_full_disk_is_not_the_fault_of_the_champion(house, register, order, monkeypatch, caplog):
    number, _ = register.crown()
    before = house.serving["version"]
    watch = Watch(house.repository, house.settings, order, soak_seconds=0)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(publish, "rename_in", refuse)
        assert watch.step() > POLL_SECONDS
    assert "has no room left (No space left on device); make room there" in caplog.text
    assert f"version {number} of the registry is refused" not in caplog.text
    watch.step()
    assert house.serving["version"] == before + 1


@pytest.mark.parametrize("losses", [LOSSES - 1, LOSSES])
def test_a_champion_is_refused_when_triton_goes_away_during_its_proof_again_and_again(
    house, register, order, monkeypatch, caplog, losses
):
    number, _ = register.crown()
    before = house.serving["version"]
    watch = Watch(house.repository, house.settings, order, soak_seconds=0)
    prove, proofs = Triton.check_golden_rows, []

    def lose(triton, manifest, size):
        proofs.append(manifest.version)
        if len(proofs) <= losses:
            raise TritonLost("Triton does not answer")
        prove(triton, manifest, size)

    monkeypatch.setattr(Triton, "check_golden_rows", lose)
    for _ in range(LOSSES + 1):
        watch.step()
    refused = f"version {number} of the registry is refused, as Triton went away each of the {LOSSES} times"
    assert len(proofs) == LOSSES
    assert (refused in caplog.text) == (losses == LOSSES)
    assert house.serving["version"] == (before if losses == LOSSES else before + 1)


def test_a_triton_that_is_restarting_after_a_loss_is_not_taken_for_none_at_all(house, register, order, monkeypatch):
    register.crown()
    before = house.serving
    watch = Watch(house.repository, house.settings, order, soak_seconds=0)

    def lose(*_):
        raise TritonLost("Triton does not answer")

    with monkeypatch.context() as lost:
        lost.setattr(Triton, "check_golden_rows", lose)
        watch.step()
        lost.setattr(Triton, "listens", lambda _: False)
        assert watch.step() > POLL_SECONDS
    assert house.serving == before


def test_the_watch_stands_back_and_sigterm_ends_it_cleanly(house, register):
    command = [sys.executable, "-m", "export", "--watch"]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | house.environment, stderr=subprocess.PIPE, text=True
    ) as watching:
        lines = []
        while "watching the Champion" not in "".join(lines):
            lines.append(watching.stderr.readline())
            assert lines[-1], lines
        assert os.getpriority(os.PRIO_PROCESS, watching.pid) == max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
        time.sleep(0.2)
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(10) == 0
        assert "stopped watching" in watching.stderr.read()
