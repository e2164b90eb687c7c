"""backends/onnxruntime/model.py without Triton, for what a running Triton hardly shows.

`triton_python_backend_utils` exists only inside Triton's stub, so a few lines stand in for it here; everything of ours
and ONNX Runtime are real.  That the stand-in behaves like the real one is what test_backend.py is for.
"""

import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from tests.bundles import tiny_model, write_bundle, write_config
from tests.server.odd_bundles import edit_config, replace_model

SOURCE = Path(__file__).parent.parent.parent / "server" / "backends" / "onnxruntime" / "model.py"


@dataclass
class Error:
    sentence: str
    code: str
    INVALID_ARG = "INVALID_ARG"
    INTERNAL = "INTERNAL"
    CANCELLED = "CANCELLED"

    def message(self) -> str:
        return self.sentence


class Tensor:
    @staticmethod
    def from_dlpack(name, array):
        return np.from_dlpack(array)


class Response:
    def __init__(self, output_tensors: list, error: Error | None = None) -> None:
        self.output_tensors = output_tensors
        self._error = error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Error | None:
        return self._error


class Logger:
    @staticmethod
    def log_warn(line: str) -> None:
        print(line)


@dataclass
class Request:
    tensors: dict
    cancelled: bool = False
    identity: str = "asked-1"

    def request_id(self) -> str:
        return self.identity

    def is_cancelled(self) -> bool:
        return self.cancelled


@dataclass
class CountingSession:
    """ONNX Runtime's session, with the shape of every batch it ran."""

    session: onnxruntime.InferenceSession
    shapes: list = field(default_factory=list)

    def run(self, names, feed, options):
        self.shapes.append(feed["input_ids"].shape)
        return self.session.run(names, feed, options)


@pytest.fixture
def backend(monkeypatch):
    """The module, imported as Triton's stub would."""
    utils = ModuleType("triton_python_backend_utils")
    utils.TritonError, utils.Tensor, utils.InferenceResponse = Error, Tensor, Response
    utils.Logger = Logger
    utils.get_input_tensor_by_name = lambda request, name: request.tensors[name]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    spec = importlib.util.spec_from_file_location("model", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(backend, repository: Path):
    text = (repository / "sentiment" / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    document = json_format.MessageToDict(config, preserving_proto_field_name=True)
    for entry in document["input"] + document["output"]:
        entry["dims"] = [int(size) for size in entry["dims"]]
    document |= {"default_model_filename": "model.onnx", "parameters": document.get("parameters", {})}
    model = backend.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(document),
            "model_repository": str(repository / "sentiment"),
            "model_version": "1",
        }
    )
    return model


def request(*ids: int, cancelled: bool = False) -> Request:
    return Request({"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}, cancelled)


def test_a_cancelled_request_is_not_computed_and_its_neighbours_are(backend, repository):
    model = load(backend, repository)
    model.session = CountingSession(model.session)
    answers = model.execute([request(2, 4, 3), request(2, 5, 6, 7, 3, cancelled=True), request(2, 6, 3)])
    assert answers[1].error().code == "CANCELLED"
    assert [answer.error() for answer in (answers[0], answers[2])] == [None, None]
    assert model.session.shapes == [(2, 3)]


def test_a_refused_request_has_one_line_with_its_id_and_its_neighbours_have_none(backend, repository, capsys):
    model = load(backend, repository)
    words, too_many = request(2, 99_999, 3), request(*[2] * 33)
    words.identity, too_many.identity = "a\nb", "long-1"
    model.execute([request(2, 4, 3), words, request(2, 3, cancelled=True), too_many])
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line.partition(": ")[0] for line in lines] == ["request 'a\\nb'", "request 'long-1'"]
    assert "the vocabulary ends at" in lines[0] and "the model reads 32" in lines[1]


def test_a_list_of_cancelled_requests_runs_nothing(backend, repository):
    model = load(backend, repository)
    model.session = CountingSession(model.session)
    assert [answer.error().code for answer in model.execute([request(2, 3, cancelled=True)] * 2)] == ["CANCELLED"] * 2
    assert model.session.shapes == []


def test_columns_in_which_nobody_has_a_word_are_not_computed(backend, repository):
    model = load(backend, repository)
    model.session = CountingSession(model.session)
    ids, mask = np.zeros((2, 32), np.int64), np.zeros((2, 32), np.int64)
    mask[0, :5], mask[1, :9] = 1, 1
    model.execute([Request({"input_ids": ids, "attention_mask": mask}), request(2, 4, 3)])
    assert model.session.shapes == [(3, 9)]


def test_the_parameters_are_those_of_the_cpp_backend(backend, repository):
    def options(**parameters):
        config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
        return backend.session_options(config | {"optimization": {"graph": {"level": 1}}})

    ours = options()
    assert ours.intra_op_num_threads == len(os.sched_getaffinity(0))
    assert (ours.enable_cpu_mem_arena, ours.enable_mem_pattern) == (True, True)
    assert ours.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    theirs = options(
        intra_op_thread_count="3",
        inter_op_thread_count="2",
        execution_mode="1",
        enable_mem_arena="0",
        enable_mem_pattern="false",
    )
    assert (theirs.intra_op_num_threads, theirs.inter_op_num_threads) == (3, 2)
    assert theirs.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert (theirs.enable_cpu_mem_arena, theirs.enable_mem_pattern) == (False, False)
    with pytest.raises(backend.Broken, match=r"parameter intra_op_thread_count of config\.pbtxt is 'many'"):
        options(intra_op_thread_count="many")


def test_the_parameters_reach_the_session(backend, repository):
    write_config(repository, parameters={"intra_op_thread_count": "1", "memory.enable_memory_arena_shrinkage": "cpu:0"})
    model = load(backend, repository)
    assert model.session.get_session_options().intra_op_num_threads == 1
    assert model.run_options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"
    assert model.execute([request(2, 4, 3)])[0].error() is None


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda r: (r / "sentiment/1/manifest.json").unlink(), "without a manifest is not a bundle"),
        (lambda r: (r / "sentiment/1/manifest.json").write_text("{"), r"manifest\.json cannot be read"),
        (lambda r: (r / "sentiment/1/manifest.json").write_text("{}"), r"manifest\.json lacks files, labels"),
        (
            lambda r: (r / "sentiment/1/model.onnx").write_bytes(b"x"),
            r"model\.onnx has sha256 .*publish the bundle anew",
        ),
        (lambda r: replace_model(r, with_second_output()), r"the outputs of model\.onnx are .*'mean'"),
        (lambda r: edit_config(r, lambda c: c.output[0].dims.__setitem__(0, 3)), r"answers with 2 logits.*says \[3\]"),
        (lambda r: edit_config(r, lambda c: setattr(c.input[0], "data_type", 8)), r"config\.pbtxt says .*TYPE_INT32"),
    ],
)
def test_a_version_whose_files_disagree_is_not_loaded(backend, repository, damage, sentence):
    damage(repository)
    with pytest.raises(backend.Broken, match=sentence):
        load(backend, repository)


def with_second_output():
    model = tiny_model()
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 4]))
    return model


def test_every_label_count_works(backend, tmp_path):
    write_bundle(tmp_path, labels=3)
    (answer,) = load(backend, tmp_path).execute([request(2, 4, 3)])
    assert answer.output_tensors[0].shape == (1, 3)
