"""`x-ask-version`: the version that answers or the one on trial, as asked for; any other is refused."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import gateway.champion
from tests.bundles import set_serving, write_bundle
from tests.gateway.gateway_process import wait_until
from tests.gateway.judging import Judge
from tests.gateway.served_app import ServedApp, served_app
from tests.gateway.test_outage import load
from tests.triton_process import running_triton

LIVE, ON_TRIAL, LOADED_ONLY = 1, 2, 3


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("asked") / "model_repository"
    for version in (LIVE, ON_TRIAL, LOADED_ONLY):
        write_bundle(repository, version, dialect=version)
    return repository


@pytest.fixture(scope="module")
def app(repository: Path) -> Iterator[ServedApp]:
    """All three versions are loaded; none is on trial yet."""
    with (
        running_triton(repository, repository.parent / "var") as triton,
        served_app(repository, triton.grpc_port) as app,
    ):
        yield app


@pytest.fixture(scope="module")
def judge(repository: Path) -> Judge:
    return Judge(repository)


def ask(app: ServedApp, text: str, version: object) -> httpx.Response:
    headers = {"x-ask-version": str(version)}
    return app.client.post("/v1/predict", json={"text": text, "return_probs": True}, headers=headers)


@pytest.fixture(params=["shadow", "canary"])
def trial(request, app: ServedApp, repository: Path) -> Iterator[str]:
    """The mode of a trial that gets every request; it is over in the end."""

    def shown() -> str | None:
        candidate = app.client.get("/v1/model").json()["candidate"]
        return candidate and candidate["mode"]

    set_serving(repository, LIVE, candidate={"version": ON_TRIAL, "mode": request.param, "share": 1.0})
    wait_until(lambda: shown() == request.param, 10, "it is on trial")
    yield request.param
    set_serving(repository, LIVE)
    wait_until(lambda: shown() is None, 10, "the trial is over")


def test_each_of_the_two_answers_when_it_is_asked_and_the_trial_counts_none_of_it(app, judge, trial):
    def counted() -> list[str]:
        lines = app.client.get("/metrics").text.splitlines()
        return [each for each in lines if each.startswith(("nunchi_gateway_shadow", "nunchi_gateway_candidate"))]

    before = counted()
    for version in (LIVE, ON_TRIAL):
        for text in judge.texts:
            answer = ask(app, text, version)
            assert answer.headers["x-model-version"] == str(version)
            assert judge.fault(text, answer) is None
        batch = app.client.post(
            "/v1/predict/batch", json={"texts": judge.texts}, headers={"x-ask-version": str(version)}
        ).json()
        assert batch["model_version"] == str(version)
        assert [row["prediction"] for row in batch["predictions"]] == [
            judge.label(version, text) for text in judge.texts
        ]
    assert counted() == before
    app.predict(judge.texts[0])
    if trial == "shadow":
        wait_until(lambda: counted() != before, 5, "a request that names no version is counted")


@pytest.mark.parametrize("version", [LOADED_ONLY, 4, 999_999])
def test_a_version_that_is_neither_is_refused_although_triton_may_have_it(app, trial, version):
    refused = ask(app, "좋다", version)
    assert (refused.status_code, refused.json()["code"]) == (404, "version_not_loaded")
    assert f"version {version} is neither" in refused.json()["detail"]
    assert "ask 1 and 2, or leave x-ask-version out" in refused.json()["detail"]


def test_without_a_trial_only_the_version_that_answers_can_be_asked(app):
    assert ask(app, "좋다", LIVE).json()["model_version"] == str(LIVE)
    assert "ask 1, or leave" in ask(app, "좋다", ON_TRIAL).json()["detail"]


@pytest.mark.parametrize("version", ["", "0", "-1", "1.0", "01", "latest", "1" * 30])
def test_what_is_not_the_number_of_a_version_is_refused(app, version):
    refused = ask(app, "좋다", version)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert "x-ask-version" in refused.json()["detail"]


def test_an_asked_text_is_checked_as_any_other(app):
    assert ask(app, " ", LIVE).json()["code"] == "empty_text"
    assert app.metric("nunchi_gateway_in_flight_texts") == 0


def test_a_version_that_triton_has_let_go_is_503_and_404_once_its_trial_is_over(tmp_path, monkeypatch):
    repository = tmp_path / "model_repository"
    for version in (LIVE, ON_TRIAL):
        write_bundle(repository, version, dialect=version)
    set_serving(repository, LIVE, candidate={"version": ON_TRIAL, "mode": "shadow", "share": 0.1})
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        wait_until(lambda: ask(app, "좋다", ON_TRIAL).status_code == 200, 10, "it is on trial")
        config = repository / "sentiment" / "config.pbtxt"
        config.write_text(config.read_text().replace(f"versions: {ON_TRIAL}\n", ""))
        load(triton)
        gone = ask(app, "좋다", ON_TRIAL)
        assert (gone.status_code, gone.json()["code"]) == (503, "model_unavailable")
        monkeypatch.setattr(gateway.champion, "POLL_SECONDS", 3600.0)
        time.sleep(0.5)  # the watch has begun its long sleep
        set_serving(repository, LIVE)
        assert ask(app, "좋다", ON_TRIAL).json()["code"] == "version_not_loaded", "it has looked at serving.json again"
        assert ask(app, "좋다", LIVE).status_code == 200
