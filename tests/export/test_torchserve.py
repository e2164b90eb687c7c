"""`python -m export.torchserve`: the published version in a real TorchServe answers as it does in Triton."""

import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import threading
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from export.serving import read_serving, version_folder
from export.torchserve import main, pack
from export.torchserve_handler import LONGEST_TEXT, SentimentHandler
from tests.bundles import softmax, write_bundle
from tests.server.asking import ask
from tests.triton_process import ROOT, free_ports, running_triton

VERSION = read_serving(ROOT / "model_repository").version
BUNDLE = version_folder(ROOT / "model_repository", VERSION)
MANIFEST = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
GOLDEN = MANIFEST["golden"]
BATCH_SIZE = 8
START_SECONDS = 180  # generous: a JVM, and a worker that imports torch, on a loaded machine
START = ["torchserve", "--start", "--foreground", "--ncs", "--model-store", ".", "--ts-config", "config.properties"]
LOADED, TAKEN = "-> WORKER_MODEL_LOADED", "BindException|Address already in use"
SAME = MANIFEST["parity"]["batch_probability_tolerance"]  # the same file in another batch


class TorchServe(NamedTuple):
    url: str
    management: str


class PortTaken(Exception):
    """Somebody took one of the free ports before TorchServe did."""


@pytest.fixture(scope="module")
def torchserve(tmp_path_factory) -> Iterator[TorchServe]:
    """A TorchServe that serves the shipped version; it stops the way a user stops it."""
    java = subprocess.run([ROOT / "deploy" / "java.sh"], capture_output=True, text=True, check=True).stdout.strip()
    folder = tmp_path_factory.mktemp("ts")
    pack(BUNDLE, folder, BATCH_SIZE, batch_delay=50)
    for attempts_left in (2, 1, 0):
        inference, management, metrics, *grpc = free_ports(5)
        environment = os.environ | {
            "PATH": f"{sysconfig.get_path('scripts')}:{Path(java).parent}:{os.environ['PATH']}",
            "TMPDIR": str(folder),  # where torchserve keeps the pid that --stop reads
            "TEMP": str(folder),  # where the JVM unpacks the .mar and the worker's socket lies
            "TS_INFERENCE_ADDRESS": f"http://127.0.0.1:{inference}",
            "TS_MANAGEMENT_ADDRESS": f"http://127.0.0.1:{management}",
            "TS_METRICS_ADDRESS": f"http://127.0.0.1:{metrics}",
            "TS_GRPC_INFERENCE_PORT": str(grpc[0]),
            "TS_GRPC_MANAGEMENT_PORT": str(grpc[1]),
        }
        environment.pop("JAVA_HOME", None)
        process = subprocess.Popen(
            START, cwd=folder, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        try:
            wait_until_loaded(process)
            yield TorchServe(f"http://127.0.0.1:{inference}", f"http://127.0.0.1:{management}")
            break
        except PortTaken:
            if not attempts_left:
                raise
        finally:
            stop(folder, environment, process)


def wait_until_loaded(process: subprocess.Popen) -> None:
    """Until the worker says that it has loaded the model; its output is read to the end meanwhile and later."""
    decided, lines = threading.Event(), []

    def listen() -> None:
        with process.stdout:
            for line in process.stdout:
                lines.append(line)
                if re.search(f"{LOADED}|{TAKEN}", line):
                    decided.set()
        decided.set()

    threading.Thread(target=listen, daemon=True).start()
    decided.wait(START_SECONDS)
    output = "".join(lines)
    if re.search(TAKEN, output):
        raise PortTaken(output)
    assert re.search(LOADED, output), output


def stop(folder: Path, environment: dict[str, str], process: subprocess.Popen) -> None:
    subprocess.run(["torchserve", "--stop", "--foreground"], cwd=folder, env=environment, capture_output=True)
    with suppress(ProcessLookupError):  # what has not obeyed
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def predict(torchserve: TorchServe, content: bytes | str, kind: str = "application/json") -> httpx.Response:
    return httpx.post(
        f"{torchserve.url}/predictions/sentiment", content=content, headers={"content-type": kind}, timeout=60
    )


def predict_together(torchserve: TorchServe, bodies: list[bytes | str]) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(lambda body: predict(torchserve, body), bodies))


