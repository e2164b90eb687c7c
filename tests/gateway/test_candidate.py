"""A version on trial beside the one that answers: whom it gets, what callers notice (nothing), when it is ended."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import gateway.candidate
from gateway.admission import Admission
from gateway.bundle import Terms, read_bundle
from gateway.candidate import ERROR_SHARE, LEAST, LEAST_PAIRS, SHADOW_TEXTS, WINDOW, Shadow, Trial
from gateway.metrics import Metrics
from gateway.triton import Triton
from tests.bundles import (
    CREATED,
    MODEL,
    UNKNOWN,
    set_serving,
    tiny_embedding,
    tiny_model,
    write_bundle,
)
from tests.gateway.gateway_process import wait_until
from tests.gateway.judging import Judge, callers
from tests.gateway.served_app import ServedApp, served_app
from tests.gateway.test_outage import load, replace_model
from tests.gateway.triton_parts import stopped_triton
from tests.triton_process import TritonProcess, free_ports, running_triton

LIVE, OTHER, BROKEN, SLOW, THIRD = 1, 6, 2, 3, 4
LATER = "2026-11-22T13:00:00+00:00"
UNREADABLE = "모르는말"  # a word the broken version has no finite number for


def broken_model() -> onnx.ModelProto:
    """Proves itself with every golden row, and answers an unknown word with infinity."""
    table = tiny_embedding()
    table[UNKNOWN] = float("inf")
    return tiny_model(version=BROKEN, embedding=table)


def slow_model() -> onnx.ModelProto:
    """The tiny model, and on the way to its answer five hundred products that come to nothing."""
    model = tiny_model(version=SLOW)
    zeros = {"into_nothing": np.zeros((4, 1024), np.float32), "nothing": np.zeros((1024, 1024), np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in zeros.items())
    last = model.graph.node.pop()  # Add(product, bias) -> logits
    model.graph.node.append(helper.make_node("MatMul", ["mean", "into_nothing"], ["work0"]))
    for step in range(500):
        model.graph.node.append(helper.make_node("MatMul", [f"work{step}", "nothing"], [f"work{step + 1}"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["work500", "length_axis"], ["came_to"], keepdims=1))
    model.graph.node.append(helper.make_node("Add", [last.input[0], "came_to"], ["worked"]))
    model.graph.node.append(helper.make_node("Add", ["worked", last.input[1]], ["logits"]))
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("versions") / "model_repository"
    write_bundle(repository, LIVE)
    write_bundle(repository, OTHER, dialect=3)
    write_bundle(repository, THIRD, dialect=1)
    replace_model(write_bundle(repository, BROKEN), broken_model(), version=BROKEN)
    replace_model(write_bundle(repository, SLOW), slow_model(), version=SLOW)
    return repository


@pytest.fixture(scope="module")
def triton(versions: Path) -> Iterator[TritonProcess]:
    """All versions are loaded; nobody may break it."""
    with running_triton(versions, versions.parent / "var") as triton:
        yield triton


@pytest.fixture
def repository(versions: Path, tmp_path: Path) -> Path:
    """The same versions under a serving.json of this test alone."""
    (tmp_path / MODEL).symlink_to(versions / MODEL)
    set_serving(tmp_path, LIVE)
    return tmp_path


@pytest.fixture
def app(repository: Path, triton: TritonProcess) -> Iterator[ServedApp]:
    with served_app(repository, triton.grpc_port) as app:
        yield app


@pytest.fixture(scope="module")
def judge(versions: Path) -> Judge:
    return Judge(versions)


def terms(version: int, mode: str, share: float, since: str = CREATED) -> Terms:
    return Terms(version=version, mode=mode, share=share, since=datetime.fromisoformat(since))


def try_out(app: ServedApp, repository: Path, version: int, mode: str, share: float, since: str = CREATED) -> None:
    """Put a version on trial and wait until it gets its share."""
    set_serving(repository, LIVE, candidate={"version": version, "mode": mode, "share": share, "since": since})
    wait_until(lambda: share_of(app, version, mode) == share, 10, f"version {version} is on trial")


def metric(app: ServedApp, name: str, default: float = 0.0) -> float:
    try:
        return app.metric(f"nunchi_gateway_{name}")
    except KeyError:
        return default


def share_of(app: ServedApp, version: int, mode: str) -> float:
    return metric(app, f'candidate_share{{mode="{mode}",version="{version}"}}')


def shadowed(app: ServedApp, version: int) -> float:
    return metric(app, f'shadow_texts_total{{version="{version}"}}')


def failures(app: ServedApp, version: int) -> float:
    return metric(app, f'candidate_failures_total{{version="{version}"}}')


def is_ended(app: ServedApp, version: int, reason: str) -> bool:
    return metric(app, f'candidate_ended{{reason="{reason}",version="{version}"}}') == 1


def ask(app: ServedApp, text: str, key: str | None = None) -> httpx.Response:
    headers = {"x-request-key": key} if key else {}
    return app.client.post("/v1/predict", json={"text": text, "return_probs": True}, headers=headers)


def version_of(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    return int(answer.headers["x-model-version"])


def a_trial(repository: Path, share: float, version: int = OTHER) -> Trial:
    return Trial(read_bundle(repository, version), terms(version, "canary", share), lambda code, sentence: None)


# Whom it gets


def test_the_share_is_kept_and_a_larger_one_keeps_the_keys_of_a_smaller_one(versions):
    keys = [f"caller-{number}" for number in range(20_000)]
    small, large, other = a_trial(versions, 0.1), a_trial(versions, 0.3), a_trial(versions, 0.1, THIRD)
    few, many = ({key for key in keys if trial.takes(key)} for trial in (small, large))
    for taken, share in ((few, 0.1), (many, 0.3)):
        deviation = (len(keys) * share * (1 - share)) ** 0.5
        assert abs(len(taken) - len(keys) * share) < 4 * deviation
    assert few < many
    assert len({key for key in few if other.takes(key)}) < 0.2 * len(few)  # not always the same callers
    everybody = a_trial(versions, 1.0)
    assert all(everybody.takes(key) for key in keys)


def test_the_same_key_is_taken_in_every_process(versions):
    keys = ["", "a", "영화", "\ud800", "caller-7", *map(str, range(50))]
    ours = [a_trial(versions, 0.5).takes(key) for key in keys]
    program = f"""
