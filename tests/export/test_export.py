"""`python -m export` from end to end: what it publishes, what it refuses, and what it leaves behind."""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_INT64, ModelConfig

from export import convert as convert_module
from export.bundle import verify_bundle
from export.errors import BundleBroken
from export.graph import build_graph
from export.manifest import LOGITS
from export.onnx_model import OnnxModel, softmax
from export.quantize import has_vnni, recipes
from export.triton_config import build_config, read_config, to_text
from gateway.bundle import read_bundle
from server.bundle import check_files, read_served_bundle
from tests.export.checkpoints import CONFIGS, labelled_reviews, make_model, save_checkpoint, write_reviews

ROOT = Path(__file__).resolve().parent.parent.parent


def serving(repository) -> dict:
    return json.loads((repository / "serving.json").read_text())


def manifest_of(repository, version=1) -> dict:
    return json.loads((repository / "sentiment" / str(version) / "manifest.json").read_text(encoding="utf-8"))


def versions(repository) -> list[int]:
    return list(read_config(repository / "sentiment/config.pbtxt").version_policy.specific.versions)


def everything_in(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_first_export_publishes_exactly_the_contract(export, repository):
    answer = export()
    assert answer.status == 0, answer.err
    assert answer.out == f"{repository}/sentiment/1\n"
    assert set(everything_in(repository.parent)) == {
        "model_repository/serving.json",
        "model_repository/sentiment/config.pbtxt",
        "model_repository/sentiment/1/model.onnx",
        "model_repository/sentiment/1/tokenizer.json",
        "model_repository/sentiment/1/manifest.json",
    }
    assert {**serving(repository), "since": None} == {
        "model": "sentiment",
        "version": 1,
        "previous": None,
        "since": None,
    }
    assert not [path for path in repository.rglob("*") if path.stat().st_mode & 0o444 != 0o444], "Triton cannot read it"


def test_the_manifest_describes_the_files(export, repository):
    export("--max-length", "20")
    folder, manifest = repository / "sentiment/1", manifest_of(repository)
    for name in ("model.onnx", "tokenizer.json"):
        content = (folder / name).read_bytes()
        assert manifest["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["created"])
    assert manifest["precision"] == "int8"
    parity = manifest["parity"]
    assert parity["rows"] == 1200
    assert parity["attempts"] == [
        {
            "remedy": recipes("int8", vnni=parity["vnni"])[0].remedy,
            "accepted": True,
            "reason": None,
            "label_agreement": parity["label_agreement"],
            "accuracy": parity["accuracy_exported"],
            "max_probability_shift": parity["max_probability_shift"],
            "max_batch_probability_shift": parity["max_batch_probability_shift"],
        }
    ]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert manifest["max_length"] == tokenizer.truncation["max_length"] == 20
    assert manifest["vocab_size"] == tokenizer.get_vocab_size()


def test_anybody_can_check_the_golden_rows(export, repository):
    export()
    folder, manifest = repository / "sentiment/1", manifest_of(repository)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert len({row["text"] for row in manifest["golden"]}) == 32
    for row in manifest["golden"]:
        assert tokenizer.encode(row["text"]).ids == row["input_ids"]
        ids = np.array([row["input_ids"]])
        (logits,) = session.run([LOGITS], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        assert np.abs(softmax(logits)[0] - row["probabilities"]).max() < manifest["golden_probability_tolerance"]


def test_the_server_and_the_gateway_accept_what_was_published(export, repository):
    export()
    check_files(read_served_bundle(repository))
    assert read_bundle(repository).version == "1"


def test_the_configuration_reads_back_as_it_was_built():
    config = build_config(3, [4, 7])
    assert text_format.Parse(to_text(config), ModelConfig()) == config
    assert (config.name, config.backend, config.max_batch_size) == ("sentiment", "onnxruntime", 64)
    assert [(each.name, each.data_type, list(each.dims)) for each in config.input] == [
        ("input_ids", TYPE_INT64, [-1]),
        ("attention_mask", TYPE_INT64, [-1]),
    ]
    assert [(each.name, each.data_type, list(each.dims)) for each in config.output] == [("logits", TYPE_FP32, [3])]
    assert list(config.version_policy.specific.versions) == [4, 7]
    assert [group.count for group in config.instance_group] == [1]
    assert config.HasField("dynamic_batching")
    assert "kind:" not in to_text(config), "a KIND_GPU would not load without a GPU, a KIND_CPU not use one"
    assert not config.runtime, "the embedded server and the container find different ones"


def test_each_export_takes_the_next_number_and_keeps_the_previous_version(export, repository):
    for version, loaded in ((1, [1]), (2, [1, 2]), (3, [2, 3])):
        assert export("--precision", "fp32").status == 0
        assert versions(repository) == loaded
        assert serving(repository)["version"] == version
        assert serving(repository)["previous"] == (version - 1 or None)


def test_a_number_is_never_used_again(export, repository):
    for number in ("3", "8"):
        assert export("--precision", "fp32", "--version", number).status == 0
    shutil.rmtree(repository / "sentiment/8")
    for number in ("3", "5", "8"):
        answer = export("--version", number)
        assert answer.status == 2
        assert f"version {number} is not above the versions" in answer.err
        assert "publish 9" in answer.err
    assert export("--precision", "fp32").status == 0
    assert serving(repository) | {"since": None} == {
        "model": "sentiment",
        "version": 9,
        "previous": None,
        "since": None,
    }
    assert versions(repository) == [9]  # 8 is gone: Triton must not be told to load it


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_equal_checkpoints_make_equal_models(export, repository, precision):
    for _ in range(2):
        export("--precision", precision)
    first, second = (manifest_of(repository, version)["files"] for version in (1, 2))
    assert first == second


def test_a_closed_gate_publishes_nothing(export, repository, monkeypatch):
    export("--precision", "fp32")
    before = everything_in(repository.parent)

    def write_without_opinion(config, weights, recipe):
        return build_graph(
            config, {**weights, "classifier.out_proj.weight": weights["classifier.out_proj.weight"] * 0}, recipe
        )

    monkeypatch.setattr(convert_module, "build_graph", write_without_opinion)
    answer = export()
    assert answer.status == 2
    assert answer.out == ""
    last = answer.err.splitlines()[-1]
    first = recipes("int8", vnni=has_vnni())[0].remedy
    assert last.startswith(
        f"error: the written model does not answer like torch, so nothing was published ({first}: labels"
    )
    assert "fp32: labels agree on" in last
    assert everything_in(repository.parent) == before


def test_a_failed_first_export_does_not_even_leave_a_folder(export, repository, monkeypatch):
    monkeypatch.setattr(convert_module, "build_graph", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export()
    assert list(repository.parent.iterdir()) == []


def test_a_second_exporter_is_told_to_wait(export, repository):
    repository.mkdir(parents=True)
    other = os.open(repository, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    answer = export()
    os.close(other)
    assert answer.status == 2
    assert f"error: another export is writing to {repository}; wait until it has ended" in answer.err
    assert export("--precision", "fp32").status == 0


def test_another_number_of_labels_needs_another_repository(export, repository, tmp_path):
    export("--precision", "fp32")
    three = save_checkpoint(tmp_path / "three", make_model(CONFIGS["electra, no projection, 3 labels"]))
    answer = export("--checkpoint", three)
    assert answer.status == 2
    assert "serves a model with 2 labels, the checkpoint has 3" in answer.err
    assert serving(repository)["version"] == 1


def test_three_labels_are_published(export, repository, tmp_path):
    three = save_checkpoint(tmp_path / "three", make_model(CONFIGS["electra, no projection, 3 labels"]))
    answer = export("--checkpoint", three, "--precision", "fp32")
    assert answer.status == 0, answer.err
    assert [label["name"] for label in manifest_of(repository)["labels"]] == ["negative", "neutral", "positive"]
    check_files(read_served_bundle(repository))


KILLED = """
import os, signal, sys
from pathlib import Path
from export import publish, release
from export.settings import read_settings

repository, bundle, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

with publish.open_stage(repository) as stage:
    if step == "stage":
        (stage.version_folder / "model.onnx").write_bytes(b"half")
        die()
    for file in bundle.iterdir():
        text = file.read_bytes()
        if file.name == "manifest.json":
            text = text.replace(b'"version": 1,', b'"version": %d,' % stage.version, 1)
        (stage.version_folder / file.name).write_bytes(text)
    for module in (publish, release):
        if hasattr(module, step):
            setattr(module, step, die)
    release.release(stage, read_settings())
"""


@pytest.mark.parametrize("step", ["stage", "rename_in", "write_config", "replace_serving"])
def test_a_kill_at_any_step_leaves_the_old_version_serving(export, repository, step):
    export("--precision", "fp32")
    bundle = repository / "sentiment/1"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, repository, bundle, step], cwd=ROOT, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    check_files(read_served_bundle(repository))
    assert read_bundle(repository).version == "1"
    there = {path.name for path in (repository / "sentiment").iterdir()}
    assert there <= {"1", "2", "config.pbtxt"}
    for version in there - {"config.pbtxt"}:
        verify_bundle_files(repository / "sentiment" / version)

    assert export("--precision", "fp32").status == 0
    assert serving(repository)["version"] == (3 if "2" in there else 2)
    assert [path.name for path in repository.parent.iterdir()] == ["model_repository"], (
        "the killed stage was not cleared"
    )


def verify_bundle_files(folder):
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "tokenizer.json", "manifest.json"}
    verify_bundle(folder)


def flip_the_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def change_the_first_ids(content: bytes) -> bytes:
    manifest = json.loads(content)
    manifest["golden"][0]["input_ids"][0] += 1
    return json.dumps(manifest).encode()


def swap_the_first_answer(content: bytes) -> bytes:
    manifest = json.loads(content)
    manifest["golden"][0]["probabilities"].reverse()
    return json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("model.onnx", flip_the_last_bit, "is not the file its manifest describes"),
        ("tokenizer.json", flip_the_last_bit, "is not the file its manifest describes"),
        ("manifest.json", lambda content: content[:100], "manifest.json: the file: Invalid JSON"),
        ("manifest.json", change_the_first_ids, "gives other ids than golden row 0"),
        ("manifest.json", swap_the_first_answer, "is off its golden rows by"),
    ],
)
def test_a_bundle_that_reads_back_differently_is_not_published(export, repository, tmp_path, name, edit, words):
    export("--precision", "fp32")
    folder = tmp_path / "copy"
    shutil.copytree(repository / "sentiment/1", folder)
    verify_bundle(folder)
    file = folder / name
    changed = edit(file.read_bytes())
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    with pytest.raises(BundleBroken, match=words):
        verify_bundle(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "/nowhere"], "/nowhere holds no config.json"),
        (["--data", "/nowhere.tsv"], "/nowhere.tsv does not exist"),
        (["--max-length", "999"], "max_length is 999; the model of .* reads 3 to 40 tokens"),
        (["--repository", "/dev/null/repository"], "cannot be made a folder"),
    ],
)
def test_what_the_user_can_mend_is_one_line(export, arguments, words):
    answer = export(*arguments)
    assert answer.status == 2
    assert answer.out == ""
    assert re.fullmatch(rf"error: .*{words}.*", answer.err.splitlines()[-1])
    assert "Traceback" not in answer.err


