"""The int8 codes of weights, and the ladder of remedies."""

import numpy as np
import onnx
import onnxruntime
import pytest

from export.builder import GraphBuilder, Matrix
from export.graph import GELU_FLOOR
from export.quantize import FP32, INT8_LADDER, RECIPES, Int8Products, quantize_rows


@pytest.mark.parametrize(("largest", "bits"), [(127, 8), (63, 7)])
def test_codes_times_scales_are_within_half_a_step_of_the_weight(largest, bits):
    weight = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32) * np.logspace(-4, 2, 20)[:, None]
    codes, scales = quantize_rows(weight.astype(np.float32), largest)
    assert codes.dtype == np.int8
    assert np.abs(codes).max() == largest < 2 ** (bits - 1)
    assert (np.abs(codes * scales - weight) <= scales * 0.501).all()


def test_a_row_of_zeros_stays_zero():
    codes, scales = quantize_rows(np.zeros((2, 3), np.float32), 127)
    assert not codes.any()
    assert np.isfinite(scales).all()


def test_int8_ends_in_fp32_and_fp32_never_becomes_int8():
    assert RECIPES["int8"][-1] == FP32
    assert [recipe.precision for recipe in INT8_LADDER] == ["int8", "int8", "int8", "fp32"]
    assert [recipe.precision for recipe in RECIPES["fp32"]] == ["fp32"]


@pytest.mark.parametrize("floor", [None, GELU_FLOOR, 0.0])
def test_each_row_is_read_to_within_half_a_step_of_its_own_scale(floor):
    source = np.random.default_rng(0)
    x = source.normal(size=(6, 16)) * np.logspace(-3, 2, 6)[:, None]
    x = np.maximum(x, -np.inf if floor is None else floor * 0.999).astype(np.float32)
    x[3] = 0
    graph = GraphBuilder()
    exact = Int8Products(graph, 8).linear(
        Matrix("x", graph.op("Shape", "x", start=0, end=1)),
        np.eye(16, dtype=np.float32),
        np.zeros(16, np.float32),
        floor,
    )
    model = graph.model(inputs={}, outputs={exact.name: ["rows", 16]})
    model.graph.input.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 16]))
    (found,) = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    largest = np.abs(x).max(axis=1, keepdims=True)
    step = {None: largest / 127, 0.0: largest / 255}.get(floor, np.maximum(largest / 191, -(floor or 0) / 64))
    assert (np.abs(found - x) <= step * 0.501).all()
