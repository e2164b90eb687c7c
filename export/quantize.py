"""How the large matrix products of a graph are written: in fp32, or in int8.

Weights are int8 with one scale per output column. Activations are quantized while the model runs, each row (token) by
its own largest value, or, where rows are alike, all by a range found beforehand (calibration.py), which saves several
small operators. The usual dynamic quantization takes one scale for the whole batch: there an outlier in one text costs
the precision of its neighbours, and the answer to a text depends on the company it came in. Neither of ours knows the
neighbours (EXPERIMENTS.md has the figures).

`recipes` is the ladder of remedies that convert.py climbs until the parity gate opens.

A CPU without VNNI adds two products of an unsigned and a signed byte in 16 bits, where they saturate
(onnxruntime#6004): 8-bit weights can be silently wrong there. 7-bit weights cannot overflow, and for unsigned weights
ONNX Runtime takes another, exact way. So the ladder depends on the CPU, and every machine that loads a version asks it
its golden rows.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from onnx import TensorProto

from export.builder import CONTRIB, GraphBuilder, Matrix, integers, real


@dataclass(frozen=True)
class Recipe:
    """One way to write a model. ``weight_bits``: None means fp32, 16 fp16.

    ``calibrated``: inputs whose rows are alike are quantized by one range, those of a LayerNorm smoothed before, the
    rest by a scale per token; ``smoothed``: every input is, and has a scale per token (calibration.py).
    ``spared`` is the share of the layers, the most sensitive ones, that stay in fp32; convert.py finds out which those
    are and names them in ``float_layers``.
    """

    remedy: str
    weight_bits: int | None
    unsigned: bool = False
    calibrated: bool = False
    smoothed: bool = False
    spared: float = 0
    float_layers: frozenset[int] = frozenset()

    @property
    def precision(self) -> str:
        return {None: "fp32", 16: "fp16"}.get(self.weight_bits, "int8")


FP32 = Recipe("fp32", None)
FP16 = Recipe("fp16", 16)  # written by padded.py
INT8_LADDER = (
    Recipe("int8, calibrated", 8, calibrated=True),
    Recipe("int8", 8),
    Recipe("int8, smoothed", 8, smoothed=True),
    Recipe("int8, smoothed, a quarter of the layers in fp32", 8, smoothed=True, spared=0.25),
    Recipe("int8, smoothed, half of the layers in fp32", 8, smoothed=True, spared=0.5),
    FP32,
)
INT8_LADDER_WITHOUT_VNNI = (
    Recipe("int8 with 7-bit weights, calibrated", 7, calibrated=True),
    Recipe("int8 with 7-bit weights", 7),
    Recipe("int8 with unsigned weights", 8, unsigned=True),
    Recipe("int8 with unsigned weights, smoothed", 8, unsigned=True, smoothed=True),
    Recipe(
        "int8 with unsigned weights, smoothed, half of the layers in fp32", 8, unsigned=True, smoothed=True, spared=0.5
    ),
    FP32,
)
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}  # products of bytes are added in 32 bits


def recipes(precision: str, *, vnni: bool) -> tuple[Recipe, ...]:
    """What to try in turn for ``precision`` on a CPU with or without VNNI."""
    if precision == "int8":
        return INT8_LADDER if vnni else INT8_LADDER_WITHOUT_VNNI
    return {"fp32": (FP32,), "fp16": (FP16, FP32)}[precision]


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bytes without saturating; True where there is no telling, golden rows will."""
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return True
    return bool(VNNI & set(flags.split()))


class Products(Protocol):
    """What the graph needs of a precision: looking words up, and multiplying by a weight."""

    def lookup(self, table: np.ndarray, indexes: str) -> str:
        """Rows of ``table`` [n, width], FLOAT [len(indexes), width]."""

    def linear(
        self,
        x: Matrix,
        weight: np.ndarray,
        bias: np.ndarray,
        floor: float | None = None,
        smooth: np.ndarray | None = None,
        reach: np.ndarray | None = None,
    ) -> Matrix:
        """x · weightᵀ + bias; weight is [out, in] as torch stores it. No value of ``x`` lies below ``floor``.

        ``smooth`` [in] is what may divide ``x`` and multiply the weight without changing the product, ``reach`` how far
        the so divided ``x`` goes from 0 (calibration.py has both).
        """


class FloatProducts:
    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph

    def lookup(self, table: np.ndarray, indexes: str) -> str:
        return self._graph.op("Gather", table, indexes)

    def linear(
        self,
        x: Matrix,
        weight: np.ndarray,
        bias: np.ndarray,
        floor: float | None = None,
        smooth: np.ndarray | None = None,
        reach: np.ndarray | None = None,
    ) -> Matrix:
        return Matrix(self._graph.op("Gemm", x.name, weight, bias, transB=1), x.rows)


