"""A good release and a rollback, with a real Triton and a real gateway: who is loaded, who answers, who is left be."""

import errno
import http.server
import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import onnx
import psutil
import pytest
from pydantic import SecretStr

from export import release as release_module
from export import rollback as rollback_module
from export.__main__ import main as export
from export.bundle import read_manifest
from export.candidate import main as candidate
from export.errors import ReleaseRefused, RepositoryAway, RepositoryBusy, TritonAway, TritonLost
from export.publish import open_stage
from export.release import let_go, load_beside, release, serve_again, soak
from export.rollback import main as rollback
from export.rollback import roll_back
from export.serving import Candidate, read_serving, replace_serving
from export.settings import Settings
from export.triton import Triton
from tests.bundles import tiny_model, write_bundle
from tests.export.live import House, asking, describe_anew, is_stub, lay, running_house, unreadable
from tests.gateway.gateway_process import wait_until
from tests.gateway.served_app import served_app
from tests.triton_process import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> House:
    with running_house(tmp_path_factory.mktemp("release")) as house:
        yield house


@pytest.fixture
def with_gateway(house):
    """The house with its gateway, and the URL of that."""
    with served_app(house.repository, house.triton.grpc_port) as app:
        yield replace(house, settings=house.settings.model_copy(update={"gateway_port": app.port})), app.url


@pytest.fixture
def at_rest(house) -> House:
    """Only what serves is loaded."""
    if read_serving(house.repository).previous is None:
        house.release()
    let_go(house.repository, house.settings, read_serving(house.repository))
    return house


def answering(url: str) -> int:
    return int(httpx.get(f"{url}/readyz").json()["model_version"])


def run(house: House, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | house.environment, capture_output=True, text=True
    )


def test_a_release_leaves_the_process_of_the_old_version_alone_until_the_soak_is_over(at_rest, caplog):
    caplog.set_level(logging.INFO)
    house = at_rest
    old = house.serving["version"]
    process = house.loaded[old]
    with asking(house):
        released = house.release()
        new = released.serving.version
        assert released.live
        assert house.named == [old, new]
        assert sorted(house.loaded) == [old, new]
        assert house.loaded[old] == process
        kept = house.loaded[new]
        soak(house.repository, house.settings, released.serving, 0.3)
    assert house.named == [new]
    assert house.loaded == {new: kept}
    assert house.serving == {
        "model": "sentiment", "version": new, "previous": old, "since": released.serving.since
    }  # fmt: skip
    assert f"version {old} is released; make rollback loads it again" in caplog.text


def test_the_gateway_has_turned_by_the_time_a_release_returns(with_gateway, caplog):
    caplog.set_level(logging.INFO)
    house, url = with_gateway
    with asking(house):
        new = house.release().serving.version
        assert answering(url) == new
    assert re.search(rf"the gateway answers with version {new}, \d\.\d\d s after serving.json named it", caplog.text)


def test_a_gateway_that_keeps_the_old_version_undoes_the_release(house, tmp_path):
    """It looks at another copy of the repository, as one does whose mount is stale."""
    shutil.copytree(house.repository, tmp_path / "stale")
    before, files, loaded = house.serving, house.files(), sorted(house.loaded)
    with served_app(tmp_path / "stale", house.triton.grpc_port) as app:
        deaf = replace(house, settings=house.settings.model_copy(update={"gateway_port": app.port}))
        words = r"does not answer with version \d+ after 10 s \(it answers with version \d+\); its log, .*gateway.log"
        with asking(house), pytest.raises(ReleaseRefused, match=words):
            deaf.release()
    assert house.serving == before | {"rolled_back": before["version"] + 1}
    assert house.files() == files
    assert sorted(house.loaded) == loaded
    good = house.release().serving
    assert good.version == before["version"] + 2, "the number of the refused one was seen, and is not used again"
    assert "rolled_back" not in house.serving