from pathlib import Path
from tests.gateway.test_candidate import a_trial
print([a_trial(Path({str(versions)!r}), 0.5).takes(key) for key in {keys!r}])
"""
    for seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == str(ours)


# Canary


def test_a_canary_answers_its_share_with_its_own_tokenizer_labels_and_version(app, repository, judge):
    try_out(app, repository, OTHER, "canary", 0.4)
    expected = a_trial(repository, 0.4)
    seen = []
    for number in range(60):
        text, key = judge.texts[number % len(judge.texts)], f"caller-{number % 30}"
        answer = ask(app, text, key)
        assert judge.fault(text, answer) is None
        assert version_of(answer) == (OTHER if expected.takes(key) else LIVE)
        seen.append(version_of(answer))
    assert seen[:30] == seen[30:] and set(seen) == {LIVE, OTHER}
    for text in judge.texts:
        assert version_of(ask(app, text)) == (OTHER if expected.takes(text) else LIVE)  # without a key: the text
    batch = app.batch(judge.texts, return_probs=True)
    assert version_of(batch) == (OTHER if expected.takes(judge.texts[0]) else LIVE)
    rows = judge.rows[batch.headers["x-model-version"]]
    for text, row in zip(judge.texts, batch.json()["predictions"], strict=True):
        assert row["input_tokens"] == len(rows[text]["input_ids"])


def test_what_the_candidate_cannot_answer_the_champion_answers_and_then_it_is_ended(app, repository, caplog):
    try_out(app, repository, BROKEN, "canary", 1.0)
    assert version_of(ask(app, "영화")) == BROKEN
    for number in range(LEAST - 1):
        assert version_of(ask(app, UNREADABLE)) == LIVE
        assert failures(app, BROKEN) == number + 1
    assert is_ended(app, BROKEN, "errors")
    assert f"candidate version {BROKEN} (canary of 1 of the requests) is ended: 49 of its last 50" in caplog.text
    assert version_of(ask(app, "영화")) == LIVE
    assert app.is_ready()


def test_a_triton_that_stands_still_is_not_the_candidates_fault(repository, triton):
    """It goes on after the candidate's half of the deadline is over, so the Champion answers."""
    with served_app(repository, triton.grpc_port, deadline_seconds=3.0) as app, ThreadPoolExecutor(8) as clients:
        try_out(app, repository, OTHER, "canary", 1.0)
        with stopped_triton(triton):
            asked = [clients.submit(ask, app, "영화", str(number)) for number in range(8)]
            time.sleep(2.0)
        assert {version_of(each.result()) for each in asked} == {LIVE}
        assert failures(app, OTHER) == 0
        assert version_of(ask(app, "영화")) == OTHER