def question(text: str) -> str:
    return json.dumps({"text": text, "return_probs": True})


def test_torchserve_answers_the_golden_rows_as_triton_and_the_manifest_do(torchserve, tmp_path):
    answers = predict_together(torchserve, [question(row["text"]) for row in GOLDEN])
    with running_triton(ROOT / "model_repository", tmp_path / "var") as triton:
        by_triton = [softmax(ask(triton, [row["input_ids"]], version=VERSION, seconds=60)[0]) for row in GOLDEN]
    names = [label["name"] for label in MANIFEST["labels"]]
    for row, answer, triton_row in zip(GOLDEN, answers, by_triton, strict=True):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        shares = [body["probs"][name] for name in names]
        assert np.abs(np.array(shares) - row["probabilities"]).max() <= SAME
        assert np.abs(shares - triton_row).max() <= SAME
        best = int(np.argmax(row["probabilities"]))
        assert body == body | {
            "prediction": names[best],
            "label": MANIFEST["labels"][best]["korean"],
            "confidence": max(shares),
            "input_tokens": len(row["input_ids"]),
            "model_version": str(VERSION),
        }
    assert [answer.json()["truncated"] for answer in answers] == [False] * 31 + [True]


def test_requests_share_batches_and_a_bad_one_harms_no_neighbour(torchserve):
    golden = {question(row["text"]): row["probabilities"] for row in GOLDEN[:6]}
    bodies = [*golden, '{"text": ""}', "{no json"]
    batches = []
    for _ in range(20):  # the first is nearly always enough; batches form when requests arrive, which nobody commands
        for body, answer in zip(bodies, predict_together(torchserve, bodies), strict=True):
            batches.append(int(answer.headers["x-batch-rows"]))
            if body in golden:
                assert answer.status_code == 200
                assert list(answer.json()["probs"].values()) == pytest.approx(golden[body], abs=SAME)
            else:
                assert answer.status_code == 422
        if max(batches) > 1:
            break
    assert 1 < max(batches) <= BATCH_SIZE


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        ('{"text": ""}', 422, "empty_text"),
        ('{"text": " <br> \\u200b"}', 422, "empty_text"),
        (json.dumps({"text": "가" * (LONGEST_TEXT + 1)}), 413, "payload_too_large"),
        ('{"text": 1}', 422, "invalid_request"),
        ('{"text": "좋다", "return_probs": 1}', 422, "invalid_request"),
        ('{"txt": "좋다"}', 422, "invalid_request"),
        ("{}", 422, "invalid_request"),
        ('["좋다"]', 422, "invalid_request"),
        ('{"text": "좋다"', 422, "invalid_request"),
        ("[" * 100_000, 422, "invalid_request"),
        (b'{"text": "\xff"}', 422, "invalid_request"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_with_the_code_of_the_gateway(torchserve, content, status, code):
    answer = predict(torchserve, content)
    assert (answer.status_code, answer.json()["status"], answer.json()["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert predict(torchserve, '{"text": "좋다"}').status_code == 200


def test_a_body_beyond_a_megabyte_is_refused_by_torchserve_itself(torchserve):
    assert predict(torchserve, json.dumps({"text": "좋다", "more": "x" * 1_000_000})).status_code == 413


def test_half_a_character_is_read_as_a_question_mark(torchserve):
    half, mark = (predict(torchserve, f'{{"text": "좋다 {spelt}"}}') for spelt in ("\\ud83d", "?"))
    assert half.status_code == 200
    assert half.json() == pytest.approx(mark.json())


def test_nobody_can_register_a_model_through_the_management_port(torchserve):
    answer = httpx.post(f"{torchserve.management}/models?url=sentiment.mar&model_name=another", timeout=60)
    assert 400 <= answer.status_code < 500
    listed = httpx.get(f"{torchserve.management}/models", timeout=60).json()["models"]
    assert [model["modelName"] for model in listed] == ["sentiment"]


@pytest.fixture
def served(tmp_path) -> Path:
    """A repository with a tiny bundle of version 7."""
    write_bundle(tmp_path / "repository", 7)
    return tmp_path / "repository"


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_the_archive_holds_the_very_files_of_the_version(served, tmp_path, capsys):
    status, out, _ = run(capsys, "--repository", served, "--output", tmp_path / "out", "--batch-size", 4)
    assert status == 0
    archive = tmp_path / "out" / "sentiment.mar"
    assert out == f"{archive}\n"
    assert sorted(path.name for path in archive.parent.iterdir()) == ["config.properties", "sentiment.mar"]
    with zipfile.ZipFile(archive) as files:
        for name in ("model.onnx", "tokenizer.json", "manifest.json"):
            assert files.read(name) == (served / "sentiment" / "7" / name).read_bytes()
        assert files.read("torchserve_handler.py") == (ROOT / "export" / "torchserve_handler.py").read_bytes()
        assert b"batchSize: 4\nmaxBatchDelay: 5" in files.read("model-config.yaml")
        assert json.loads(files.read("MAR-INF/MANIFEST.json"))["model"]["modelVersion"] == "7"


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda repository: (repository / "serving.json").unlink(), "serves nothing yet; run make export first"),
        (lambda repository: (repository / "sentiment" / "7" / "tokenizer.json").write_text("{}"), "sha256 differs"),
        (lambda repository: shutil.rmtree(repository / "sentiment" / "7"), "manifest.json cannot be read back"),
    ],
)
def test_what_cannot_be_packed_is_one_sentence_and_no_archive(served, tmp_path, capsys, harm, sentence):
    harm(served)
    status, out, err = run(capsys, "--repository", served, "--output", tmp_path / "out")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert sentence in err
    assert not list(tmp_path.glob("out/*"))