def test_a_rollback_answers_from_the_version_before_and_once_more_undoes_it(with_gateway):
    """How long it takes stands in the figures of tests/chaos; here, that it brings nothing along that takes long."""
    house, url = with_gateway
    new = house.release().serving.version
    old = new - 1
    with asking(house):
        for wanted, left in ((old, new), (new, old), (old, new)):
            ended = run(house, "-c", SPIED)
            wait_until(lambda wanted=wanted: answering(url) == wanted, 10, "the gateway answers with it")
            assert ended.returncode == 0, ended.stderr
            assert house.serving | {"since": None} == {
                "model": "sentiment", "version": wanted, "previous": left, "since": None, "rolled_back": left
            }  # fmt: skip
            assert re.search(
                rf"version {wanted} serves again, not version {left}\n.* answers with it, \d\.\d\d s after",
                ended.stdout,
            )
            assert "heavy at the flip: []" in ended.stderr
    assert sorted(house.loaded) == house.named == [old, new]


SPIED = """
import sys
from export import rollback, serving

def spied(*arguments, replace=rollback.replace_serving):
    done = replace(*arguments)
    heavy = {"torch", "transformers", "mlflow", "onnxruntime", "onnx", "pandas", "ray", "export.manifest"}
    heavy &= set(sys.modules)
    print("heavy at the flip:", sorted(heavy), file=sys.stderr)
    return done

rollback.replace_serving = spied
sys.exit(rollback.main([]))
"""


def test_a_version_that_was_let_go_is_loaded_and_proven_again_before_it_serves(at_rest):
    house = at_rest
    before = house.serving
    with asking(house):
        left, serving = roll_back(house.repository, house.settings)
    assert (left, serving.version) == (before["version"], before["previous"])
    assert house.serving["rolled_back"] == left
    assert house.named == sorted(house.loaded) == sorted([left, serving.version])


def test_a_version_that_was_damaged_meanwhile_is_not_rolled_back_to(at_rest):
    house = at_rest
    before = house.serving
    file = house.repository / "sentiment" / str(before["previous"]) / "model.onnx"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with asking(house):
        ended = run(house, "-m", "export.rollback")
    file.write_bytes(content)
    assert ended.returncode == 2
    assert "is not the file its manifest describes" in ended.stderr.splitlines()[-1]
    assert house.serving == before


def test_a_rollback_that_names_whom_it_leaves_is_done_once(with_gateway):
    house, _ = with_gateway
    old = house.serving["version"]
    new = house.release().serving.version
    for _ in range(2):
        ended = run(house, "-m", "export.rollback", "--leaving", str(new))
        assert ended.returncode == 0, ended.stderr
        assert (house.serving["version"], house.serving["previous"]) == (old, new)
        assert f"version {old} serves again, not version {new}" in ended.stdout


def test_a_rollback_does_not_wait_for_an_export_that_holds_the_repository(house):
    serving = house.release().serving
    with open_stage(house.repository):
        left, after = roll_back(house.repository, house.settings)
    assert (left, after.version) == (serving.version, serving.previous)


def test_a_rollback_while_its_version_is_being_let_go_has_it_loaded_again(house, monkeypatch):
    released = house.release().serving
    load, rollbacks = Triton.load, []

    def load_and_be_overtaken(triton, config):
        if not rollbacks:
            rollbacks.append(threading.Thread(target=roll_back, args=(house.repository, house.settings)))
            rollbacks[0].start()
            time.sleep(0.5)
        load(triton, config)

    monkeypatch.setattr(Triton, "load", load_and_be_overtaken)
    with asking(house):
        assert let_go(house.repository, house.settings, released)
        rollbacks[0].join()
    assert house.serving["version"] == released.previous
    assert house.named == sorted(house.loaded) == [released.previous, released.version]


def test_a_rollback_that_saw_its_version_loaded_and_is_overtaken_has_it_loaded_again(house, monkeypatch):
    released = house.release().serving
    is_ready, seen = Triton.is_ready, []

    def be_overtaken(triton, version):
        ready = is_ready(triton, version)
        if not seen:
            seen.append(ready)
            assert let_go(house.repository, house.settings, released)
        return ready

    monkeypatch.setattr(Triton, "is_ready", be_overtaken)
    with asking(house):
        roll_back(house.repository, house.settings)
    assert seen == [True]
    assert house.serving["version"] == released.previous
    assert house.named == sorted(house.loaded) == [released.previous, released.version]