def test_too_few_reviews_are_refused(export, tmp_path):
    few = write_reviews(tmp_path / "few.tsv", labelled_reviews()[:999])
    assert "holds 999 labelled reviews, the parity gate needs 1,000" in export("--data", few).err


def test_a_large_file_is_sampled_the_same_way_each_time(export, repository, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        export("--precision", "fp32", "--rows", "1000")
    assert caplog.text.count("torch reads 1,000 of the 1,200 reviews of reviews.tsv") == 2
    assert manifest_of(repository, 1)["parity"] == manifest_of(repository, 2)["parity"]


def test_an_unreadable_serving_json_stops_the_export(export, repository):
    repository.mkdir(parents=True)
    (repository / "serving.json").write_text("{}")
    answer = export()
    assert answer.status == 2
    assert "does not say which version serves" in answer.err


def test_an_empty_setting_is_refused(export, monkeypatch):
    monkeypatch.setenv("NUNCHI_MODEL_REPOSITORY", " ")
    answer = export()
    assert answer.status == 2
    assert answer.err == "error: NUNCHI_MODEL_REPOSITORY: it is empty; give it a value, or unset it\n"


def test_the_bundled_reviews_are_enough_for_the_gate(tmp_path, export, repository):
    from training.data import SAMPLE

    answer = export("--data", SAMPLE, "--precision", "fp32")
    assert answer.status == 0, answer.err
    assert manifest_of(repository)["parity"]["rows"] >= 1000


def test_the_model_answers_alike_for_a_text_alone_and_among_others(export, repository):
    export()
    manifest = manifest_of(repository)
    model = OnnxModel(repository / "sentiment/1/model.onnx")
    rows = [row["input_ids"] for row in manifest["golden"]]
    alone = np.concatenate([model.probabilities([row], 0) for row in rows])
    together = model.probabilities(rows, 0, manifest["max_length"])
    assert np.abs(alone - together).max() <= manifest["parity"]["batch_probability_tolerance"]
