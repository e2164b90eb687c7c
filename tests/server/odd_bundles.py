"""Bundles that differ from the tiny one: another configuration, another graph, a slow one."""

import json
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from tests.bundles import describe, tiny_model, tiny_tokenizer, write_json, write_manifest


def edit_config(repository: Path, change) -> None:
    """Apply `change(config)` to config.pbtxt, as a protobuf message."""
    file = repository / "sentiment" / "config.pbtxt"
    config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    change(config)
    file.write_text(text_format.MessageToString(config), encoding="utf-8")


def replace_model(repository: Path, model: onnx.ModelProto | bytes, version: int = 1, *, check: bool = True) -> None:
    """Put another graph into a bundle and describe it anew, so that the checksums hold.

    Without `check` the golden rows stay those of the old graph: for one that cannot answer them, or answers the same.
    """
    folder = repository / "sentiment" / str(version)
    file = folder / "model.onnx"
    file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    if check:
        write_manifest(folder, tiny_tokenizer(32), version=version, labels=2, max_length=32)
    else:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest["files"]["model.onnx"] = describe(file)
        write_json(folder / "manifest.json", manifest)


def slow_model(seconds: float) -> onnx.ModelProto:
    """The tiny model, made to compute for about `seconds` whatever the batch, on the machine as it is now."""
    rounds = 20
    for _ in range(2):
        model = _with_loop(rounds)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        began = time.perf_counter()
        session.run(None, {"input_ids": [[2, 3]], "attention_mask": [[1, 1]]})
        rounds = max(1, round(rounds * seconds / (time.perf_counter() - began)))
    return _with_loop(rounds)


def _with_loop(rounds: int) -> onnx.ModelProto:
    """Logits plus 0 times the sum of a matrix that `rounds` matrix products have passed over."""
    model = tiny_model()
    graph = model.graph
    graph.node[-1].output[0] = "quick"
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "wheel"], ["turned"]),
            helper.make_node("Identity", ["go_on"], ["go_on_still"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [512, 512]),
        ],
        [
            helper.make_tensor_value_info("go_on_still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("turned", TensorProto.FLOAT, [512, 512]),
        ],
    )
    constants = {
        "wheel": np.eye(512, dtype=np.float32),
        "zeros": np.zeros((512, 512), np.float32),
        "rounds": np.array(rounds, np.int64),
        "yes": np.array(True),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("ReduceSum", ["mask"], ["any"], keepdims=0),
            helper.make_node("Mul", ["zeros", "any"], ["first"]),
            helper.make_node("Loop", ["rounds", "yes", "first"], ["last"], body=body),
            helper.make_node("ReduceSum", ["last"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["quick", "nothing"], ["logits"]),
        ]
    )
    onnx.checker.check_model(model)
    return model