def test_a_rollback_during_a_release_during_a_soak_finds_its_version_loaded(house, monkeypatch):
    soaking = house.release().serving
    prove = Triton.check_golden_rows

    def prove_and_be_rolled_back(triton, manifest, size):
        prove(triton, manifest, size)
        roll_back(house.repository, house.settings)

    monkeypatch.setattr(Triton, "check_golden_rows", prove_and_be_rolled_back)
    with asking(house):
        with pytest.raises(RepositoryBusy, match="another command has changed"):
            house.release()
        assert house.serving["version"] == soaking.previous
        assert house.named == sorted(house.loaded) == [soaking.previous, soaking.version]


def test_what_serves_already_is_not_made_to_serve_again(house):
    before = house.release().serving
    with pytest.raises(RepositoryBusy, match=f"version {before.version} serves already: another command was faster"):
        serve_again(house.repository, before.version, house.settings)
    assert read_serving(house.repository) == before


def test_a_rollback_that_a_release_overtakes_goes_nowhere(at_rest, monkeypatch):
    house, released = at_rest, []
    monkeypatch.setattr(Triton, "is_ready", lambda *_: released.append(house.release().serving))
    with pytest.raises(RepositoryBusy, match="another command has changed"):
        roll_back(house.repository, house.settings)
    assert len(released) == 1
    assert read_serving(house.repository) == released[0]


def test_a_soak_outlasts_another_command_that_holds_the_repository(house, caplog):
    caplog.set_level(logging.INFO)
    released = house.release().serving
    with open_stage(house.repository):
        soaking = threading.Thread(target=soak, args=(house.repository, house.settings, released, 0.1))
        soaking.start()
        soaking.join(1.0)
        assert soaking.is_alive()
        assert f"version {released.previous} stays loaded a while longer: another export" in caplog.text
    soaking.join(10)
    assert house.named == sorted(house.loaded) == [released.version]


def test_of_two_candidates_that_are_started_at_once_the_second_is_refused(house):
    before = house.release().serving
    replace_serving(house.repository, before, replace(before, candidate=Candidate(before.previous, "shadow", 1, "")))
    with open_stage(house.repository) as stage, pytest.raises(ReleaseRefused, match="is the candidate already"):
        lay(stage.version_folder, stage.version)
        load_beside(stage, house.settings, "shadow", 0.5)
    replace_serving(house.repository, read_serving(house.repository), before)
    assert stage.version not in house.loaded


def test_a_release_gives_way_to_a_rollback_that_came_between_its_steps(house, monkeypatch):
    serving = house.release().serving
    prove = Triton.check_golden_rows

    def prove_and_be_overtaken(triton, manifest, size):
        prove(triton, manifest, size)
        before = read_serving(house.repository)
        replace_serving(house.repository, before, replace(before, since="2026-11-22T00:00:00+00:00"))

    monkeypatch.setattr(Triton, "check_golden_rows", prove_and_be_overtaken)
    with asking(house), pytest.raises(RepositoryBusy, match=r"another command has changed .*serving.json meanwhile"):
        house.release()
    assert house.serving["version"] == serving.version
    assert serving.version + 1 not in house.loaded
    assert not (house.repository / "sentiment" / str(serving.version + 1)).exists()


def test_a_soak_ends_quietly_when_somebody_rolls_back(house, caplog):
    caplog.set_level(logging.INFO)
    released = house.release().serving
    soaking = threading.Thread(target=soak, args=(house.repository, house.settings, released, 60))
    soaking.start()
    roll_back(house.repository, house.settings)
    soaking.join(5)
    assert not soaking.is_alive()
    assert sorted(house.loaded) == [released.previous, released.version]
    assert f"the soak of version {released.version} ends" in caplog.text


def test_ctrl_c_in_the_soak_leaves_both_versions_loaded(house, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    released = house.release().serving
    monkeypatch.setattr(release_module.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGINT))
    soak(house.repository, house.settings, released, 60)
    monkeypatch.undo()
    assert sorted(house.loaded) == [released.previous, released.version]
    assert "both stay loaded until the next release" in caplog.text


