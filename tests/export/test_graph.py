"""The graph against torch: whatever the padding, the answer is that of the text alone."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.calibration import calibration
from export.graph import build_graph
from export.manifest import IDS, LOGITS, MASK
from export.onnx_model import pad
from export.quantize import FP32, Recipe
from tests.export.checkpoints import CONFIGS, UNSIGNED, VOCABULARY, make_model

INT8 = Recipe("int8", 8, unsigned=UNSIGNED)
RECIPES = (
    INT8,
    Recipe("7-bit weights", 7),
    Recipe("unsigned weights", 8, unsigned=True),
    Recipe("calibrated", 8, calibrated=True),
    Recipe("unsigned weights, calibrated", 8, unsigned=True, calibrated=True),
    Recipe("first layer in fp32", 8, float_layers=frozenset([0])),
    FP32,
)
LENGTHS = [3, 17, 2, 40, 9, 1]
WORDS = len(VOCABULARY)


@pytest.fixture(params=CONFIGS, scope="module")
def model(request):
    return make_model(CONFIGS[request.param])


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    source = np.random.default_rng(0)
    return [source.integers(1, WORDS, length).tolist() for length in LENGTHS]


def graph_of(model, recipe=FP32, **changes) -> onnx.ModelProto:
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if recipe.calibrated:
        weights |= calibration(SimpleNamespace(model=model), [[*range(1, 40)], [*range(WORDS - 30, WORDS)]])
    return build_graph(model.config, {**weights, **changes}, recipe)


def load(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def run(session, ids, mask) -> np.ndarray:
    return session.run([LOGITS], {IDS: np.array(ids, np.int64), MASK: np.array(mask, np.int64)})[0]


def torch_alone(model, texts) -> np.ndarray:
    with torch.inference_mode():
        return np.concatenate([model(input_ids=torch.tensor([text])).logits.numpy() for text in texts])


@pytest.mark.parametrize("width", [40, 64])
@pytest.mark.parametrize("pad_left", [False, True])
def test_fp32_equals_torch_on_the_unpadded_text_for_padding_on_either_side(model, texts, width, pad_left):
    expected = torch_alone(model, texts)
    assert np.ptp(expected, axis=0).max() > 0.1, "these texts would not tell a right graph from a wrong one"
    found = run(load(graph_of(model)), *pad(texts, 0, width, pad_left=pad_left))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_fp32_equals_torch_when_rows_are_padded_differently(model, texts):
    left, right = pad(texts, 0, 50, pad_left=True), pad(texts, 0, 50)
    odd = np.arange(len(texts))[:, None] % 2 == 1
    ids, mask = (np.where(odd, first, second) for first, second in zip(left, right, strict=True))
    np.testing.assert_allclose(run(load(graph_of(model)), ids, mask), torch_alone(model, texts), atol=1e-4)


def test_what_lies_in_the_padding_changes_nothing(model, texts):
    session = load(graph_of(model, INT8))
    ids, mask = pad(texts, 0, 48)
    noise = np.where(mask == 0, np.random.default_rng(1).integers(0, WORDS, ids.shape), ids)
    np.testing.assert_array_equal(run(session, noise, mask), run(session, ids, mask))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.remedy)
def test_a_batch_answers_as_its_rows_do_alone(model, texts, recipe):
    session = load(graph_of(model, recipe))
    alone = np.concatenate([run(session, [text], [[1] * len(text)]) for text in texts])
    np.testing.assert_allclose(run(session, *pad(texts, 0, 40)), alone, atol=2e-3 if recipe.weight_bits else 1e-5)


@pytest.mark.parametrize("recipe", [FP32, INT8], ids=lambda recipe: recipe.remedy)
def test_a_row_without_any_token_harms_nobody(model, texts, recipe):
    session = load(graph_of(model, recipe))
    ids, mask = pad(texts, 0, 40)
    for empty in (0, 3, len(texts) - 1):
        emptied = mask.copy()
        emptied[empty] = 0
        found = run(session, ids, emptied)
        assert np.isfinite(found).all()
        others = np.arange(len(texts)) != empty
        np.testing.assert_allclose(found[others], run(session, ids, mask)[others], atol=2e-3)
    assert np.isfinite(run(session, ids, np.zeros_like(mask))).all()


def test_any_value_but_zero_marks_a_token(model, texts):
    session = load(graph_of(model))
    ids, mask = pad(texts, 0, 40)
    np.testing.assert_array_equal(run(session, ids, mask * 7), run(session, ids, mask))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=1, max_size=9),
    st.sampled_from(sorted(CONFIGS)),
)
def test_any_batch_of_shifted_texts_equals_torch(shapes, name):
    model = make_model(CONFIGS[name])
    texts = [[1 + (7 * row + 3 * column) % (WORDS - 1) for column in range(n)] for row, (n, _) in enumerate(shapes)]
    ids, mask = np.zeros((2, len(shapes), 32), np.int64)
    for row, (text, (_, shift)) in enumerate(zip(texts, shapes, strict=True)):
        ids[row, shift : shift + len(text)] = text
        mask[row, shift : shift + len(text)] = 1
    np.testing.assert_allclose(run(load(graph_of(model)), ids, mask), torch_alone(model, texts), atol=1e-4)


def test_products_see_real_tokens_only_and_the_last_layer_first_tokens_only(model, texts):
    graph = graph_of(model)
    gemms = [node.output[0] for node in graph.graph.node if node.op_type == "Gemm"]
    for name in gemms[:-1]:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    ids, mask = pad(texts, 0, 64)
    rows = [len(value) for value in load(graph).run(gemms, {IDS: ids, MASK: mask})]
    tokens, batch = sum(LENGTHS), len(LENGTHS)
    assert set(rows) <= {tokens, batch}
    # The last layer has one product over all tokens (keys and values); query, three dense ones and the head follow.
    full = rows.count(tokens)
    projection = "electra.embeddings_project.weight" in model.state_dict()
    assert full == projection + 4 * (model.config.num_hidden_layers - 1) + 1
    assert rows.count(batch) == 4 + 2


@pytest.mark.parametrize("recipe", [FP32, INT8], ids=lambda recipe: recipe.remedy)
def test_the_file_reads_in_older_runtimes_and_scatters_nothing(model, recipe):
    graph = graph_of(model, recipe)
    assert graph.ir_version <= 10
    assert all(opset.version <= 21 for opset in graph.opset_import)
    assert not [node.op_type for node in graph.graph.node if "Scatter" in node.op_type]
    onnx.checker.check_model(graph)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.remedy)
def test_equal_weights_make_equal_bytes(model, recipe):
    first, second = (graph_of(model, recipe).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_int8_gives_finite_answers_when_a_matrix_is_all_zero(model, texts):
    prefix = model.config.model_type
    for name in ("attention.self.value", "attention.output.dense", "intermediate.dense"):
        weight, bias = (f"{prefix}.encoder.layer.0.{name}.{kind}" for kind in ("weight", "bias"))
        zeros = {weight: 0 * model.state_dict()[weight].numpy(), bias: 0 * model.state_dict()[bias].numpy()}
        found = run(load(graph_of(model, INT8, **zeros)), *pad(texts, 0))
        exact = run(load(graph_of(model, FP32, **zeros)), *pad(texts, 0))
        np.testing.assert_allclose(found, exact, atol=0.5)


def test_narrow_embeddings_are_projected_exactly_whatever_the_recipe():
    model = make_model(CONFIGS["electra, projection"])
    projection = model.state_dict()["electra.embeddings_project.weight"].numpy()
    for recipe in (INT8, FP32):
        weights = [onnx.numpy_helper.to_array(each) for each in graph_of(model, recipe).graph.initializer]
        assert any(each.dtype == np.float32 and np.array_equal(each, projection) for each in weights)