def test_an_ended_candidate_stays_ended_until_it_is_named_with_another_since(app, repository):
    try_out(app, repository, BROKEN, "canary", 1.0)
    for _ in range(LEAST):
        ask(app, UNREADABLE)
    assert is_ended(app, BROKEN, "errors")
    set_serving(repository, LIVE, candidate={"version": BROKEN, "mode": "canary", "share": 0.9})
    set_serving(repository, LIVE, previous=7, candidate={"version": BROKEN, "mode": "shadow", "share": 1.0})
    time.sleep(0.5)
    assert is_ended(app, BROKEN, "errors")
    assert version_of(ask(app, "영화")) == LIVE
    try_out(app, repository, BROKEN, "canary", 1.0, since=LATER)
    assert version_of(ask(app, "영화")) == BROKEN
    set_serving(repository, LIVE)
    wait_until(lambda: version_of(ask(app, "영화")) == LIVE, 5, "no candidate any more")
    assert not is_ended(app, BROKEN, "errors")


def test_a_candidate_unloaded_in_triton_fails_nobody_and_is_ended(tmp_path):
    repository = tmp_path / "model_repository"
    write_bundle(repository, LIVE)
    write_bundle(repository, OTHER, dialect=3)
    judge = Judge(repository)
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        try_out(app, repository, OTHER, "canary", 0.5)
        with callers(app, judge) as heard:
            wait_until(lambda: str(OTHER) in heard.versions, 10, "the candidate answers")
            config = repository / MODEL / "config.pbtxt"
            config.write_text(config.read_text().replace(f"versions: {OTHER}\n", ""))
            load(triton)
            wait_until(lambda: is_ended(app, OTHER, "errors"), 20, "it is ended")
        assert not heard.faults
        assert heard.versions[-1] == str(LIVE)


def test_a_slow_candidate_is_ended(app, repository, judge, caplog):
    try_out(app, repository, SLOW, "canary", 0.5)
    with callers(app, judge, count=8) as heard:
        wait_until(lambda: is_ended(app, SLOW, "latency"), 40, "it is ended")
    assert not heard.faults
    assert str(SLOW) in heard.versions
    assert "ms, the limit is" in caplog.text and "of the version that answers" in caplog.text


# Shadow


def test_a_shadow_changes_no_answer_and_its_agreement_is_counted_exactly(app, repository, judge):
    try_out(app, repository, OTHER, "shadow", 1.0)
    before = shadowed(app, OTHER)
    for text in judge.texts:
        answer = ask(app, text)
        assert judge.fault(text, answer) is None and version_of(answer) == LIVE
    wait_until(lambda: shadowed(app, OTHER) == before + len(judge.texts), 10, "all were read again")
    agreeing = sum(judge.label(LIVE, text) == judge.label(OTHER, text) for text in judge.texts)
    assert 0 < agreeing < len(judge.texts)
    assert metric(app, f'shadow_agreeing_texts_total{{version="{OTHER}"}}') == agreeing
    for side in ("live", "candidate"):
        assert metric(app, f'shadow_seconds_count{{side="{side}",version="{OTHER}"}}') == len(judge.texts)
    assert metric(app, "shadow_dropped_texts_total") == 0