def test_a_release_keeps_the_candidate_loaded(house):
    candidate = house.release().serving
    roll_back(house.repository, house.settings)
    before = read_serving(house.repository)
    named = Candidate(candidate.version, "shadow", 0.5, before.since)
    replace_serving(house.repository, before, replace(before, candidate=named))
    process = house.loaded[candidate.version]
    released = house.release().serving
    assert house.loaded[candidate.version] == process
    assert house.named == [before.version, candidate.version, released.version]
    let_go(house.repository, house.settings, released)
    assert house.named == sorted(house.loaded) == [candidate.version, released.version]
    assert house.serving["candidate"]["version"] == candidate.version
    replace_serving(house.repository, read_serving(house.repository), replace(released, candidate=None))


def test_a_triton_that_dies_during_a_release_comes_back_with_the_old_version(house, monkeypatch):
    before = house.serving["version"]
    let_go(house.repository, house.settings, read_serving(house.repository))
    prove = Triton.check_golden_rows

    def kill_triton_first(triton, manifest, size):
        (server,) = (each for each in psutil.Process(house.triton.process.pid).children() if not is_stub(each))
        server.kill()
        server.wait()
        prove(triton, manifest, size)

    monkeypatch.setattr(Triton, "check_golden_rows", kill_triton_first)
    starts = house.triton.output.count(" ready ")
    with pytest.raises(TritonLost, match=f"version {before} serves on"):
        house.release()
    monkeypatch.undo()
    house.triton.wait_for_line(" ready ", count=starts + 1)
    assert house.named == sorted(house.loaded) == [before]
    assert house.release().serving.version == before + 1


def test_the_triton_of_another_repository_is_left_alone(house, tmp_path):
    other = tmp_path / "other" / "model_repository"
    folder = write_bundle(other, house.serving["version"])
    onnx.save(tiny_model(version=1), str(folder / "model.onnx"))
    describe_anew(folder)
    loaded = house.loaded
    elsewhere = replace(house, repository=other)
    with asking(house), pytest.raises(ReleaseRefused, match="serves another repository"):
        elsewhere.release()
    assert house.loaded == loaded
    assert sorted(path.name for path in (other / "sentiment").iterdir()) == [
        str(house.serving["version"]), "config.pbtxt"
    ]  # fmt: skip


def test_a_version_whose_folder_is_gone_does_not_stand_in_the_way(house):
    soaking = house.release().serving
    shutil.rmtree(house.repository / "sentiment" / str(soaking.previous))
    assert soaking.previous in house.loaded
    with asking(house):
        released = house.release().serving
    assert house.named == sorted(house.loaded) == [soaking.version, released.version]


def test_a_version_that_is_not_loaded_is_refused_and_triton_is_not_blamed(at_rest):
    folder = at_rest.repository / "sentiment" / str(at_rest.serving["previous"])
    with Triton(at_rest.settings) as triton, pytest.raises(ReleaseRefused, match="not at ready state"):
        triton.check_golden_rows(read_manifest(folder), 64)


def test_another_service_on_the_port_of_the_gateway_is_named(house, monkeypatch, capsys):
    before = house.release().serving
    followed = []
    monkeypatch.setattr(rollback_module, "follow_in_registry", lambda *arguments: followed.append(arguments[1:]))
    server = http.server.HTTPServer(("127.0.0.1", 0), SomethingElse)
    threading.Thread(target=server.serve_forever).start()
    try:
        settings = house.settings.model_copy(update={"gateway_port": server.server_port})
        with pytest.raises(ReleaseRefused, match=r"another service than the gateway .* set NUNCHI_GATEWAY_PORT to"):
            replace(house, settings=settings).release()
        for name, value in replace(house, settings=settings).environment.items():
            monkeypatch.setenv(name, value)
        assert rollback([]) == 2
    finally:
        server.shutdown()
        server.server_close()
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("error: another service than the gateway")
    assert f"version {before.previous} serves again" in said.out
    assert followed == [(before.version, before.previous)], "the registry follows all the same"


class SomethingElse(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_):
        pass


