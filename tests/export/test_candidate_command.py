"""`python -m export.candidate` with a real Triton, and a real registry for the versions that come from one."""

import json
import os
from pathlib import Path

import pytest

from export.__main__ import main as export
from export.candidate import main as candidate
from tests.export.live import House, asking, running_house
from tests.export.registry import Register, as_training_leaves_it
from tests.gateway.gateway_process import wait_until
from tests.gateway.served_app import served_app
from training import tracking
from training.settings import Settings as TrainingSettings

START = ["start", "--mode", "shadow", "--share", "0.25", "--precision", "fp32"]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> House:
    with running_house(tmp_path_factory.mktemp("candidate")) as house:
        yield house


@pytest.fixture(autouse=True)
def of_this_house(house, monkeypatch):
    monkeypatch.delenv("NUNCHI_MLFLOW_TRACKING_URI", raising=False)
    for name, value in house.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def register(house, trained, tmp_path_factory) -> Register:
    checkpoint = as_training_leaves_it(trained, tmp_path_factory.mktemp("trial") / "checkpoint")
    return Register(TrainingSettings(var=house.triton.var_dir), checkpoint)


@pytest.fixture
def start(house, trained, reviews_file):
    """`start()` starts the trained checkpoint as a shadow; whatever candidate there is then is ended in the end."""

    def run(*arguments: str, checkpoint: Path | None = trained) -> int:
        named = ["--checkpoint", str(checkpoint)] if checkpoint else []
        return candidate([*START, "--data", str(reviews_file), *named, *arguments])

    yield run
    if "candidate" in house.serving:
        assert candidate(["end"]) == 0


def test_a_candidate_is_loaded_beside_and_ended_and_the_one_that_serves_notices_nothing(house, start, capsys):
    before, process = house.serving, house.loaded[house.serving["version"]]
    with asking(house):
        assert start() == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        named = house.serving["candidate"]
        assert {**named, "since": None} == {
            "version": before["version"] + 1, "mode": "shadow", "share": 0.25, "since": None
        }  # fmt: skip
        assert f"version {named['version']} is loaded beside version {before['version']}: shadow of 25%" in said
        assert {key: house.serving[key] for key in before} == before
        assert sorted(house.loaded) == house.named == [before["version"], named["version"]]

        assert start() == 2
        assert "is the candidate already; promote or end it first" in capsys.readouterr().err

        assert candidate(["status"]) == 0
        said = capsys.readouterr().out
        assert json.loads(said[: said.index("}\n}") + 3])["candidate"] == named
        assert f"version {named['version']} is loaded\n" in said

        assert candidate(["end"]) == 0
    assert capsys.readouterr().out == f"version {named['version']} is the candidate no more\n"
    assert house.serving == before
    assert house.named == [before["version"]]
    assert house.loaded == {before["version"]: process}


def test_a_checkpoint_serves_after_its_parity_gate_alone_and_that_is_said(house, start, capsys, caplog):
    caplog.set_level("INFO")
    before = house.serving["version"]
    with asking(house):
        assert start("--mode", "canary", "--share", "1") == 0
        number = house.serving["candidate"]["version"]
        process = house.loaded[number]
        assert candidate(["promote", "--soak", "0"]) == 0, capsys.readouterr().err
    assert f"version {number} is not of the registry: its parity gate has to do" in caplog.text
    assert house.serving | {"since": None} == {
        "model": "sentiment", "version": number, "previous": before, "since": None
    }  # fmt: skip
    assert house.loaded == {number: process}, "it was loaded, and is not loaded again"


def test_a_candidate_of_the_registry_serves_if_the_registry_makes_it_the_champion(house, start, register, capsys):
    assert start(checkpoint=None) == 2
    assert "the registry 'sentiment' has no Candidate; register one with make register" in capsys.readouterr().err

    number, _ = register.register()
    before = house.serving["version"]
    assert start(checkpoint=None) == 0, capsys.readouterr().err
    client, model = tracking.connect(register.settings), register.settings.registered_model
    client.set_model_version_tag(model, number, "metrics", "{}")  # what the gates judge by is gone
    assert candidate(["promote"]) == 2
    assert f"version {number} has no test figures" in capsys.readouterr().err
    assert house.serving["version"] == before
    assert "candidate" in house.serving

    register.crown(number)
    assert candidate(["promote", "--soak", "0"]) == 0
    assert house.serving["version"] == before + 1


def test_a_champion_that_is_the_candidate_is_not_exported_twice(house, start, register, reviews_file, capsys):
    number, _ = register.register()
    assert start(checkpoint=None) == 0, capsys.readouterr().err
    loaded = house.serving["candidate"]["version"]
    register.crown(number)
    assert export(["--data", str(reviews_file), "--soak", "0"]) == 0
    assert house.serving["version"] == loaded
    assert "candidate" not in house.serving


@pytest.mark.parametrize("share", ["0", "-0.1", "1.01", "half"])
def test_a_share_is_above_0_and_up_to_1(share, capsys):
    with pytest.raises(SystemExit):
        candidate(["start", "--mode", "shadow", "--share", share])
    assert "--share" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["promote", "end"])
def test_without_a_candidate_the_commands_say_so(command, capsys):
    assert candidate([command]) == 2
    assert "names no candidate" in capsys.readouterr().err


def test_a_candidate_wants_a_running_triton(start, monkeypatch, capsys):
    monkeypatch.setenv("NUNCHI_TRITON_GRPC_PORT", os.environ["NUNCHI_GATEWAY_PORT"])
    assert start() == 2
    assert "a candidate wants a running Triton, and none listens at" in capsys.readouterr().err


def test_status_shows_what_the_gateway_counts(house, start, monkeypatch, capsys):
    with served_app(house.repository, house.triton.grpc_port) as app:
        monkeypatch.setenv("NUNCHI_GATEWAY_PORT", str(app.port))
        assert start() == 0, capsys.readouterr().err
        capsys.readouterr()
        wait_until(lambda: "candidate_share{" in app.client.get("/metrics").text, 10, "the gateway has the candidate")
        assert candidate(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    counted = [line for line in lines if "gateway" in line]
    assert any(line.startswith("nunchi_gateway_candidate_") for line in counted)
    assert all(line.startswith("nunchi_gateway_") for line in counted)
