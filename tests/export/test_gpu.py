"""`python -m export.gpu`: the artifacts for GPUs, as far as a machine without one can judge them."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from onnx import numpy_helper
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export import convert as convert_module
from export.bundle import verify_bundle
from export.gpu import main
from export.padded import build_padded_graph
from export.triton_config import length_buckets
from tests.bundles import softmax
from tests.server.asking import ask
from tests.triton_process import running_triton


@pytest.fixture(scope="module")
def output(tmp_path_factory, trained, reviews_file) -> Path:
    """What the command writes for the trained checkpoint."""
    folder = tmp_path_factory.mktemp("gpu")
    options = ["--checkpoint", trained, "--data", reviews_file, "--output", folder, "--max-length", 36]
    assert main([str(option) for option in options]) == 0
    return folder


def config_of(repository: Path) -> ModelConfig:
    return text_format.Parse((repository / "sentiment" / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def test_both_repositories_hold_the_same_fp16_bundle_and_say_that_it_serves(output):
    files = ["manifest.json", "model.onnx", "tokenizer.json"]
    one, other = (output / name / "sentiment" / "1" for name in ("onnxruntime", "tensorrt"))
    assert sorted(path.name for path in one.iterdir()) == files
    assert sorted(path.name for path in other.iterdir()) == [*files, "trtexec.args"]
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)
    manifest = verify_bundle(one)
    assert (manifest.precision, manifest.version) == ("fp16", 1)
    assert manifest.parity.label_agreement > 0.99
    assert 0 < manifest.parity.max_probability_shift < 0.01
    for repository in ("onnxruntime", "tensorrt"):
        assert json.loads((output / repository / "serving.json").read_text(encoding="utf-8"))["version"] == 1
        assert sorted(path.name for path in (output / repository).iterdir()) == ["sentiment", "serving.json"]


def test_the_onnxruntime_entry_asks_for_tensorrt_with_the_longest_bucket(output):
    config = config_of(output / "onnxruntime")
    assert (config.backend, config.max_batch_size, list(config.version_policy.specific.versions)) == (
        "onnxruntime",
        64,
        [1],
    )
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    shapes = {key: accelerator.parameters[f"trt_profile_{key}_shapes"] for key in ("min", "opt", "max")}
    assert shapes == {
        "min": "input_ids:1x1,attention_mask:1x1",
        "opt": "input_ids:16x36,attention_mask:16x36",
        "max": "input_ids:64x36,attention_mask:64x36",
    }
    assert "precision_mode" not in accelerator.parameters  # a flag that TensorRT 11 has no more


def test_the_tensorrt_entry_has_a_profile_for_each_bucket_in_the_order_trtexec_builds_them(output):
    config = config_of(output / "tensorrt")
    (group,) = config.instance_group
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert (group.kind, group.count, list(group.profile)) == (group.KIND_GPU, 1, ["0", "1"])
    arguments = (output / "tensorrt" / "sentiment" / "1" / "trtexec.args").read_text(encoding="utf-8").splitlines()
    assert arguments[:2] == ["--stronglyTyped", "--skipInference"]
    profiles = arguments[arguments.index("--profile=0") :]
    assert [line for line in profiles if "--opt" in line or "--profile" in line] == [
        "--profile=0", "--optShapes=input_ids:16x32,attention_mask:16x32",
        "--profile=1", "--optShapes=input_ids:16x36,attention_mask:16x36",
    ]  # fmt: skip
    assert "--maxShapes=input_ids:64x36,attention_mask:64x36" in profiles


@pytest.mark.parametrize(("longest", "buckets"), [(128, [32, 64, 128]), (300, [32, 64, 128, 256, 300]), (20, [20])])
def test_buckets_double_up_to_the_longest(longest, buckets):
    assert length_buckets(longest) == buckets


def test_a_real_triton_reads_the_entry_warms_it_up_and_answers_the_golden_rows(output, tmp_path):
    """The 24.10 core parses config.pbtxt and runs the warm-up; without a GPU the accelerator is left alone."""
    manifest = json.loads((output / "onnxruntime/sentiment/1/manifest.json").read_text(encoding="utf-8"))
    with running_triton(output / "onnxruntime", tmp_path / "var") as triton:
        for row in manifest["golden"][:8]:
            answer = softmax(ask(triton, [row["input_ids"]], seconds=60)[0])
            assert np.abs(answer - row["probabilities"]).max() < 0.002


def build_plans(output: Path, trtexec: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"TRTEXEC": str(trtexec)}
    return subprocess.run([output / "build.sh"], env=environment, capture_output=True, text=True)


def test_build_sh_builds_a_plan_once_and_leaves_none_behind_when_trtexec_fails(output, tmp_path):
    folder = output / "tensorrt" / "sentiment" / "1"
    trtexec = tmp_path / "trtexec"  # the real one needs a GPU
    missing = build_plans(output, trtexec)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    trtexec.write_text('#!/bin/bash\nprintf "%s\\n" "$@" >"${2#--saveEngine=}"\nexit "${STATUS:-1}"\n')
    trtexec.chmod(0o755)
    assert build_plans(output, trtexec).returncode != 0
    assert not (folder / "model.plan").exists()
    trtexec.write_text(trtexec.read_text().replace("STATUS:-1", "STATUS:-0"))
    assert build_plans(output, trtexec).returncode == 0
    arguments = (folder / "model.plan").read_text(encoding="utf-8").splitlines()
    assert arguments[:2] == ["--onnx=1/model.onnx", "--saveEngine=1/.model.plan"]
    assert arguments[2:] == (folder / "trtexec.args").read_text(encoding="utf-8").splitlines()
    assert "1/model.plan is there" in build_plans(output, trtexec).stdout
    verify_bundle(folder)


def run(capsys, *options: object) -> tuple[int, str]:
    status = main([str(option) for option in options])
    return status, capsys.readouterr().err


def test_the_next_export_has_the_next_number_in_both(trained, reviews_file, tmp_path, capsys):
    for version in (1, 2):
        options = ["--checkpoint", trained, "--data", reviews_file, "--output", tmp_path]
        assert run(capsys, *options)[0] == 0
        for repository in ("onnxruntime", "tensorrt"):
            assert (tmp_path / repository / "sentiment" / str(version) / "manifest.json").exists()
            assert list(config_of(tmp_path / repository).version_policy.specific.versions) == [version]
    serving = json.loads((tmp_path / "tensorrt" / "serving.json").read_text(encoding="utf-8"))
    assert (serving["version"], serving["previous"]) == (2, 1)


def test_what_does_not_fit_into_half_precision_is_written_in_fp32_and_says_so(
    trained, reviews_file, tmp_path, capsys, monkeypatch
):
    def exaggerate(config, weights, recipe):
        """Queries beyond fp16, and keys that take that back: the same model, where numbers are large enough."""
        weights = dict(weights)
        for part, factor in (("query", 2**17), ("key", 2**-17)):
            for kind in ("weight", "bias"):
                name = f"electra.encoder.layer.0.attention.self.{part}.{kind}"
                weights[name] = weights[name] * np.float32(factor)
        return build_padded_graph(config, weights, recipe)

    monkeypatch.setattr(convert_module, "build_padded_graph", exaggerate)
    assert run(capsys, "--checkpoint", trained, "--data", reviews_file, "--output", tmp_path)[0] == 0
    manifest = verify_bundle(tmp_path / "tensorrt" / "sentiment" / "1")
    assert manifest.precision == "fp32"
    assert [attempt.accepted for attempt in manifest.parity.attempts] == [False, True]
    assert "fp16 ends at 65,504" in manifest.parity.attempts[0].reason


def test_a_graph_that_answers_otherwise_than_torch_is_not_written(trained, reviews_file, tmp_path, capsys, monkeypatch):
    def without_a_head(config, weights, recipe):
        graph = build_padded_graph(config, weights, recipe)
        last = next(each for each in graph.graph.initializer if each.name == graph.graph.node[-1].input[1])
        last.CopyFrom(numpy_helper.from_array(np.zeros(last.dims, np.float32), last.name))
        return graph

    monkeypatch.setattr(convert_module, "build_padded_graph", without_a_head)
    status, err = run(capsys, "--checkpoint", trained, "--data", reviews_file, "--output", tmp_path)
    assert status == 2
    assert "labels agree on" in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.onnx"))
