"""The padding-free graph of a BERT or ELECTRA classifier, written from its weights.

Inputs ``input_ids`` and ``attention_mask`` INT64 [batch, length], output ``logits`` FLOAT [batch, labels]: any padding
is fine, on any side, and costs almost nothing. Inside, the T real tokens of all texts lie in one [T, hidden] matrix,
and every product runs over these rows only. Attention alone needs a view per text: the heads of query, key and value
are gathered from the flat matrix into [batch, heads, longest, head size] (which is also the transposition that
attention needs), and one gather brings the result back. No scatter anywhere.

The classifier reads the first token of each text only, so the last layer computes keys and values for all tokens, but
queries, attention output and feed-forward for one row per text.

A token's position is its rank among the real tokens of its text: what Hugging Face gives a text that is unpadded or
padded on the right. Left padding therefore changes nothing here (there it shifts the positions). A text whose mask is
all zero is read as its first column, so that it harms nobody. Token ids are not checked: one outside the vocabulary
fails the run.

Layouts in comments: B texts, S tokens of the longest, T tokens together, h heads, d head size.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto
from transformers import PretrainedConfig

from export.builder import CONTRIB, GraphBuilder, Matrix, integer, integers, real
from export.manifest import IDS, LOGITS, MASK
from export.quantize import FloatProducts, Int8Products, Products, Recipe

ABSENT = -1e30  # added to the score of a key that is padding: exp() of it is 0, and it stays finite
GELU_FLOOR = -0.1701  # just below the minimum of both GELUs, exact (-0.16997) and tanh (-0.17004)

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Activation:
    """An ONNX operator and the least value it can give."""

    op: str
    attributes: dict[str, str]
    floor: float


_GELU = Activation("Gelu", {"approximate": "none"}, GELU_FLOOR)
_GELU_TANH = Activation("Gelu", {"approximate": "tanh"}, GELU_FLOOR)
ACTIVATIONS = {
    "gelu": _GELU,
    "gelu_new": _GELU_TANH,
    "gelu_fast": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "relu": Activation("Relu", {}, 0.0),
}


@dataclass(frozen=True)
class Texts:
    """Names of values that say where the real tokens are."""

    tokens: str  # INT64 [T]: ids
    rows: str  # INT64 [T]: which text
    ranks: str  # INT64 [T]: which token of its text
    first: str  # INT64 [B]: flat index of each text's first token
    lengths: str  # INT64 [B]
    longest: str  # INT64 scalar: S
    token_count: str  # INT64 [1]: T
    text_count: str  # INT64 [1]: B


@dataclass(frozen=True)
class View:
    """Names of the indexes between flat rows and the attention layout; the same in every layer."""

    packed: tuple[str, str, str]  # INT64 [B, h, S] each: query, key, value in [T · 3 · h, d]
    keys_values: tuple[str, str]  # INT64 [B, h, S] each: key, value in [T · 2 · h, d]
    back: str  # INT64 [T, h] in [B · h · S, d]
    absent: str  # FLOAT [B, 1, 1, S]: 0 for a token, ABSENT for padding


def build_graph(config: PretrainedConfig, weights: Weights, recipe: Recipe) -> onnx.ModelProto:
    """``weights`` as in the model's state_dict, FLOAT, and what calibration.py adds where the recipe wants it;
    ``config`` is one that checkpoint.py has let pass."""
    graph = GraphBuilder()
    encoder = under(weights, f"{config.model_type}.")
    exact = FloatProducts(graph)
    usual = exact if recipe.weight_bits is None else Int8Products(graph, recipe.weight_bits, unsigned=recipe.unsigned)

    texts = _find_tokens(graph)
    view = _lay_out(graph, texts, config.num_attention_heads)
    x = _embed(graph, texts, usual, encoder, config)
    last = config.num_hidden_layers - 1
    for number in range(last + 1):
        products = exact if number in recipe.float_layers else usual
        layer = Layer(graph, products, under(encoder, f"encoder.layer.{number}."), config, view)
        x = layer.of_all_tokens(x) if number < last else layer.of_first_tokens(x, texts)
    HEADS[config.model_type](graph, x.name, weights)
    return graph.model(
        inputs={IDS: ["batch", "length"], MASK: ["batch", "length"]},
        outputs={LOGITS: ["batch", config.num_labels]},
    )


def under(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def _find_tokens(graph: GraphBuilder) -> Texts:
    given = graph.op("Cast", MASK, to=TensorProto.BOOL)
    counts = graph.op("ReduceSum", graph.op("Cast", given, to=TensorProto.INT64), integers(1))
    first_column = graph.op("Slice", given, integers(0), integers(1), integers(1))
    others = graph.op("Slice", given, integers(1), integers(2**31 - 1), integers(1))
    first_or_empty = graph.op("Or", first_column, graph.op("Equal", counts, integer(0)))
    mask = graph.op("Concat", first_or_empty, others, axis=1)

    lengths = graph.op("Squeeze", graph.op("Max", counts, integer(1)), integers(1))
    first = graph.op("CumSum", lengths, integer(0), exclusive=1)
    places = graph.op("NonZero", mask)  # [2, T]: text and column of each real token, text by text
    rows = graph.op("Gather", places, integer(0))
    tokens = graph.op("GatherND", IDS, graph.op("Transpose", places, perm=[1, 0]))
    token_count = graph.op("Shape", tokens)
    flat = graph.op("Range", integer(0), graph.op("Squeeze", token_count), integer(1))
    return Texts(
        tokens=tokens,
        rows=rows,
        ranks=graph.op("Sub", flat, graph.op("Gather", first, rows)),
        first=first,
        lengths=lengths,
        longest=graph.op("ReduceMax", lengths, keepdims=0),
        token_count=token_count,
        text_count=graph.op("Shape", lengths),
    )


def _lay_out(graph: GraphBuilder, texts: Texts, heads: int) -> View:
    columns = graph.op("Range", integer(0), texts.longest, integer(1))
    absent = graph.op("GreaterOrEqual", columns, graph.op("Unsqueeze", texts.lengths, integers(1)))  # [B, S]
    bias = graph.op("Where", absent, real(ABSENT), real(0))
    # Behind its end a text sees the tokens of its neighbours, or the last token there is: masked, never read back.
    token = graph.op("Add", graph.op("Unsqueeze", texts.first, integers(1)), columns)
    token = graph.op("Min", token, graph.op("Sub", texts.token_count, integers(1)))
    token = graph.op("Unsqueeze", token, integers(1))  # [B, 1, S]

    def head_indexes(parts: int) -> tuple[str, ...]:
        start = graph.op("Mul", token, integer(parts * heads))
        head = np.arange(parts * heads, dtype=np.int64).reshape(parts, heads, 1)
        return tuple(graph.op("Add", start, part) for part in head)

    text_start = graph.op("Mul", texts.rows, graph.op("Mul", texts.longest, integer(heads)))
    place = graph.op("Unsqueeze", graph.op("Add", text_start, texts.ranks), integers(1))  # [T, 1]
    head_start = graph.op("Mul", texts.longest, np.arange(heads, dtype=np.int64))
    return View(
        packed=head_indexes(3),
        keys_values=head_indexes(2),
        back=graph.op("Add", place, head_start),
        absent=graph.op("Unsqueeze", bias, integers(1, 2)),
    )


def _embed(graph: GraphBuilder, texts: Texts, products: Products, encoder: Weights, config: PretrainedConfig) -> Matrix:
    positions = encoder["embeddings.position_embeddings.weight"] + encoder["embeddings.token_type_embeddings.weight"][0]
    words = products.lookup(encoder["embeddings.word_embeddings.weight"], texts.tokens)
    x = graph.op("Add", words, graph.op("Gather", positions, texts.ranks))
    x = _normalize(graph, x, under(encoder, "embeddings.LayerNorm."), config)
    embedded = Matrix(x, texts.token_count)
    if "embeddings_project.weight" not in encoder:
        return embedded
    # In fp32 whatever the recipe: so narrow a product costs no more than the operators that would quantize its input.
    project = encoder["embeddings_project.weight"], encoder["embeddings_project.bias"]
    return FloatProducts(graph).linear(embedded, *project)


def _normalize(graph: GraphBuilder, x: str, weights: Weights, config: PretrainedConfig) -> str:
    # Not SkipLayerNormalization: on the CPU of ONNX Runtime 1.31 it takes four times as long as Add + this.
    return graph.op("LayerNormalization", x, weights["weight"], weights["bias"], epsilon=config.layer_norm_eps)


class Layer:
    """One transformer layer (post-norm, as BERT and ELECTRA have it)."""

    def __init__(
        self, graph: GraphBuilder, products: Products, weights: Weights, config: PretrainedConfig, view: View
    ) -> None:
        self._graph = graph
        self._products = products
        self._weights = weights
        self._config = config
        self._view = view
        self._activation = ACTIVATIONS[config.hidden_act]
        self._heads = config.num_attention_heads
        self._head_size = config.hidden_size // config.num_attention_heads

    def of_all_tokens(self, x: Matrix) -> Matrix:
        graph = self._graph
        packed = self._by_head(self._project(x, "query", "key", "value"))
        query, key, value = (graph.op("Gather", packed, indexes) for indexes in self._view.packed)
        attended = self._by_head(self._attend(query, key, value))
        context = graph.op("Reshape", graph.op("Gather", attended, self._view.back), self._shape(-1))
        return self._finish(x, context)

    def of_first_tokens(self, x: Matrix, texts: Texts) -> Matrix:
        """As `of_all_tokens`, but the rows of the result are the first tokens of the texts."""
        graph = self._graph
        first = Matrix(graph.op("Gather", x.name, texts.first), texts.text_count)
        query = graph.op("Reshape", self._project(first, "query"), integers(-1, self._heads, 1, self._head_size))
        packed = self._by_head(self._project(x, "key", "value"))
        key, value = (graph.op("Gather", packed, indexes) for indexes in self._view.keys_values)
        context = graph.op("Reshape", self._attend(query, key, value), self._shape(-1))
        return self._finish(first, context)

    def _project(self, x: Matrix, *parts: str) -> str:
        """One product for all ``parts``, side by side."""
        weight, bias = (
            np.concatenate([self._weights[f"attention.self.{part}.{kind}"] for part in parts])
            for kind in ("weight", "bias")
        )
        return self._multiply(x, "attention.self", weight, bias).name

    def _attend(self, query: str, key: str, value: str) -> str:
        """softmax(query · keyᵀ / √d + absent) · value, all [B, h, tokens, d]."""
        graph = self._graph
        scale = self._head_size**-0.5
        scores = graph.op("FusedMatMul", query, key, domain=CONTRIB, transB=1, alpha=scale)
        shares = graph.op("Softmax", graph.op("Add", scores, self._view.absent), axis=-1)
        return graph.op("MatMul", shares, value)

    def _finish(self, x: Matrix, context: str) -> Matrix:
        """Attention output and feed-forward, each added to its input and normalized."""
        x = self._add_and_normalize(
            x, self._linear(Matrix(context, x.rows), "attention.output.dense"), "attention.output"
        )
        inner = self._linear(x, "intermediate.dense")
        inner = Matrix(self._graph.op(self._activation.op, inner.name, **self._activation.attributes), x.rows)
        return self._add_and_normalize(x, self._linear(inner, "output.dense", self._activation.floor), "output")

    def _linear(self, x: Matrix, name: str, floor: float | None = None) -> Matrix:
        weight, bias = (self._weights[f"{name}.{kind}"] for kind in ("weight", "bias"))
        return self._multiply(x, name, weight, bias, floor)

    def _multiply(
        self, x: Matrix, name: str, weight: np.ndarray, bias: np.ndarray, floor: float | None = None
    ) -> Matrix:
        calibrated = (self._weights.get(f"{name}.{kind}") for kind in ("smooth", "range"))
        return self._products.linear(x, weight, bias, floor, *calibrated)

    def _add_and_normalize(self, x: Matrix, change: Matrix, name: str) -> Matrix:
        total = self._graph.op("Add", change.name, x.name)
        return Matrix(_normalize(self._graph, total, under(self._weights, f"{name}.LayerNorm."), self._config), x.rows)

    def _by_head(self, x: str) -> str:
        return self._graph.op("Reshape", x, integers(-1, self._head_size))

    def _shape(self, rows: int) -> np.ndarray:
        return integers(rows, self._heads * self._head_size)


def _bert_head(graph: GraphBuilder, first: str, weights: Weights) -> None:
    pooled = graph.op("Gemm", first, weights["bert.pooler.dense.weight"], weights["bert.pooler.dense.bias"], transB=1)
    pooled = graph.op("Tanh", pooled)
    graph.op("Gemm", pooled, weights["classifier.weight"], weights["classifier.bias"], transB=1, name=LOGITS)


def _electra_head(graph: GraphBuilder, first: str, weights: Weights) -> None:
    inner = graph.op("Gemm", first, weights["classifier.dense.weight"], weights["classifier.dense.bias"], transB=1)
    inner = graph.op(_GELU.op, inner, **_GELU.attributes)
    out = weights["classifier.out_proj.weight"], weights["classifier.out_proj.bias"]
    graph.op("Gemm", inner, *out, transB=1, name=LOGITS)


# The heads stay in fp32 whatever the recipe: B rows cost nothing, and they are what turns a small error into a label.
HEADS = {"bert": _bert_head, "electra": _electra_head}
