"""The padded graph of a BERT or ELECTRA classifier for GPUs: fp16 inside, written with what TensorRT can parse.

Same inputs, outputs, heads and meaning as graph.py's, other means: plain operators of opset 17, no contrib operator, no
NonZero or anything else whose shape depends on data, so the whole graph becomes one engine. Padding is computed and
masked; it may be on any side, as there.

fp16 are the words' table, the weights and biases of all products in the layers, and what flows between them. fp32 are
the sums along the residual path, LayerNorm, softmax, and the head, so logits are FP32. The types stand in the graph,
which is what `trtexec --stronglyTyped` and TensorRT 11 go by. 1/√d is part of the query's weights: small scores.

``Recipe`` FP32 writes the same graph without fp16. Layouts in comments: B texts, S tokens, h heads, d head size.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto
from transformers import PretrainedConfig

from export.builder import GraphBuilder, integer, integers, real
from export.graph import Weights, under
from export.manifest import IDS, LOGITS, MASK
from export.onnx_model import pad
from export.quantize import Recipe

OPSET, IR_VERSION = 17, 8
ABSENT = 1e30  # taken from the score of a key that is padding
# Of 65,504. What the rows of the gate reach must leave room for texts that reach further.
LARGEST_HALF = 16_000.0


def build_padded_graph(config: PretrainedConfig, weights: Weights, recipe: Recipe) -> onnx.ModelProto:
    """``weights`` as in the model's state_dict, FLOAT; ``config`` is one that checkpoint.py has let pass."""
    return _PaddedGraph(config, weights, np.float16 if recipe.precision == "fp16" else np.float32).model()


