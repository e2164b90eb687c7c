"""The padded graph for GPUs, in true half precision: every node computed in the type that stands in the graph."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from export.onnx_model import OnnxModel, softmax
from export.padded import build_padded_graph, largest_half
from export.quantize import FP16, FP32
from tests.export.checkpoints import CONFIGS, make_model

LENGTHS = (12, 3, 1, 7, 5)
# What onnx-tensorrt's table of operators lists.
TENSORRT = {
    *("Add", "Cast", "CumSum", "Equal", "Erf", "Gather", "Gemm", "LayerNormalization", "MatMul", "Max", "Mul", "Relu"),
    *("Reshape", "Softmax", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return make_model(CONFIGS[request.param])


def weights_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def texts(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(4, vocabulary, (len(LENGTHS), max(LENGTHS)))
    return ids, (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)


def by_torch(model, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()


def node_by_node(graph: onnx.ModelProto, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    (logits,) = ReferenceEvaluator(graph).run(None, {"input_ids": ids, "attention_mask": mask})
    return logits


def test_in_fp32_it_is_torch_and_in_half_precision_close_to_it(model):
    ids, mask = texts(model.config.vocab_size)
    expected = by_torch(model, ids, mask)
    exact, half = (build_padded_graph(model.config, weights_of(model), recipe) for recipe in (FP32, FP16))
    assert node_by_node(exact, ids, mask) == pytest.approx(expected, abs=1e-5)
    found = node_by_node(half, ids, mask)
    assert found.dtype == np.float32
    assert 0 < np.abs(softmax(found) - softmax(expected)).max() < 0.004


def test_padding_on_any_side_and_an_empty_text_change_nothing_for_the_others(model, tmp_path):
    ids, mask = texts(model.config.vocab_size)
    file = tmp_path / "model.onnx"
    onnx.save(build_padded_graph(model.config, weights_of(model), FP16), file)
    half = OnnxModel(file)
    right = half.logits(ids, mask)
    for row, length in enumerate(LENGTHS):
        assert half.logits(ids[row : row + 1, :length], mask[row : row + 1, :length]) == pytest.approx(
            right[row : row + 1], abs=1e-3
        )
        ids[row], mask[row] = (np.roll(array[row], max(LENGTHS) - length) for array in (ids, mask))
    assert half.logits(ids, mask) == pytest.approx(right, abs=1e-3)
    mask[0] = 0
    others = half.logits(ids, mask)
    assert np.isfinite(others).all()
    assert others[1:] == pytest.approx(right[1:], abs=1e-3)


def test_the_graph_is_plain_and_its_types_are_where_they_belong(model):
    graph = build_padded_graph(model.config, weights_of(model), FP16)
    onnx.checker.check_model(graph, full_check=True)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 17)]
    assert {node.op_type for node in graph.graph.node} <= TENSORRT
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    kinds = {each.name: each.type.tensor_type.elem_type for each in (*inferred.value_info, *inferred.output)}
    kinds |= {each.name: each.data_type for each in inferred.initializer}
    for node in inferred.node:
        if node.op_type in ("LayerNormalization", "Softmax", "Gemm"):
            assert {kinds[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}, node.op_type
    halves = [
        node for node in inferred.node if node.op_type == "MatMul" and kinds[node.output[0]] == TensorProto.FLOAT16
    ]
    assert len(halves) >= 8 * model.config.num_hidden_layers  # six products of weights and two of attention


def test_a_value_that_half_precision_cannot_hold_is_seen(tmp_path):
    model = make_model(CONFIGS["bert, 2 labels"])
    file = tmp_path / "model.onnx"
    onnx.save(build_padded_graph(model.config, weights_of(model), FP16), file)
    assert 1 < largest_half(file, [[2, 5, 6, 3]], 0) < 100
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight *= 2e4
    onnx.save(build_padded_graph(model.config, weights_of(model), FP16), file)
    assert largest_half(file, [[2, 5, 6, 3]], 0) == np.inf
