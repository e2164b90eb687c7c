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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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


@dataclass
class Capsule:
    """A DLPack capsule as an array that numpy can take over."""

    capsule: object

    def __dlpack__(self, **_):
        return self.capsule

    def __dlpack_device__(self):
        return 1, 0  # the CPU


class Tensor:
    @staticmethod
    def from_dlpack(name, capsule):
        return np.from_dlpack(Capsule(capsule))


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


def counted(model):
    """The model, and the shapes of the runs that ONNX Runtime will be asked for, longest first."""
    model.alone = CountingSession(model.alone)
    return model, model.alone.shapes


def request(*ids: int, rows: int = 1, cancelled: bool = False) -> Request:
    return Request(
        {"input_ids": np.array([ids] * rows), "attention_mask": np.ones((rows, len(ids)), np.int64)}, cancelled
    )


def test_a_large_cancelled_request_is_not_computed_and_its_neighbours_are(backend, repository):
    model, shapes = counted(load(backend, repository))
    large = request(2, 5, 6, 7, 3, rows=backend.ASKED_ROWS, cancelled=True)
    answers = model.execute([request(2, 4, 3), large, request(2, 6, 3)])
    assert answers[1].error().code == "CANCELLED"
    assert [answer.error() for answer in (answers[0], answers[2])] == [None, None]
    assert sum(rows for rows, _ in shapes) == 2 and {width for _, width in shapes} == {3}


def test_a_refused_request_has_one_line_with_its_id_and_its_neighbours_have_none(backend, repository, capsys):
    model = load(backend, repository)
    words, too_many = request(2, 99_999, 3), request(*[2] * 33)
    words.identity, too_many.identity = "a\nb", "long-1"
    model.execute([request(2, 4, 3), words, request(2, 3, rows=8, cancelled=True), too_many])
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line.partition(": ")[0] for line in lines] == ["request 'a\\nb'", "request 'long-1'"]
    assert "the vocabulary ends at" in lines[0] and "the model reads 32" in lines[1]


def test_nobody_asks_whether_a_small_request_was_cancelled(backend, repository):
    small = request(2, 4, 3)
    small.is_cancelled = lambda: pytest.fail("this question costs more than the answer")
    assert load(backend, repository).execute([small])[0].error() is None


def test_a_list_of_cancelled_requests_runs_nothing(backend, repository):
    model, shapes = counted(load(backend, repository))
    cancelled = request(2, 3, rows=backend.ASKED_ROWS, cancelled=True)
    assert [answer.error().code for answer in model.execute([cancelled] * 2)] == ["CANCELLED"] * 2
    assert shapes == []


def test_columns_in_which_nobody_has_a_word_are_not_computed(backend, repository):
    write_config(repository, parameters={"intra_op_thread_count": "1"})
    model, shapes = counted(load(backend, repository))
    ids, mask = np.zeros((2, 32), np.int64), np.zeros((2, 32), np.int64)
    mask[0, :5], mask[1, :9] = 1, 1
    model.execute([Request({"input_ids": ids, "attention_mask": mask}), request(2, 4, 3)])
    assert shapes == [(3, 9)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_of_like_length_run_together_and_each_request_gets_its_own_answer(
    backend, repository, monkeypatch, threads
):
    monkeypatch.setattr(backend, "RUN_TOKENS", 40)
    write_config(repository, parameters={"intra_op_thread_count": str(threads)})
    model, shapes = counted(load(backend, repository))
    source = np.random.default_rng(0)
    requests = [request(2, *source.integers(4, 32, length), 3) for length in source.permutation(20)]
    alone = [model.execute([each])[0].output_tensors[0] for each in requests]
    assert len({tuple(row.round(3).ravel()) for row in alone}) > 10, "these rows would not tell who got whose answer"
    shapes.clear()
    together = [answer.output_tensors[0] for answer in model.execute(requests)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert sum(rows for rows, _ in shapes) == 20 and len(shapes) >= 6
    tokens = sum(length + 2 for length in range(20))
    assert sum(rows * width for rows, width in shapes) < 1.3 * tokens < 20 * 21


def test_all_threads_share_a_text_alone_of_a_large_model_and_many_run_on_one_each(backend, repository, monkeypatch):
    monkeypatch.setattr(backend, "SHARED_BYTES", 0)
    write_config(repository, parameters={"intra_op_thread_count": "2"})
    model = load(backend, repository)
    threads = [session.get_session_options().intra_op_num_threads for session in (model.shared, model.alone)]
    assert threads == [2, 1]
    model.shared, model.alone = CountingSession(model.shared), CountingSession(model.alone)
    alone = model.execute([request(2, 4, 3)])[0].output_tensors[0]
    assert (model.shared.shapes, model.alone.shapes) == ([(1, 3)], [])
    together = model.execute([request(2, 4, 3), request(2, 5, 4, 3)])[0].output_tensors[0]
    assert model.shared.shapes == [(1, 3)] and sorted(model.alone.shapes) == [(1, 3), (1, 4)]
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_a_small_model_is_in_memory_once(backend, repository):
    write_config(repository, parameters={"intra_op_thread_count": "2"})
    model, shapes = counted(load(backend, repository))
    assert model.shared is None
    model.execute([request(2, 4, 3)])
    assert shapes == [(1, 3)]


def test_what_starts_no_threads_is_loaded_standing_back(backend, repository, monkeypatch):
    """A thread of a session that answers would stand back for ever."""
    load_session, niceness = backend.load_session, {}

    def noted(model, options):
        niceness[options.intra_op_num_threads] = os.getpriority(os.PRIO_PROCESS, 0)
        return load_session(model, options)

    monkeypatch.setattr(backend, "load_session", noted)
    monkeypatch.setattr(backend, "SHARED_BYTES", 0)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    write_config(repository, parameters={"intra_op_thread_count": "2"})
    load(backend, repository)
    assert niceness == {2: own, 1: max(own, backend.NICENESS)} and backend.NICENESS > 0
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=64), threads=st.integers(1, 16))
def test_every_row_is_in_one_run_the_longest_first_and_no_thread_is_left_without_work(backend, lengths, threads):
    runs = backend.cut(np.array(lengths), threads)
    order = np.concatenate(runs)
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(np.array(lengths)[order]) <= 0).all()
    tokens = [sum(lengths[row] for row in run) for run in runs]
    assert max(tokens) <= backend.RUN_TOKENS + max(lengths)
    if len(set(lengths)) == 1 and len(lengths) >= threads:
        assert len(runs) >= threads


