"""The int8 codes of weights, and the ladder of remedies."""

import numpy as np
import onnx
import onnxruntime
import pytest

from export.builder import GraphBuilder, Matrix
from export.graph import GELU_FLOOR
from export.quantize import FP32, Int8Products, has_vnni, quantize_rows, recipes
from tests.export.checkpoints import UNSIGNED


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


@pytest.mark.parametrize("vnni", [True, False])
def test_int8_ends_in_fp32_and_fp32_never_becomes_int8(vnni):
    ladder = recipes("int8", vnni=vnni)
    assert ladder[-1] == FP32
    assert {recipe.precision for recipe in ladder[:-1]} == {"int8"}
    assert [recipe.precision for recipe in recipes("fp32", vnni=vnni)] == ["fp32"]


def test_no_recipe_for_a_cpu_without_vnni_can_saturate():
    """Two products of a byte and a weight must fit into 16 signed bits, unless the weights are unsigned."""
    for recipe in recipes("int8", vnni=False)[:-1]:
        assert recipe.unsigned or 2 * 255 * (2 ** (recipe.weight_bits - 1) - 1) < 2**15


@pytest.mark.parametrize(
    ("cpuinfo", "vnni"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512bw avx512_vnni\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx_vnni\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512bw\n", False),
        ("processor : 0\nFeatures : asimd\n", True),  # not an x86: its products of bytes do not saturate
        (None, True),
    ],
)
def test_the_flags_of_the_cpu_say_whether_products_of_bytes_saturate(tmp_path, cpuinfo, vnni):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    assert has_vnni(file) is vnni


def products_of(x, weight, smooth=None, reach=None, bias=0, bits=8, unsigned=UNSIGNED, floor=None) -> np.ndarray:
    """What a file answers for x · weightᵀ + bias."""
    graph = GraphBuilder()
    rows = Matrix("x", graph.op("Shape", "x", start=0, end=1))
    biases = np.full(len(weight), bias, np.float32)
    product = Int8Products(graph, bits, unsigned=unsigned).linear(
        rows, weight, biases, floor, smooth=smooth, reach=reach
    )
    model = graph.model(inputs={}, outputs={product.name: ["rows", len(weight)]})
    model.graph.input.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", x.shape[1]]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_unsigned_weights_give_the_same_products():
    source = np.random.default_rng(0)
    x, weight = (source.normal(size=size).astype(np.float32) for size in ((5, 64), (32, 64)))
    signed, unsigned = (products_of(x, weight, bits=7, unsigned=each) for each in (False, True))
    assert np.array_equal(signed, unsigned)
    assert signed == pytest.approx(x @ weight.T, abs=0.5)


def test_smoothing_keeps_an_outlying_channel_from_costing_the_others_their_precision():
    source = np.random.default_rng(0)
    x, weight = (source.normal(size=size).astype(np.float32) for size in ((50, 64), (32, 64)))
    x[:, 7] *= 200
    smooth = np.sqrt(np.abs(x).max(axis=0) / np.abs(weight).max(axis=0)).astype(np.float32)
    plain, smoothed = (np.abs(products_of(x, weight, each) - x @ weight.T).max() for each in (None, smooth))
    assert smoothed < plain / 3


@pytest.mark.parametrize("unsigned", [False, True])
def test_a_range_serves_all_rows_and_what_is_beyond_it_is_cut_off(unsigned):
    x = np.random.default_rng(0).uniform(-4, 4, size=(50, 64)).astype(np.float32)
    x[0, :3] = 9, -9, 0
    found = products_of(x, np.eye(64, dtype=np.float32), reach=np.float32(4), bias=2, unsigned=unsigned) - 2
    step = 4 / 127
    assert np.abs(found - np.clip(x, -128 * step, 127 * step)).max() < 0.51 * step
    assert found[0, :3] == pytest.approx([4, -128 * step, 0], abs=1e-3)


@pytest.mark.parametrize("floor", [GELU_FLOOR, 0.0])
@pytest.mark.parametrize("reach", [1e-5, 0.1, 1.0, 20.0])
def test_a_range_begins_at_the_floor_where_there_is_one(floor, reach):
    x = np.random.default_rng(0).uniform(floor, reach, size=(50, 64)).astype(np.float32)
    x[0, :3] = 3 * reach + 1, floor, 0
    found = products_of(x, np.eye(64, dtype=np.float32), reach=np.float32(reach), floor=floor)
    farthest = max(reach, -floor)
    step = (farthest - floor) / 253  # of 255, less what the floor and 0 take to be whole codes
    assert np.abs(found - np.minimum(x, farthest)).max() < 0.51 * step
    assert found[0, :3] == pytest.approx([farthest, floor, 0], abs=0.51 * step)


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