class Int8Products:
    def __init__(self, graph: GraphBuilder, weight_bits: int, *, unsigned: bool = False) -> None:
        self._graph = graph
        self._largest = 2 ** (weight_bits - 1) - 1
        self._unsigned = unsigned
        self._zero_points: dict[tuple[str, int], str] = {}

    def lookup(self, table: np.ndarray, indexes: str) -> str:
        """The table stays int8 with a scale per word; only the rows that were looked up become FLOAT."""
        codes, scales = quantize_rows(table, 127)
        words = self._graph.op("Cast", self._graph.op("Gather", codes, indexes), to=TensorProto.FLOAT)
        return self._graph.op("Mul", words, self._graph.op("Gather", scales, indexes))

    def linear(
        self,
        x: Matrix,
        weight: np.ndarray,
        bias: np.ndarray,
        floor: float | None = None,
        smooth: np.ndarray | None = None,
        reach: np.ndarray | None = None,
    ) -> Matrix:
        graph = self._graph
        if smooth is not None:
            x = Matrix(graph.op("Mul", x.name, 1 / smooth), x.rows)
            weight = weight * smooth
            floor = None if floor else floor  # each channel has a floor of its own now, unless it is 0
        codes, scales = quantize_rows(weight, self._largest)
        codes, offset = codes.T, None
        if self._unsigned:
            codes, offset = (codes.astype(np.int16) + 128).astype(np.uint8), np.array(128, np.uint8)
        if reach is not None:
            reach = max(reach, -(floor or 0))
            zero_point = _zero_point(reach, floor)
            step, middle = real(reach / (255 - zero_point)), np.array(zero_point, np.uint8)
            x_codes = graph.op("QuantizeLinear", x.name, step, middle)
            operands = x_codes, codes, step, scales[:, 0], middle, offset, bias
            return Matrix(graph.op("MatMulIntegerToFloat", *operands, domain=CONTRIB), x.rows)
        x_codes, x_scales, zero_point = self._quantize(x, weight.shape[1], floor)
        operands = x_codes, codes, real(1), scales[:, 0], np.array(zero_point, np.uint8), offset
        product = graph.op("MatMulIntegerToFloat", *operands, domain=CONTRIB)
        return Matrix(graph.op("Add", graph.op("Mul", product, x_scales), bias), x.rows)

    def _quantize(self, x: Matrix, width: int, floor: float | None) -> tuple[str, str, int]:
        """UINT8 codes of ``x`` [rows, width], the scale of each row FLOAT [rows, 1], and the one zero point.

        The zero point must be one constant (MatMulIntegerToFloat takes a scalar), so the range is symmetric, unless a
        floor is known (after GELU: -0.17): then a fixed share of the codes covers it and the rest serves the maximum.
        A row of zeros gets scale 0: its codes mean nothing, and are multiplied by that 0.
        """
        graph = self._graph
        if floor is None:
            zero_point = 128
            largest = graph.op("ReduceMax", graph.op("Abs", x.name), integers(1))
            scales = graph.op("Mul", largest, real(1 / 127))
        else:
            zero_point = 64 if floor < 0 else 0
            largest = graph.op("ReduceMax", x.name, integers(1))
            scales = graph.op("Mul", largest, real(1 / (255 - zero_point)))
            if floor < 0:
                scales = graph.op("Max", scales, real(-floor / zero_point))
        # A row is a block as wide as the matrix: axis 0 would ask for the scales as a vector, and takes longer.
        zero_points = self._zero_point(zero_point, x.rows)
        return graph.op("QuantizeLinear", x.name, scales, zero_points, axis=1, block_size=width), scales, zero_point

    def _zero_point(self, value: int, rows: str) -> str:
        """QuantizeLinear wants a zero point per block [rows, 1]; matrices of as many rows share them."""
        if (rows, value) not in self._zero_points:
            shape = self._graph.op("Concat", rows, integers(1), axis=0)
            self._zero_points[rows, value] = self._graph.op("Expand", np.array([[value]], np.uint8), shape)
        return self._zero_points[rows, value]


def _zero_point(reach: float, floor: float | None) -> int:
    """The code of 0 where values go from ``floor``, or else -``reach``, to ``reach``."""
    return 128 if floor is None else math.ceil(-floor * 255 / (reach - floor))


def quantize_rows(weight: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """INT8 codes in ±``largest`` and FLOAT scales [rows, 1]: codes · scales ≈ weight, each row by its own maximum."""
    scales = np.abs(weight).max(axis=1, keepdims=True) / largest
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.clip(np.rint(weight / scales), -largest, largest).astype(np.int8), scales
