"""Writes ONNX graphs by hand: one method per thing a graph is made of. Knows nothing of the models written with it."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"
# What ONNX Runtime 1.24 (Triton 26.06) and later read; opset 21 brings QuantizeLinear by block, 20 Gelu, 18 the
# reductions with axes as input.
OPSET, IR_VERSION = 21, 10

Operand = str | np.ndarray


@dataclass(frozen=True)
class Matrix:
    """A value of shape [rows, width]. ``rows`` names the INT64 [1] value that holds the number of its rows."""

    name: str
    rows: str


class GraphBuilder:
    """Collects nodes and weights in the order they are asked for, so equal calls make equal bytes."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._constants: dict[tuple, str] = {}

    def op(self, kind: str, *inputs: Operand | None, domain: str = "", name: str | None = None, **attributes) -> str:
        """Add a node with one output and return the output's name. Arrays become weights, None an absent input."""
        output = name or f"{kind}_{len(self._nodes)}"
        names = ["" if value is None else value if isinstance(value, str) else self.weight(value) for value in inputs]
        while names and not names[-1]:  # an absent input at the end is left out
            names.pop()
        self._nodes.append(helper.make_node(kind, names, [output], name=output, domain=domain, **attributes))
        return output

    def weight(self, array: np.ndarray) -> str:
        """Add a constant and return its name; equal small ones are stored once."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= 1024 else None
        if key is not None and key in self._constants:
            return self._constants[key]
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array, name))
        if key is not None:
            self._constants[key] = name
        return name

    def model(
        self,
        inputs: dict[str, list],
        outputs: dict[str, list],
        *,
        opset: int = OPSET,
        ir_version: int = IR_VERSION,
        contrib: bool = True,
    ) -> onnx.ModelProto:
        """Close the graph. Inputs are INT64, outputs FLOAT; shapes name their dynamic dimensions."""
        graph = helper.make_graph(
            self._nodes,
            "sentiment",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self._weights,
        )
        opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(CONTRIB, 1)] if contrib else [])]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="nunchi")


def integers(*values: int) -> np.ndarray:
    """INT64 [n]: shapes, axes, offsets."""
    return np.array(values, np.int64)


def integer(value: int) -> np.ndarray:
    """INT64 scalar."""
    return np.array(value, np.int64)


def real(value: float) -> np.ndarray:
    """FLOAT scalar."""
    return np.array(value, np.float32)