def test_a_shadow_gets_only_the_keys_of_its_share(app, repository):
    try_out(app, repository, OTHER, "shadow", 0.3)
    keys = [f"caller-{number}" for number in range(40)]
    for key in keys:
        assert version_of(ask(app, "영화 좋다", key)) == LIVE
    taken = sum(a_trial(repository, 0.3).takes(key) for key in keys)
    wait_until(lambda: shadowed(app, OTHER) == taken, 5, "its share was read again")
    assert shadowed(app, OTHER) == taken and 0 < taken < 40


def test_a_batch_too_large_for_a_shadow_is_dropped_and_counted(app, repository):
    try_out(app, repository, OTHER, "shadow", 1.0)
    assert version_of(app.batch(["영화"] * (SHADOW_TEXTS + 1))) == LIVE
    assert metric(app, "shadow_dropped_texts_total") == SHADOW_TEXTS + 1
    assert version_of(app.batch(["영화"] * SHADOW_TEXTS)) == LIVE
    wait_until(lambda: shadowed(app, OTHER) == SHADOW_TEXTS, 5, "the smaller one was read again")


def test_more_than_a_slow_shadow_can_read_is_dropped_and_nobody_waits_for_it(app, repository, judge, monkeypatch):
    monkeypatch.setattr(gateway.candidate, "LEAST_PAIRS", 10_000)  # so that it is not ended before
    try_out(app, repository, SLOW, "shadow", 1.0)
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda number: ask(app, judge.texts[number % 32]), range(200)))
    assert {version_of(each) for each in answers} == {LIVE}
    dropped = metric(app, "shadow_dropped_texts_total")
    assert dropped > 0
    wait_until(lambda: shadowed(app, SLOW) + dropped == 200, 20, "the others were read again")


def test_a_shadow_gets_nothing_while_the_gateway_is_more_than_half_full(repository, triton):
    async def dropped_with(texts_in_flight: int) -> tuple[float, float]:
        metrics, admission = Metrics(), Admission(10)
        async with Triton(f"127.0.0.1:{triton.grpc_port}") as client:
            shadow = Shadow(lambda: read_bundle(repository), client, admission, metrics)
            with admission.let_in(texts_in_flight):
                shadow.send(a_trial(repository, 1.0), ["영화"], ["positive"], 0.001, "")
            await asyncio.gather(*shadow._tasks)
        read = metrics.registry.get_sample_value("nunchi_gateway_shadow_texts_total", {"version": str(OTHER)})
        return metrics.registry.get_sample_value("nunchi_gateway_shadow_dropped_texts_total"), read or 0

    assert asyncio.run(dropped_with(5)) == (0, 1)
    assert asyncio.run(dropped_with(6)) == (1, 0)


class Noted(Trial):
    """Notes what it is told."""

    compared = failures = 0

    def compare(self, live_seconds: float, seconds: float) -> None:
        self.compared += 1

    def failed(self) -> None:
        self.failures += 1


async def noted(repository: Path, grpc_port: int, requests: int) -> Noted:
    """A trial that was told of so many shadows sent at once."""
    trial = Noted(read_bundle(repository, OTHER), terms(OTHER, "shadow", 1.0), lambda code, sentence: None)
    live = read_bundle(repository)
    async with Triton(f"127.0.0.1:{grpc_port}") as client:
        shadow = Shadow(lambda: live, client, Admission(100), Metrics())
        for _ in range(requests):
            shadow.send(trial, ["영화"], ["positive"], 0.001, "")
        await asyncio.gather(*shadow._tasks)
    return trial


def test_shadows_that_pile_up_behind_one_that_halts_are_not_compared(repository, triton):
    assert asyncio.run(noted(repository, triton.grpc_port, 5)).compared == 1


