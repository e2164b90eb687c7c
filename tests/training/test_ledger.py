"""The registry's stages on a real MLflow, through kills between any two steps and through two promoters at once."""

import contextlib
import json
import shutil
import socket
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.training.dying import run_at_once, run_until
from training.errors import RegistryError, TrackingError
from training.ledger import LOCK_SECONDS, Ledger, locked
from training.settings import Settings

METRICS = json.dumps({"dataset": "rows", "rows": 10, "accuracy": 0.9, "accuracy_interval": [0.5, 1.0], "f1": 0.9})


def tags(trial: str) -> dict[str, str]:
    return {"search": "s", "trial": trial, "metrics": METRICS, "labels": '["negative", "positive"]', "encoder": "nano"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """1 was the Champion before 2, 3 and 4 are Candidates."""
    var = tmp_path_factory.mktemp("template")
    ledger = Ledger(Settings(var=var))
    for number in (1, 2, 3, 4):
        run = ledger.client.create_run(ledger.client.search_experiments()[0].experiment_id)
        ledger.create(f"file://{var}/model{number}", run.info.run_id, tags(f"t{number}"))
    ledger.crown("promote 1", 1, instead_of=None)
    ledger.crown("promote 2", 2, instead_of=1, tags={"forced": "true", "forced_gates": "latency"})
    return var


@pytest.fixture
def ledger(template, tmp_path):
    return copy(template, tmp_path / "var")


def copy(template: Path, var: Path) -> Ledger:
    var.mkdir()
    with sqlite3.connect(template / "mlflow.db") as source, sqlite3.connect(var / "mlflow.db") as target:
        source.backup(target)
    source.close()
    target.close()
    if (template / "model_registry.json").is_file():
        shutil.copy(template / "model_registry.json", var)
    return Ledger(Settings(var=var))


def in_mlflow(ledger: Ledger) -> dict:
    """Aliases and tags as MLflow has them, read without the code under test."""
    client = MlflowClient(ledger.settings.tracking_uri, ledger.settings.tracking_uri)
    aliases = {name: int(number) for name, number in client.get_registered_model("sentiment").aliases.items()}
    versions = {int(each.version): dict(each.tags) for each in client.search_model_versions("name='sentiment'")}
    stages = {number: versions[number]["stage"] for number in sorted(versions)}
    return {"champion": aliases.get("champion"), "candidate": aliases.get("candidate"), "stages": stages}


def in_file(ledger: Ledger) -> dict:
    document = json.loads(ledger.settings.registry_file.read_text(encoding="utf-8"))
    stages = {version["number"]: version["stage"] for version in document["versions"]}
    return {"champion": document["champion"], "candidate": document["candidate"], "stages": stages}


def agree(ledger: Ledger) -> bool:
    """Whether file and MLflow say the same, to the last tag."""
    file = json.loads(ledger.settings.registry_file.read_text(encoding="utf-8"))
    client = MlflowClient(ledger.settings.tracking_uri, ledger.settings.tracking_uri)
    elsewhere = ("stage", "metrics", "labels")
    tags = {
        int(each.version): {key: value for key, value in each.tags.items() if key not in elsewhere}
        for each in client.search_model_versions("name='sentiment'")
    }
    shown = {version["number"]: version["tags"] for version in file["versions"]}
    return in_file(ledger) == in_mlflow(ledger) and shown == tags


def pending(ledger: Ledger) -> str | None:
    left = json.loads(ledger.settings.registry_file.read_text(encoding="utf-8"))["pending"]
    return left and left["operation"]


def facts(ledger: Ledger) -> dict:
    """All that must be as before or as after: stages, and what a Champion's tags say, times aside."""
    told = {
        version.number: (version.previous_champion, version.forced, "champion_since" in version.tags)
        for version in ledger.versions()
    }
    return {**in_mlflow(ledger), "told": told}


def test_stages_follow_the_aliases_and_the_file_says_the_same(ledger):
    expected = {"champion": 2, "candidate": 4, "stages": {1: "Archived", 2: "Champion", 3: "Candidate", 4: "Candidate"}}
    assert in_mlflow(ledger) == in_file(ledger) == expected
    assert ledger.champion().number == 2
    assert (ledger.champion().previous_champion, ledger.champion().forced) == (1, True)
    ledger.archive(4)
    assert in_mlflow(ledger) == in_file(ledger)
    assert in_file(ledger)["candidate"] == 3
    ledger.archive(3)
    assert in_mlflow(ledger)["candidate"] is in_file(ledger)["candidate"] is None


def test_what_cannot_be_is_refused_and_changes_nothing(ledger):
    before = ledger.settings.registry_file.read_bytes()
    with pytest.raises(RegistryError, match="version 2 is the Champion; promote another or roll back first"):
        ledger.archive(2)
    with pytest.raises(RegistryError, match="version 1 is archived already"):
        ledger.archive(1)
    with pytest.raises(RegistryError, match="has no version 9; there are: 1, 2, 3, 4"):
        ledger.crown("promote 9", 9, instead_of=2)
    with pytest.raises(RegistryError, match="cannot promote 3: the Champion is version 2 by now, and was version 1 "):
        ledger.crown("promote 3", 3, instead_of=1)
    with pytest.raises(RegistryError, match=r"version 4 already \(Candidate\)"):
        ledger.create("file:///again", ledger.version(4).run_id, tags("again"))
    assert ledger.settings.registry_file.read_bytes() == before


CHANGES = {
    "crown": ("crown", ("promote 3", 3), {"instead_of": 2, "tags": {"forced": None, "forced_gates": None}}),
    "crown one that was forced": ("crown", ("promote 1", 1), {"instead_of": 2, "tags": {"forced": "true"}}),
    "archive": ("archive", (4,), {}),
    "tag": ("tag", ("judge 3", 3, {"gate.better": "passed", "gate.latency": "passed"}), {}),
    "create": ("create", ("file:///new", "0" * 32, tags("new")), {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_killed_between_any_two_steps_the_file_says_pending_or_is_right(change, template, tmp_path):
    operation, arguments, options = CHANGES[change]
    whole = copy(template, tmp_path / "whole")
    before = facts(whole)
    getattr(whole, operation)(*arguments, **options)
    after = facts(whole)
    killed = 0
    while True:
        ledger = copy(template, tmp_path / f"killed{killed}")
        if run_until(killed + 1, ledger.settings.var, operation, *arguments, **options):
            break
        killed += 1
        assert pending(ledger) or agree(ledger)
        with ledger.lock():
            pass
        assert pending(ledger) is None
        assert agree(ledger)
        assert facts(ledger) in (before, after)
        assert ledger.rebuild().read_bytes() == ledger.settings.registry_file.read_bytes()
    assert killed >= 3
    assert facts(ledger) == after


def test_the_first_registration_of_all_survives_the_same(tmp_path):
    empty = Ledger(Settings(var=tmp_path / "template"))
    _ = empty.client
    steps = 0
    while True:
        var = tmp_path / f"killed{steps}"
        var.mkdir()
        with (
            sqlite3.connect(tmp_path / "template" / "mlflow.db") as source,
            sqlite3.connect(var / "mlflow.db") as target,
        ):
            source.backup(target)
        source.close()
        target.close()
        done = run_until(steps + 1, var, "create", "file:///first", "1" * 32, tags("first"))
        ledger = Ledger(Settings(var=var))
        with ledger.lock():
            pass
        assert pending(ledger) is None
        numbers = [version.number for version in ledger.versions()]
        assert numbers == [
            version["number"] for version in json.loads(ledger.settings.registry_file.read_text())["versions"]
        ]
        assert numbers in ([], [1])
        if done:
            break
        if not numbers:
            assert ledger.create("file:///first", "1" * 32, tags("first")).number == 1
        assert agree(ledger)
        steps += 1
    assert numbers == [1]
    assert steps >= 4


def test_two_promoters_at_once_one_wins_and_nothing_is_torn(ledger):
    calls = [("crown", (f"promote {number}", number), {"instead_of": 2}) for number in (3, 4)]
    refusals = run_at_once(ledger.settings.var, calls)
    winner = ledger.champion().number
    loser = ({3, 4} - {winner}).pop()
    assert sorted(refusals, key=str)[0] is None or refusals.count(None) == 1
    sentence = next(refusal for refusal in refusals if refusal)
    assert sentence.startswith(
        f"cannot promote {loser}: the Champion is version {winner} by now, and was version 2 when"
    )
    assert in_file(ledger) == in_mlflow(ledger)
    expected = {1: "Archived", 2: "Archived", winner: "Champion", loser: "Candidate"}
    assert in_mlflow(ledger) == {"champion": winner, "candidate": loser, "stages": dict(sorted(expected.items()))}
    assert ledger.champion().previous_champion == 2


def test_rebuilding_needs_nothing_but_mlflow(ledger):
    expected = ledger.settings.registry_file.read_bytes()
    for damage in (b"", b'{"pending": nul', b'{"pending": null, "champion": 4, "versions": []}\n'):
        ledger.settings.registry_file.write_bytes(damage)
        assert ledger.rebuild().read_bytes() == expected
    ledger.settings.registry_file.unlink()
    assert ledger.rebuild().read_bytes() == expected


@pytest.mark.parametrize(
    "strange",
    [
        {"model": "sentiment", "pending": {"champion": 3, "tags": {}}},
        {"model": "sentiment", "pending": {"operation": "promote 2", "champion": 2}},
        {"model": 5, "pending": {"operation": "promote 3", "champion": 3, "tags": {}}},
        {"model": "sentiment", "pending": "promote 3"},
        {"pending": None},
    ],
)
def test_a_file_of_another_shape_is_not_believed_and_made_anew(strange, ledger):
    file = ledger.settings.registry_file
    expected = file.read_bytes()
    file.write_text(json.dumps(strange), encoding="utf-8")
    with ledger.lock():
        assert file.read_bytes() == expected


def test_a_champion_that_was_made_in_mlflow_itself_is_taken_up(ledger):
    ledger.client.set_registered_model_alias("sentiment", "champion", "4")
    assert ledger.champion().number == 4
    ledger.rebuild()
    assert in_mlflow(ledger) == in_file(ledger)
    assert in_mlflow(ledger)["stages"] == {1: "Archived", 2: "Archived", 3: "Candidate", 4: "Champion"}
    assert ledger.champion().previous_champion == 2


def test_of_several_that_say_champion_the_last_that_became_it_is_rolled_back_to(ledger):
    """1, 2, 3 and 2 again were Champions; kills left the stage of those that stepped down, and the file is lost."""
    ledger.crown("promote 3", 3, instead_of=2)
    ledger.crown("roll back to 2", 2, instead_of=3)
    for number in ("1", "3"):
        ledger.client.set_model_version_tag("sentiment", number, "stage", "Champion")
    ledger.client.set_registered_model_alias("sentiment", "champion", "4")
    ledger.rebuild()
    assert ledger.champion().previous_champion == 2
    assert in_mlflow(ledger)["stages"] == {1: "Archived", 2: "Archived", 3: "Archived", 4: "Champion"}


@pytest.mark.parametrize("hanging", [False, True], ids=["refusing", "hanging"])
def test_a_server_that_goes_away_is_one_sentence_soon_and_the_file_stays(hanging, template, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    shutil.copy(template / "model_registry.json", tmp_path)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        address = f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
        if not hanging:
            server.close()
        for operation, arguments in (("versions", ()), ("archive", (3,)), ("rebuild", ())):
            ledger = Ledger(Settings(var=tmp_path, mlflow_tracking_uri=address))
            ledger.client = MlflowClient(address, address)  # it answered when this process connected
            sentence = r"^the registry 'sentiment' cannot be asked or changed now \(.*127\.0\.0\.1"
            with pytest.raises(TrackingError, match=sentence) as refusal:
                getattr(ledger, operation)(*arguments)
            assert "secret" not in str(refusal.value)
            assert "\n" not in str(refusal.value)
        if hanging:
            server.setblocking(False)
            came = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    server.accept()[0].close()
                    came += 1
            assert 0 < came <= 9  # three a call, where MLflow's own patience has eight
    assert (tmp_path / "model_registry.json").read_bytes() == (template / "model_registry.json").read_bytes()


def test_two_registries_of_one_folder_do_not_finish_each_others_changes(ledger):
    """Killed while it crowned its version 3; then another registry, whose Champion is 3 as well, is used."""
    file = ledger.settings.registry_file
    other = Ledger(ledger.settings.model_copy(update={"registered_model": "stars"}))
    for number in (1, 2, 3):
        run = ledger.client.create_run(ledger.client.search_experiments()[0].experiment_id)
        other.create(f"file:///star{number}", run.info.run_id, tags(f"star{number}"))
    other.crown("promote 3", 3, instead_of=None)
    assert json.loads(file.read_text())["model"] == "stars"
    ledger.rebuild()
    killed = json.loads(file.read_text()) | {
        "pending": {"operation": "promote 3", "champion": 3, "tags": {"forced": "true", "previous_champion": "2"}}
    }
    ledger.client.set_registered_model_alias("sentiment", "champion", "3")
    file.write_text(json.dumps(killed))
    with other.lock():
        pass
    assert (other.champion().forced, other.champion().previous_champion) == (False, None)
    assert (ledger.champion().forced, ledger.champion().previous_champion) == (True, 2)
    assert json.loads(file.read_text())["model"] == "stars"


def test_the_lock_is_waited_for_and_the_wait_ends_with_a_sentence(tmp_path):
    with (
        locked(tmp_path / "registry.lock", seconds=LOCK_SECONDS),
        pytest.raises(RegistryError, match=r"another command has held .*registry.lock for 0.1 s; wait until"),
        locked(tmp_path / "registry.lock", seconds=0.1),
    ):
        pass


def test_an_unused_registry_is_empty_and_no_database_is_made_for_looking(tmp_path):
    ledger = Ledger(Settings(var=tmp_path / "var"))
    assert ledger.versions() == []
    assert ledger.champion() is None
    assert not (tmp_path / "var").exists()
