"""What the int8 matrix products alone would allow on these cores: the limit that the report draws."""

import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROWS, INNER, COLUMNS = 1024, 768, 3072


def product(threads: int) -> "onnxruntime.InferenceSession":
    """``MatMulInteger`` UINT8 [1024, 768] x INT8 [768, 3072], the weights a constant, as in a model."""
    weights = np.random.default_rng(0).integers(-127, 128, (INNER, COLUMNS), np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [ROWS, INNER])],
        [helper.make_tensor_value_info("c", TensorProto.INT32, [ROWS, COLUMNS])],
        [numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def giga_operations(session: "onnxruntime.InferenceSession", seconds: float = 1.0) -> float:
    """Multiplications and additions per second / 10⁹: the median of the runs within ``seconds``."""
    feed = {"a": np.random.default_rng(1).integers(0, 256, (ROWS, INNER), np.uint8)}
    for _ in range(3):
        session.run(None, feed)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - began)
    return 2 * ROWS * INNER * COLUMNS / float(np.median(times)) / 1e9


def layer_parameters(config: dict) -> int:
    """Of the layers of a BERT or ELECTRA, by its config.json: what a token is multiplied by (KcBERT-base: 85.05 M)."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    attention = 4 * (hidden * hidden + hidden)
    feed_forward = 2 * hidden * inner + inner + hidden
    return config["num_hidden_layers"] * (attention + feed_forward + 4 * hidden)


def texts_per_second(giga: float, parameters: int, mean_tokens: float) -> float:
    return giga * 1e9 / (2 * parameters * mean_tokens)