def test_a_shadow_fails_only_where_the_champion_answers(repository, triton):
    (nobody,) = free_ports(1)
    assert asyncio.run(noted(repository, nobody, 1)).failures == 0


def test_a_shadow_that_fails_is_ended_and_no_caller_knows(app, repository, caplog):
    try_out(app, repository, BROKEN, "shadow", 1.0)
    for number in range(LEAST):
        assert version_of(ask(app, UNREADABLE)) == LIVE
        wait_until(lambda number=number: failures(app, BROKEN) == number + 1, 5, "the failure is counted")
    assert is_ended(app, BROKEN, "errors")
    assert f"candidate version {BROKEN} (shadow of 1 of the requests) is ended: 50 of its last 50" in caplog.text


# Limits


def test_the_limits_of_errors(versions):
    said = []
    trial = Trial(read_bundle(versions, OTHER), terms(OTHER, "canary", 0.5), lambda *words: said.append(words))
    for _ in range(WINDOW - int(ERROR_SHARE * WINDOW)):
        trial.answered(10, 0.01)
    for _ in range(int(ERROR_SHARE * WINDOW)):
        trial.failed()
    assert not said
    trial.failed()
    trial.failed()
    assert [code for code, _ in said] == ["errors"]  # once


def test_the_limits_of_latency_compare_requests_of_like_size(versions):
    said = []
    trial = Trial(read_bundle(versions, OTHER), terms(OTHER, "canary", 0.5), lambda *words: said.append(words))
    for _ in range(WINDOW):
        trial.answered(1000, 0.5)  # it gets the long texts,
        trial.champion_answered(10, 0.005)  # the Champion the short ones
    assert not said
    for _ in range(LEAST_PAIRS):
        trial.champion_answered(600, 0.25)
        trial.answered(1000, 0.5)
    assert not said
    for _ in range(WINDOW):
        trial.champion_answered(600, 0.2)
        trial.answered(1000, 0.5)
    assert [code for code, _ in said] == ["latency"]


# The candidate and the version that answers


def test_a_candidate_that_serves_already_is_refused_in_one_sentence(app, repository, caplog):
    set_serving(repository, LIVE, candidate={"version": LIVE, "mode": "canary", "share": 0.5})
    wait_until(lambda: is_ended(app, LIVE, "serves already"), 5, "it is refused")
    assert f"version {LIVE} is the one that answers; name another one" in caplog.text
    assert version_of(ask(app, "영화")) == LIVE


def test_a_candidate_that_does_not_prove_itself_gets_nothing(app, repository, caplog):
    set_serving(repository, LIVE, candidate={"version": 99, "mode": "canary", "share": 1.0})
    wait_until(lambda: "candidate version 99 gets nothing" in caplog.text, 5, "it is said")
    assert version_of(ask(app, "영화")) == LIVE
    set_serving(repository, THIRD, candidate={"version": 99, "mode": "canary", "share": 1.0})
    wait_until(lambda: version_of(ask(app, "영화")) == THIRD, 5, "a switch does not wait for it")


def test_switches_forth_and_back_go_on_while_a_canary_runs(app, repository, judge, caplog):
    caplog.set_level("INFO", "gateway")
    try_out(app, repository, OTHER, "canary", 0.3)
    candidate = {"version": OTHER, "mode": "canary", "share": 0.3}
    with callers(app, judge) as heard:
        for version in (THIRD, LIVE, THIRD, LIVE):
            set_serving(repository, version, candidate=candidate)
            wait_until(lambda version=version: str(version) in heard.versions[-20:], 5, f"version {version} answers")
            assert share_of(app, OTHER, "canary") == 0.3
        assert caplog.text.count("is on trial") == 1
        set_serving(repository, OTHER, previous=LIVE)  # promoted
        wait_until(lambda: set(heard.versions[-20:]) == {str(OTHER)}, 5, "the candidate answers everybody")
    assert not heard.faults
    assert set(heard.versions) == {str(LIVE), str(OTHER), str(THIRD)}
    assert share_of(app, OTHER, "canary") == 0
