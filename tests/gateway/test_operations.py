"""`/v1/operations`: who may, what is refused, and the project's real commands run through it against a real Triton."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

import gateway.operations
from export.publish import open_stage
from export.release import load_beside
from gateway.schemas import OperationAnswer, OperationsAnswer
from tests.export.live import House, lay, running_house
from tests.gateway.gateway_process import wait_until
from tests.gateway.judging import Judge, callers
from tests.gateway.served_app import ServedApp, served_app

ADMIN_KEY = "an-admin-key-of-the-tests"
OPERATOR = {"x-admin-key": ADMIN_KEY}
ROLLBACK = {"what": "rollback"}


@pytest.fixture(scope="module")
def guarded_app(shared_repository, shared_triton) -> Iterator[ServedApp]:
    """It asks for both keys.  Nobody begins anything here."""
    with served_app(
        shared_repository, shared_triton.grpc_port, admin_key=ADMIN_KEY, api_key="s3cret"
    ) as app:  # fmt: skip
        app.client.headers["authorization"] = "Bearer s3cret"
        yield app


def test_without_the_setting_nobody_may_and_the_setting_is_named(shared_app):
    for method, path in (("POST", "/v1/operations"), ("GET", "/v1/operations"), ("GET", "/v1/operations/1")):
        for headers in ({}, {"x-admin-key": ""}, OPERATOR):
            refused = shared_app.client.request(method, path, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
            assert "NUNCHI_ADMIN_KEY" in refused.json()["detail"]


@pytest.mark.parametrize("offered", [None, "", "wrong", ADMIN_KEY[:-1], f"{ADMIN_KEY}x", f"Bearer {ADMIN_KEY}", "é"])
def test_any_other_key_is_refused(guarded_app, offered):
    headers = {} if offered is None else {b"x-admin-key": offered.encode()}
    for method, path in (("POST", "/v1/operations"), ("GET", "/v1/operations"), ("GET", "/v1/operations/1")):
        refused = guarded_app.client.request(method, path, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
        assert ADMIN_KEY not in refused.text


def test_the_key_is_compared_by_digests_in_constant_time(guarded_app, monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda *both: compared.append([len(each) for each in both]) or False)
    monkeypatch.setattr("gateway.keys.Keys.owner", lambda keys, authorization: "whoever")
    assert guarded_app.client.get("/v1/operations", headers=OPERATOR).status_code == 403
    assert compared == [[32, 32]]


def test_the_admin_key_does_not_stand_for_the_key_of_the_gateway(guarded_app):
    refused = guarded_app.client.get("/v1/operations", headers=OPERATOR | {"authorization": f"Bearer {ADMIN_KEY}"})
    assert refused.status_code == 401
    assert guarded_app.client.get("/v1/operations", headers=OPERATOR).json() == {"operations": []}


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({}, "what: Field required"),
        ({"what": "export"}, "what: Input should be 'promote'"),
        ({"what": "rollback; reboot"}, "what: Input should be"),
        ({"what": "rollback", "mode": "shadow"}, "rollback takes neither mode nor share"),
        ({"what": "candidate-start"}, "candidate-start takes mode and share"),
        ({"what": "candidate-start", "mode": "shadow"}, "candidate-start takes mode and share"),
        ({"what": "candidate-start", "mode": "--checkpoint", "share": 0.5}, "mode: Input should be 'shadow'"),
        ({"what": "candidate-start", "mode": "shadow", "share": 1.5}, "share: Input should be less than or equal"),
        ({"what": "candidate-start", "mode": "shadow", "share": "0.5"}, "share: Input should be a valid number"),
        ({"what": "candidate-start", "mode": "shadow", "share": 0.5, "checkpoint": "/x"}, "checkpoint: Extra inputs"),
    ],
)
def test_what_no_command_takes_is_refused_and_nothing_begins(guarded_app, body, complaint):
    refused = guarded_app.client.post("/v1/operations", json=body, headers=OPERATOR)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert complaint in refused.json()["detail"]
    assert guarded_app.client.get("/v1/operations", headers=OPERATOR).json() == {"operations": []}


def test_an_operation_that_there_was_not_is_not_found_and_counted_under_one_name(guarded_app):
    for identity in ("1", "9f86d081884c7d65", "..%2F..%2Fetc"):
        unknown = guarded_app.client.get(f"/v1/operations/{identity}", headers=OPERATOR)
        assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert 'route="/v1/operations/{operation}",status="404"' in guarded_app.client.get("/metrics").text


def test_without_the_commands_the_remedy_is_named(guarded_app, tmp_path, monkeypatch):
    monkeypatch.setattr(gateway.operations, "ROOT", tmp_path)  # as in a container that has the gateway alone
    refused = guarded_app.client.post("/v1/operations", json=ROLLBACK, headers=OPERATOR)
    assert (refused.status_code, refused.json()["code"]) == (501, "not_available")
    assert "`python -m export.rollback` where the project is checked out" in refused.json()["detail"]


def test_pages_of_other_origins_may_ask_a_version_but_not_operate(shared_repository, shared_triton):
    with served_app(shared_repository, shared_triton.grpc_port, cors_origins="*", admin_key=ADMIN_KEY) as app:
        page = {"origin": "https://example.org", "access-control-request-method": "POST"}
        statuses = [
            app.client.options(path, headers=page | {"access-control-request-headers": header}).status_code
            for path, header in (("/v1/predict", "x-ask-version"), ("/v1/operations", "x-admin-key"))
        ]
    assert statuses == [200, 400]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[House]:
    """Versions 1 and 2 are loaded; 2 serves."""
    with running_house(tmp_path_factory.mktemp("operated")) as house:
        house.release()
        yield house


@pytest.fixture
def app(house, monkeypatch) -> Iterator[ServedApp]:
    """The commands find the admin key of Triton where the environment of the gateway says."""
    monkeypatch.setenv("NUNCHI_VAR", str(house.triton.var_dir))
    with served_app(house.repository, house.triton.grpc_port, admin_key=ADMIN_KEY) as app:
        app.client.headers.update(OPERATOR)
        yield app


def begin(app: ServedApp, what: str, **more: object) -> dict:
    answer = app.client.post("/v1/operations", json={"what": what, **more})
    assert answer.status_code == 202, answer.text
    OperationAnswer.model_validate_json(answer.content)
    return answer.json()


def look(app: ServedApp, operation: dict) -> dict:
    answer = app.client.get(f"/v1/operations/{operation['id']}")
    OperationAnswer.model_validate_json(answer.content)
    return answer.json()


def wait_for(app: ServedApp, operation: dict, state: str = "done", seconds: float = 60) -> dict:
    wait_until(lambda: look(app, operation)["state"] != "running", seconds, f"{operation['what']} has ended")
    found = look(app, operation)
    assert found["state"] == state, found
    return found


def test_a_rollback_answers_under_load_and_no_request_is_lost(app, house, caplog):
    caplog.set_level(logging.INFO, logger="gateway.operations")
    before = house.serving
    with callers(app, Judge(house.repository)) as heard:
        begun = app.client.post("/v1/operations", json=ROLLBACK, headers={"x-request-id": "by-hand"}).json()
        assert (begun["what"], begun["state"], begun["ended"], begun["result"]) == ("rollback", "running", None, None)
        ended = wait_for(app, begun)
        time.sleep(0.2)
    assert heard.faults == []
    assert list(dict.fromkeys(heard.versions)) == [str(before["version"]), str(before["previous"])]
    assert "the gateway answers with it" in ended["result"]
    assert begun["began"] <= ended["ended"]
    assert house.serving["version"] == before["previous"]
    beginning, end = caplog.records
    assert beginning.getMessage() == "python -m export.rollback begins"
    assert beginning.fields == {"operation": begun["id"], "request_id": "by-hand", "client": "127.0.0.1"}
    assert (end.levelname, end.fields) == ("INFO", beginning.fields)


def test_what_the_command_says_is_what_one_reads_when_it_fails(app):
    ended = wait_for(app, begin(app, "candidate-end"), "failed")
    assert ended["result"] is None
    assert "names no candidate, so there is none to end" in ended["lines"][-1]
    listed = app.client.get("/v1/operations")
    OperationsAnswer.model_validate_json(listed.content)
    assert listed.json()["operations"] == [ended]


def test_a_candidate_of_an_empty_registry_is_refused_by_the_command(app):
    ended = wait_for(app, begin(app, "candidate-start", mode="shadow", share=0.5), "failed")
    assert "has no Candidate; register one with make register" in ended["lines"][-1]


def test_a_promotion_is_at_work_for_its_soak_and_a_rollback_need_not_wait_for_it(app, house):
    with open_stage(house.repository) as stage:
        lay(stage.version_folder, stage.version)
        load_beside(stage, house.settings, "shadow", 0.5)
    before, candidate = house.serving["version"], house.serving["candidate"]["version"]
    promotion = begin(app, "promote")
    busy = app.client.post("/v1/operations", json={"what": "promote"})
    assert (busy.status_code, busy.json()["code"]) == (409, "busy")
    assert f"promote ({promotion['id']}) is at work since {promotion['began']}" in busy.json()["detail"]

    promised = f"version {candidate} serves"
    wait_until(lambda: look(app, promotion)["result"] == promised, 60, "the candidate serves")
    assert app.predict("좋다").json()["model_version"] == str(candidate)
    assert look(app, promotion)["state"] == "running"
    wait_for(app, begin(app, "rollback"))
    assert app.predict("좋다").json()["model_version"] == str(before)
    assert [each["what"] for each in app.client.get("/v1/operations").json()["operations"]] == ["rollback", "promote"]


def test_a_command_at_work_ends_with_the_gateway(house, monkeypatch):
    monkeypatch.setenv("NUNCHI_VAR", str(house.triton.var_dir))
    with served_app(house.repository, house.triton.grpc_port, admin_key=ADMIN_KEY) as app:
        app.client.headers.update(OPERATOR)
        begin(app, "candidate-start", mode="canary", share=1)
        wait_until(lambda: commands(), 10, "the command runs")
        (command,) = commands()
    assert psutil.wait_procs([command], timeout=0.1)[1] == []


def commands() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [each for each in children if "export.candidate" in each.cmdline() and "gateway.leash" not in each.cmdline()]


def test_a_leash_holds_although_the_gateway_is_killed():
    program = (
        "import os, subprocess, sys\n"
        "leash = [sys.executable, '-m', 'gateway.leash', str(os.getpid()), '/bin/sleep', '60']\n"
        "print(subprocess.Popen(leash).pid, flush=True)\n"
        "input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as holder:
        held = psutil.Process(int(holder.stdout.readline()))
        wait_until(lambda: held.name() == "sleep", 10, "the command runs")
        holder.send_signal(signal.SIGKILL)
    assert psutil.wait_procs([held], timeout=5)[1] == []


def test_a_command_sees_neither_the_admin_key_nor_what_is_rays(monkeypatch):
    monkeypatch.setenv("NUNCHI_ADMIN_KEY", ADMIN_KEY)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a token")
    settings = gateway.operations.Settings(host="127.0.0.9", gateway_port=1234)
    found = gateway.operations._environment(settings)
    assert not {"NUNCHI_ADMIN_KEY", "RAY_AUTH_TOKEN"} & set(found)
    assert (found["NUNCHI_HOST"], found["NUNCHI_GATEWAY_PORT"]) == ("127.0.0.9", "1234")
    assert found["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    "key", ["fifteen-letters", "", "   ", "with a space in it", "눈치눈치눈치눈치눈치눈치눈치눈치"]
)
def test_an_admin_key_that_will_not_do_is_refused_at_the_start_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("NUNCHI_ADMIN_KEY", key)
    with pytest.raises(gateway.errors.SettingRefused, match=f"NUNCHI_ADMIN_KEY has {len(key)} characters") as refusal:
        gateway.settings.read_settings()
    assert not key.strip() or key not in str(refusal.value)