def test_ctrl_c_in_a_rollback_is_one_line(house, monkeypatch, capsys):
    monkeypatch.setattr(rollback_module, "roll_back", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert rollback([]) == 130
    assert capsys.readouterr().err == "error: interrupted; what served before serves on\n"


def test_a_rollback_on_a_full_disk_changes_nothing_and_says_so(house, monkeypatch, capsys):
    house.release()
    for name, value in house.environment.items():
        monkeypatch.setenv(name, value)
    files, (soft, hard) = house.files(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        status = rollback([])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert "has no room left (File too large); make room there, nothing was changed" in capsys.readouterr().err
    assert house.files() == files


@pytest.mark.parametrize("command", ["rollback", "export", "status"])
def test_a_repository_that_cannot_be_read_is_named_in_one_line(tmp_path, monkeypatch, capsys, command):
    repository = tmp_path / "house" / "model_repository"
    write_bundle(repository)
    monkeypatch.setenv("NUNCHI_MODEL_REPOSITORY", str(repository))
    commands = {
        "rollback": lambda: rollback([]),
        "export": lambda: export(["--checkpoint", "/nowhere"]),
        "status": lambda: candidate(["status"]),
    }
    with unreadable(repository):
        assert commands[command]() == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"error: {repository}" in said[0]
    assert "cannot be used (Permission denied); let this user read and write" in said[0]


def test_a_parent_folder_that_cannot_be_written_is_named_in_one_line(tmp_path, monkeypatch):
    write_bundle(tmp_path / "house" / "model_repository")

    def refuse(**options):
        raise PermissionError(errno.EACCES, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    refusal = pytest.raises(RepositoryAway, match=r"house cannot be used \(Permission denied\)")
    with refusal, open_stage(tmp_path / "house" / "model_repository"):
        pass


def test_a_soak_whose_repository_is_gone_says_so(house):
    released = house.release().serving
    away = house.repository.with_name("away")
    house.repository.rename(away)
    try:
        with pytest.raises(RepositoryAway, match="was there and is gone; bring the repository back"):
            soak(house.repository, house.settings, released, 5)
        assert not house.repository.exists()
    finally:
        away.rename(house.repository)


def test_a_wrong_admin_key_is_named_with_its_remedy(house, tmp_path):
    stranger = house.settings.model_copy(update={"triton_admin_key": SecretStr("not-the-key-of-this-one")})
    padded = house.settings.model_copy(update={"triton_admin_key": SecretStr(f" {house.triton.admin_key}\n")})
    with Triton(padded) as triton:
        assert house.serving["version"] in triton.ready_versions()
    with pytest.raises(TritonAway, match="refuses the admin key; set NUNCHI_TRITON_ADMIN_KEY"):
        replace(house, settings=stranger).release()
    homeless = house.settings.model_copy(update={"var": tmp_path})
    with pytest.raises(TritonAway, match=r"wants its admin key, and .* cannot be read"):
        replace(house, settings=homeless).release()


def test_a_gateway_without_triton_is_waited_for_and_then_refused(house, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        (nobody,) = free_ports(1)
        settings = house.settings.model_copy(
            update={"gateway_port": gateway.getsockname()[1], "triton_grpc_port": nobody}
        )
        files = house.files()
        wait = Triton.wait
        monkeypatch.setattr(Triton, "wait", lambda triton: wait(triton, seconds=0.5))
        with pytest.raises(TritonAway, match=r"a gateway serves, but Triton at .* has not answered for"):
            replace(house, settings=settings).release()
        assert house.files() == files


def test_without_servers_a_release_is_published_for_the_next_start(tmp_path):
    repository = tmp_path / "model_repository"
    triton, gateway = free_ports(2)
    settings = Settings(model_repository=str(repository), triton_grpc_port=triton, gateway_port=gateway)
    for version in (1, 2):
        with open_stage(repository) as stage:
            lay(stage.version_folder, stage.version)
            assert not release(stage, settings).live
        assert read_serving(repository).version == version
    left, serving = roll_back(repository, settings)
    assert (left, serving.version, serving.rolled_back) == (2, 1, 2)


def test_where_there_is_no_version_before_a_rollback_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NUNCHI_MODEL_REPOSITORY", str(tmp_path))
    (tmp_path / "serving.json").write_text(json.dumps({"model": "sentiment", "version": 4, "previous": None}))
    assert rollback([]) == 2
    assert "names no version before, so there is none to go back to" in capsys.readouterr().err
