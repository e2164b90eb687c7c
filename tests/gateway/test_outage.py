"""Triton is away, late, wrong or replaced; versions are switched while requests come."""

import asyncio
import shutil
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gateway.champion
import gateway.shelf
from gateway.bundle import read_bundle
from gateway.errors import ModelMismatch
from gateway.serve import check_triton
from gateway.settings import Settings
from tests.bundles import (
    MODEL,
    UNKNOWN,
    set_serving,
    tiny_embedding,
    tiny_model,
    tiny_tokenizer,
    write_bundle,
    write_config,
    write_manifest,
)
from tests.gateway.gateway_process import wait_until
from tests.gateway.judging import Judge, callers
from tests.gateway.served_app import ServedApp, served_app
from tests.gateway.triton_parts import stubs
from tests.triton_process import TritonProcess, free_ports, running_triton, start_triton


def load(triton: TritonProcess) -> None:
    """Tell Triton to load what the configuration names now, as a promotion does."""
    answer = httpx.post(
        f"http://127.0.0.1:{triton.http_port}/v2/repository/models/sentiment/load",
        headers={"admin-key": triton.admin_key},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


def replace_model(folder: Path, model: onnx.ModelProto, *, version: int) -> None:
    """Another model in a bundle that still agrees with itself: checksum and golden rows are made anew."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder, tiny_tokenizer(32), version=version, labels=2, max_length=32)


def contrary_model() -> onnx.ModelProto:
    """Likes what the others dislike."""
    table = tiny_embedding()
    table[:, 0] *= -1
    return tiny_model(embedding=table)


def version_of(app: ServedApp) -> str:
    return app.predict("영화").json()["model_version"]


def assert_unavailable(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "model_unavailable")
    assert answer.headers["retry-after"] == "1"


def test_without_triton_it_lives_says_503_quickly_and_gets_ready_when_triton_comes(repository, tmp_path):
    ports = tuple(free_ports(3))
    with served_app(repository, ports[1], wait_for_triton=False) as app:
        for ask in (
            lambda: app.predict("영화"),
            lambda: app.batch(["영화"] * 100),
            lambda: app.client.get("/readyz"),
            lambda: app.client.get("/v1/model"),
        ):
            started = time.monotonic()
            assert_unavailable(ask())
            assert time.monotonic() - started < 2
        assert app.client.get("/healthz").status_code == 200
        triton = start_triton(repository, tmp_path / "var", ports=ports)
        try:
            triton.wait_for_line(r"\bready\b")
            wait_until(app.is_ready, 10, "ready by itself")
            assert app.predict("영화").status_code == 200
        finally:
            triton.stop()
            triton.process.stdout.close()
        started = time.monotonic()
        assert_unavailable(app.predict("영화"))
        assert time.monotonic() - started < 2
        wait_until(lambda: not app.is_ready(), 5, "not ready without Triton")
        with running_triton(
            repository,
            tmp_path / "var",
            NUNCHI_TRITON_HTTP_PORT=str(ports[0]),
            NUNCHI_TRITON_GRPC_PORT=str(ports[1]),
            NUNCHI_TRITON_METRICS_PORT=str(ports[2]),
        ):
            wait_until(lambda: app.predict("영화").status_code == 200, 10, "it recovered by itself")
            wait_until(app.is_ready, 5, "ready again")


def test_a_killed_stub_gives_503_never_a_hang_and_answers_come_back(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        right = app.predict("정말 최고", return_probs=True).json()
        for stub in stubs(triton):
            stub.kill()
        seen = set()

        def answers_again() -> bool:
            started = time.monotonic()
            answer = app.predict("정말 최고", return_probs=True)
            assert time.monotonic() - started < 5
            seen.add(answer.status_code)
            if answer.status_code == 200:
                assert answer.json() == right
                return True
            assert_unavailable(answer)
            return False

        wait_until(lambda: not answers_again(), 10, "the outage is seen")
        wait_until(answers_again, 20, "answers are back")
        assert seen == {200, 503}


def test_numbers_that_are_not_finite_never_become_an_answer(repository, tmp_path):
    table = tiny_embedding()
    table[UNKNOWN] = float("inf")
    replace_model(repository / "sentiment" / "1", tiny_model(embedding=table), version=1)
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        assert app.predict("영화").status_code == 200
        assert_unavailable(app.predict("모르는말"))
        assert_unavailable(app.batch(["영화", "모르는말"]))
        assert app.predict("영화").status_code == 200


def test_a_promotion_and_a_rollback_lose_no_request_and_mix_no_versions(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        stop, faults, versions = threading.Event(), [], []

        def keep_asking() -> None:
            with httpx.Client(base_url=app.url, timeout=30) as client:
                while not stop.is_set():
                    answer = client.post("/v1/predict/batch", json={"texts": ["영화 좋다"] * 3, "return_probs": True})
                    body = answer.json()
                    if answer.status_code != 200:
                        faults.append(body)
                        continue
                    versions.append(body["model_version"])
                    if answer.headers["x-model-version"] != body["model_version"]:
                        faults.append("header and body disagree")
                    if len({row["confidence"] for row in body["predictions"]}) != 1:
                        faults.append("rows of two versions")

        asking = [threading.Thread(target=keep_asking) for _ in range(4)]
        for each in asking:
            each.start()
        try:
            write_bundle(repository, 2)
            load(triton)
            set_serving(repository, 2, previous=1)
            wait_until(lambda: version_of(app) == "2", 10, "version 2 answers")
            assert app.client.get("/v1/model").json()["version"] == "2"
            assert app.client.get("/readyz").json()["model_version"] == "2"
            set_serving(repository, 1, previous=2)
            wait_until(lambda: version_of(app) == "1", 10, "version 1 answers again")
        finally:
            stop.set()
            for each in asking:
                each.join()
        assert not faults
        assert {"1", "2"} <= set(versions)


def test_the_answer_changes_with_the_version(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        first = app.predict("영화", return_probs=True).json()["probs"]
        write_bundle(repository, 2)
        load(triton)
        set_serving(repository, 2, previous=1)
        wait_until(lambda: version_of(app) == "2", 10, "version 2 answers")
        golden = read_bundle(repository).manifest.golden[0]
        probs = app.predict(golden.text, return_probs=True).json()["probs"]
        assert list(probs.values()) == pytest.approx(golden.probabilities, abs=1e-3)
        assert app.predict("영화", return_probs=True).json()["probs"] != first


def test_a_version_triton_has_not_loaded_waits_and_the_old_one_goes_on(repository, tmp_path, caplog):
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        write_bundle(repository, 2)
        set_serving(repository, 2, previous=1)
        wait_until(lambda: "version 2 is waiting for Triton" in caplog.text, 10, "it is said")
        assert "version 1 goes on" in caplog.text
        time.sleep(2.5)  # it has been tried again, and fails in the same words
        assert caplog.text.count("version 2 is waiting for Triton") == 1
        assert version_of(app) == "1"
        assert app.is_ready()
        load(triton)
        wait_until(lambda: version_of(app) == "2", 10, "version 2 answers as soon as it is there")


def test_a_broken_version_is_refused_in_one_sentence_and_the_old_one_goes_on(repository, tmp_path, caplog):
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        folder = write_bundle(repository, 2)
        (folder / "model.onnx").write_bytes(b"not a model")
        set_serving(repository, 2, previous=1)
        wait_until(lambda: "keeping version 1" in caplog.text, 10, "it is said")
        time.sleep(1)
        assert len([each for each in caplog.records if "keeping version 1" in each.message]) == 1
        assert version_of(app) == "1"
        assert app.is_ready()


def test_a_version_whose_answers_are_not_the_published_ones_does_not_go_live(repository, tmp_path, caplog):
    ours = tmp_path / "ours"  # the gateway's own copy, because the server would mend what it sees in its own
    shutil.copytree(repository, ours)
    write_bundle(repository, 2)
    with running_triton(repository, tmp_path / "var") as triton, served_app(ours, triton.grpc_port) as app:
        load(triton)
        replace_model(write_bundle(ours, 2), contrary_model(), version=2)
        set_serving(ours, 2, previous=1)
        wait_until(lambda: "version 2 will not serve: Triton at" in caplog.text, 10, "it is said")
        assert "moves the golden probabilities" in caplog.text
        assert "version 1 goes on" in caplog.text
        assert version_of(app) == "1"
        assert app.is_ready()


def test_a_version_unloaded_under_the_gateway_is_answered_by_the_one_serving_names(repository, tmp_path, monkeypatch):
    """The gateway sees a promotion late: the pinned version is gone, so it looks at serving.json and asks once more."""
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        monkeypatch.setattr(gateway.champion, "POLL_SECONDS", 3600.0)
        time.sleep(0.5)  # the watch has begun its long sleep
        write_bundle(repository, 2)
        config = repository / "sentiment" / "config.pbtxt"
        both = config.read_text()
        config.write_text(both.replace("versions: 1\n", ""))
        assert config.read_text() != both
        set_serving(repository, 2, previous=1)
        load(triton)
        assert version_of(app) == "2"


def test_a_hundred_switches_forth_and_back_pair_no_tokenizer_with_the_model_of_another_version(repository, tmp_path):
    write_bundle(repository, 2, dialect=3)
    judge = Judge(repository)
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        with callers(app, judge, count=2) as heard:
            for _ in range(100):
                for version, other in ((2, 1), (1, 2)):
                    set_serving(repository, version, previous=other)
                    until = time.monotonic() + 5
                    while version_of(app) != str(version):
                        assert time.monotonic() < until
        assert not heard.faults
        assert {"1", "2"} == set(heard.versions)


def test_a_switch_back_reads_no_file_and_answers_within_a_second(repository, tmp_path, monkeypatch):
    write_bundle(repository, 2, dialect=3)
    reads = []
    read = gateway.shelf.read_bundle
    monkeypatch.setattr(gateway.shelf, "read_bundle", lambda *asked: reads.append(asked) or read(*asked))
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        set_serving(repository, 2, previous=1)
        wait_until(lambda: version_of(app) == "2", 10, "version 2 answers")
        assert [version for _, version in reads] == [2]
        for version in ("1", "2", "1"):
            set_serving(repository, int(version))
            assert wait_until(lambda version=version: version_of(app) == version, 10, "a switch back") < 1
        assert len(reads) == 1


def test_a_number_published_again_is_read_again(repository, tmp_path):
    """A release that failed at its last step takes its folder away, and the next one gets its number."""
    write_bundle(repository, 2, dialect=3)
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        set_serving(repository, 2, previous=1)
        wait_until(lambda: version_of(app) == "2", 10, "version 2 answers")
        set_serving(repository, 1)
        wait_until(lambda: version_of(app) == "1", 10, "version 1 answers again")
        shutil.rmtree(repository / MODEL / "2")
        write_config(repository)
        load(triton)
        write_bundle(repository, 2, dialect=1)
        load(triton)
        set_serving(repository, 2, previous=1)
        wait_until(lambda: version_of(app) == "2", 10, "the other version 2 answers")
        judge = Judge(repository)
        with callers(app, judge, count=1) as heard:
            wait_until(lambda: len(heard.versions) > 32, 10, "every golden row was asked")
        assert not heard.faults


def slow_model(version: int) -> onnx.ModelProto:
    """Does work that comes to nothing: about a quarter of a second for whatever it is asked."""
    model = tiny_model(version=version)
    graph = model.graph
    square = np.zeros((400, 400), np.float32)
    constants = {"zeros": square, "turns": np.array(100), "both_axes": np.array([0, 1]), "go_on": np.array(True)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    values = [("turn", TensorProto.INT64, []), ("more", TensorProto.BOOL, []), ("work", TensorProto.FLOAT, [400, 400])]
    results = [("more_still", TensorProto.BOOL, []), ("worked", TensorProto.FLOAT, [400, 400])]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["more_still"]),
            helper.make_node("MatMul", ["work", "zeros"], ["worked"]),
        ],
        "turn",
        [helper.make_tensor_value_info(*each) for each in values],
        [helper.make_tensor_value_info(*each) for each in results],
    )
    last = graph.node.pop()  # Add(product, bias) -> logits
    graph.node.extend(
        [
            helper.make_node("Loop", ["turns", "go_on", "zeros"], ["work_done"], body=body),
            helper.make_node("ReduceSum", ["work_done", "both_axes"], ["nothing"], keepdims=0),
            helper.make_node("Add", [last.input[0], "nothing"], ["and_nothing"]),
            helper.make_node("Add", ["and_nothing", last.input[1]], ["logits"]),
        ]
    )
    onnx.checker.check_model(model)
    return model


def test_a_release_that_is_long_to_prove_does_not_hold_up_the_next_one(repository, tmp_path):
    replace_model(write_bundle(repository, 2), slow_model(2), version=2)
    write_bundle(repository, 3, dialect=3)
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        set_serving(repository, 2, previous=1)
        time.sleep(1)
        assert version_of(app) == "1"
        set_serving(repository, 3, previous=1)
        assert wait_until(lambda: version_of(app) == "3", 20, "version 3 answers") < 3


def test_nobody_notices_when_the_old_version_dies_while_it_is_kept(repository, tmp_path):
    write_bundle(repository, 2, dialect=3)
    judge = Judge(repository)
    with running_triton(repository, tmp_path / "var") as triton, served_app(repository, triton.grpc_port) as app:
        set_serving(repository, 2, previous=1)
        wait_until(lambda: version_of(app) == "2", 10, "version 2 answers")
        triton.wait_for_line("serving version=2")
        with callers(app, judge, count=1) as heard:
            (old,) = [stub for stub in stubs(triton) if f"{MODEL}/1/" in " ".join(stub.cmdline())]
            old.kill()
            time.sleep(3)
        assert not heard.faults
        assert set(heard.versions) == {"2"}
        assert app.is_ready()


def other_labels(repository: Path) -> None:
    write_bundle(repository, labels=3)


def other_weights(repository: Path) -> None:
    replace_model(write_bundle(repository), contrary_model(), version=1)


@pytest.mark.parametrize(
    ("make", "says"), [(other_labels, "reports the outputs"), (other_weights, "moves the golden probabilities")]
)
def test_a_triton_that_serves_something_else_is_a_refusal_at_the_start(shared_triton, tmp_path, make, says):
    other = tmp_path / "other"
    make(other)
    settings = Settings(model_repository=other, triton_grpc_port=shared_triton.grpc_port)
    with pytest.raises(ModelMismatch, match=says) as refusal:
        asyncio.run(check_triton(settings, read_bundle(other)))
    assert "same model repository" in str(refusal.value)


@pytest.mark.parametrize("make", [other_labels, other_weights])
def test_a_triton_that_turns_out_to_serve_something_else_is_never_asked(shared_triton, tmp_path, make, caplog):
    other = tmp_path / "other"
    make(other)
    with served_app(other, shared_triton.grpc_port, wait_for_triton=False) as app:
        wait_until(lambda: "will not serve" in caplog.text, 10, "it is said")
        assert_unavailable(app.predict("영화"))
        assert_unavailable(app.client.get("/readyz"))