def load(folder: Path, requests: int = 1) -> tuple:
    """The handler as TorchServe's worker makes it, and TorchServe's own context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # ts leaves a file open when it is imported
        from ts.context import Context, RequestProcessor

    context = Context("sentiment", str(folder), None, requests, None, "0.12.0")
    handler = SentimentHandler()
    handler.initialize(context)
    context.request_processor = [RequestProcessor({}) for _ in range(requests)]
    return handler, context


def test_within_one_batch_each_request_has_an_answer_or_an_error_of_its_own(served):
    golden = json.loads((served / "sentiment" / "7" / "manifest.json").read_text(encoding="utf-8"))["golden"][:2]
    rows = [{"text": row["text"], "return_probs": True} for row in golden]
    bodies = [rows[0], bytearray(b"{"), {"text": "  "}, rows[1], None]
    handler, context = load(served / "sentiment" / "7", len(bodies))
    answers = [json.loads(answer) for answer in handler.handle([{"body": body} for body in bodies], context)]
    assert [context.get_response_status(index)[0] for index in range(5)] == [200, 422, 422, 200, 422]
    for row, answer in zip(golden, (answers[0], answers[3]), strict=True):
        assert list(answer["probs"].values()) == pytest.approx(row["probabilities"], abs=1e-5)


def test_the_worker_refuses_a_model_that_is_off_its_golden_rows_here(served):
    file = served / "sentiment" / "7" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    load(file.parent)
    manifest["golden"][0]["probabilities"] = manifest["golden"][0]["probabilities"][::-1]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RuntimeError, match="off its golden rows"):
        load(file.parent)


def test_the_worker_refuses_a_file_that_is_not_the_manifests(served):
    Tokenizer.from_file(str(BUNDLE / "tokenizer.json")).save(str(served / "sentiment" / "7" / "tokenizer.json"))
    with pytest.raises(RuntimeError, match=r"tokenizer.json is not the file"):
        load(served / "sentiment" / "7")