class _PaddedGraph:
    """Values come in pairs along the residual path: FLOAT for sums and LayerNorm, ``self._type`` for products."""

    def __init__(self, config: PretrainedConfig, weights: Weights, kind: type[np.floating]) -> None:
        self._graph = GraphBuilder()
        self._config = config
        self._weights = weights
        self._encoder = under(weights, f"{config.model_type}.")
        self._type = kind
        self._heads = config.num_attention_heads
        self._head_size = config.hidden_size // config.num_attention_heads

    def model(self) -> onnx.ModelProto:
        graph = self._graph
        mask = graph.op("Cast", graph.op("Cast", MASK, to=TensorProto.BOOL), to=TensorProto.FLOAT)  # [B, S]
        counted = graph.op("Sub", graph.op("CumSum", mask, integer(1)), real(1))
        ranks = graph.op("Cast", graph.op("Max", counted, real(0)), to=TensorProto.INT64)
        is_first = graph.op("Cast", graph.op("Equal", ranks, integer(0)), to=TensorProto.FLOAT)
        first = graph.op("Unsqueeze", graph.op("Mul", mask, is_first), integers(1))  # [B, 1, S]: 1 at the first token
        absent = graph.op("Mul", graph.op("Sub", mask, real(1)), real(ABSENT))
        absent = graph.op("Unsqueeze", absent, integers(1, 2))  # [B, 1, 1, S]

        x = self._embed(ranks)
        last = self._config.num_hidden_layers - 1
        for number in range(last + 1):
            layer = under(self._encoder, f"encoder.layer.{number}.")
            asking = x if number < last else graph.op("MatMul", first, x)  # the head reads first tokens only
            x = self._layer(layer, asking, x, absent)
        self._head(graph.op("Squeeze", x, integers(1)))
        return graph.model(
            inputs={IDS: ["batch", "length"], MASK: ["batch", "length"]},
            outputs={LOGITS: ["batch", self._config.num_labels]},
            opset=OPSET,
            ir_version=IR_VERSION,
            contrib=False,
        )

    def _embed(self, ranks: str) -> str:
        """FLOAT [B, S, hidden]."""
        graph, encoder = self._graph, self._encoder
        positions = (
            encoder["embeddings.position_embeddings.weight"] + encoder["embeddings.token_type_embeddings.weight"][0]
        )
        words = graph.op("Gather", encoder["embeddings.word_embeddings.weight"].astype(self._type), IDS)
        total = graph.op("Add", self._wide(words), graph.op("Gather", positions, ranks))
        x = self._normalize(total, under(encoder, "embeddings.LayerNorm."))
        if "embeddings_project.weight" in encoder:
            x = self._wide(self._linear(self._narrow(x), under(encoder, "embeddings_project.")))
        return x

    def _layer(self, weights: Weights, asking: str, x: str, absent: str) -> str:
        """FLOAT [B, rows of ``asking``, hidden]; ``x`` FLOAT [B, S, hidden] is what they attend to."""
        graph = self._graph
        narrow_asking, narrow = self._narrow(asking), self._narrow(x)
        query = self._by_head(
            narrow_asking, under(weights, "attention.self.query."), (0, 2, 1, 3), self._head_size**-0.5
        )
        key = self._by_head(narrow, under(weights, "attention.self.key."), (0, 2, 3, 1))
        value = self._by_head(narrow, under(weights, "attention.self.value."), (0, 2, 1, 3))
        scores = graph.op("Add", self._wide(graph.op("MatMul", query, key)), absent)  # [B, h, rows, S]
        shares = self._narrow(graph.op("Softmax", scores, axis=-1))
        context = graph.op("Transpose", graph.op("MatMul", shares, value), perm=[0, 2, 1, 3])
        context = graph.op("Reshape", context, integers(0, 0, self._heads * self._head_size))
        x = self._add_and_normalize(asking, context, weights, "attention.output")
        inner = self._linear(self._narrow(x), under(weights, "intermediate.dense."))
        return self._add_and_normalize(x, self._activate(inner, self._config.hidden_act), weights, "output")

    def _by_head(self, x: str, weights: Weights, order: tuple[int, ...], scale: float = 1) -> str:
        product = self._linear(x, {name: array * np.float32(scale) for name, array in weights.items()})
        apart = self._graph.op("Reshape", product, integers(0, 0, self._heads, self._head_size))
        return self._graph.op("Transpose", apart, perm=list(order))

    def _add_and_normalize(self, x: str, change: str, weights: Weights, name: str) -> str:
        change = self._wide(self._linear(change, under(weights, f"{name}.dense.")))
        return self._normalize(self._graph.op("Add", change, x), under(weights, f"{name}.LayerNorm."))

    def _linear(self, x: str, weights: Weights) -> str:
        product = self._graph.op("MatMul", x, weights["weight"].T.astype(self._type))
        return self._graph.op("Add", product, weights["bias"].astype(self._type))

    def _normalize(self, x: str, weights: Weights) -> str:
        epsilon = self._config.layer_norm_eps
        return self._graph.op("LayerNormalization", x, weights["weight"], weights["bias"], axis=-1, epsilon=epsilon)

    def _activate(self, x: str, name: str, kind: type[np.floating] | None = None) -> str:
        """GELU from the operators that every exported BERT has, which TensorRT recognizes."""
        graph = self._graph

        def number(value: float) -> np.ndarray:
            return np.array(value, kind or self._type)

        if name == "relu":
            return graph.op("Relu", x)
        if name == "gelu":
            bent = graph.op("Erf", graph.op("Mul", x, number(0.5**0.5)))
        else:  # √(2/π) · (x + 0.044715 x³), in an order in which a large x ends in ±1 and not in a number that is none
            square = graph.op("Mul", graph.op("Mul", x, x), number(0.044715 * (2 / np.pi) ** 0.5))
            bent = graph.op("Tanh", graph.op("Mul", x, graph.op("Add", square, number((2 / np.pi) ** 0.5))))
        return graph.op("Mul", graph.op("Mul", x, number(0.5)), graph.op("Add", bent, number(1)))

    def _head(self, first: str) -> None:
        """``first`` FLOAT [B, hidden]."""
        graph, weights = self._graph, self._weights
        if self._config.model_type == "bert":
            inner, out = under(weights, "bert.pooler.dense."), under(weights, "classifier.")
            x = graph.op("Tanh", graph.op("Gemm", first, inner["weight"], inner["bias"], transB=1))
        else:
            inner, out = under(weights, "classifier.dense."), under(weights, "classifier.out_proj.")
            x = self._activate(graph.op("Gemm", first, inner["weight"], inner["bias"], transB=1), "gelu", np.float32)
        graph.op("Gemm", x, out["weight"], out["bias"], transB=1, name=LOGITS)

    def _narrow(self, x: str) -> str:
        return self._graph.op("Cast", x, to=TensorProto.FLOAT16) if self._type is np.float16 else x

    def _wide(self, x: str) -> str:
        return self._graph.op("Cast", x, to=TensorProto.FLOAT) if self._type is np.float16 else x


def largest_half(file: Path, rows: list[list[int]], pad_token_id: int) -> float:
    """The largest absolute value that any FLOAT16 tensor of the model takes for ``rows``; inf where one overflows.

    ONNX Runtime's CPU has no fp16 products: it computes them in fp32 and may not even round what flows between. So its
    answers show what the rounding of the weights does, and this, whether a value would not fit on a GPU.
    """
    model = onnx.load(file)
    types = {
        each.name: each.type.tensor_type.elem_type for each in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    names = [name for name, kind in types.items() if kind == TensorProto.FLOAT16]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = 0.0
    for row in rows:
        ids, mask = pad([row], pad_token_id)
        for value in session.run(names, {IDS: ids, MASK: mask}):
            largest = max(largest, float(np.abs(value).max()))
    return largest