def test_a_long_text_is_not_run_with_the_short_ones(backend):
    assert [run.tolist() for run in backend.cut(np.array([20, 100, 20]), 2)] == [[1], [0, 2]]


def test_a_run_that_fails_is_the_answer_of_every_request_of_its_batch(backend, repository):
    model = load(backend, repository)

    class Broken:
        def run(self, *_):
            raise RuntimeError("no memory")

    model.alone = Broken()
    for count in (1, 5):
        answers = model.execute([request(2, 4, 3)] * count)
        assert {answer.error().code for answer in answers} == {"INTERNAL"}
        assert "could not run a batch" in answers[0].error().message() and "no memory" in answers[0].error().message()


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
    assert model.alone.get_session_options().intra_op_num_threads == 1
    assert model.shared is None
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


def set_golden(repository: Path, row: int, probabilities: list[float]) -> None:
    file = repository / "sentiment" / "1" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["golden"][row]["probabilities"] = probabilities
    file.write_text(json.dumps(manifest), encoding="utf-8")


def golden_of(repository: Path, row: int) -> list[float]:
    file = repository / "sentiment" / "1" / "manifest.json"
    return json.loads(file.read_text(encoding="utf-8"))["golden"][row]["probabilities"]


def test_golden_rows_within_the_tolerance_of_the_manifest_are_this_machines_rounding(backend, repository):
    row = next(row for row in range(32) if golden_of(repository, row)[1] > 0.6)
    negative, positive = golden_of(repository, row)
    set_golden(repository, row, [negative + 0.015, positive - 0.015])
    assert load(backend, repository).execute([request(2, 4, 3)])[0].error() is None


@pytest.mark.parametrize(
    ("change", "flipped"), [(lambda shares: shares[::-1], 1), (lambda shares: [shares[0] - 0.03, shares[1] + 0.03], 0)]
)
@pytest.mark.parametrize(
    ("vnni", "remedy"),
    [(True, "publish the bundle anew"), (False, "this CPU has no VNNI, export the checkpoint on one like it")],
)
def test_a_model_that_answers_otherwise_on_this_machine_is_not_loaded(
    backend, repository, monkeypatch, change, flipped, vnni, remedy
):
    monkeypatch.setattr(backend, "has_vnni", lambda: vnni)
    row = next(row for row in range(32) if golden_of(repository, row)[1] > 0.6)
    set_golden(repository, row, change(golden_of(repository, row)))
    with pytest.raises(
        backend.Broken, match=rf"of 32 golden rows {flipped} have another label.*0\.02 is allowed; {remedy}"
    ):
        load(backend, repository)


def test_golden_rows_that_cannot_be_run_are_one_sentence(backend, repository):
    file = repository / "sentiment" / "1" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["golden"][0]["input_ids"][1] = manifest["vocab_size"]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(backend.Broken, match="ONNX Runtime could not run the golden rows"):
        load(backend, repository)


def with_second_output():
    model = tiny_model()
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 4]))
    return model


def test_every_label_count_works(backend, tmp_path):
    write_bundle(tmp_path, labels=3)
    (answer,) = load(backend, tmp_path).execute([request(2, 4, 3)])
    assert answer.output_tensors[0].shape == (1, 3)
