"""Ranges and factors come from real texts; a range says how far they go, factors help where one channel goes far."""

import numpy as np
import pytest
import torch

from export.calibration import calibration, smoothing
from export.checkpoint import read_checkpoint
from export.graph import build_graph
from export.onnx_model import OnnxModel, pad
from export.quantize import Recipe
from tests.export.checkpoints import CONFIGS, UNSIGNED, make_model, save_checkpoint

TEXTS = [[2, *np.random.default_rng(row).integers(4, 40, 3 + row % 20), 3] for row in range(40)]


@pytest.fixture(params=["bert, 2 labels", "electra, projection"])
def outlying(request, tmp_path):
    """A checkpoint one of whose channels reaches 200 times as far as the others, and is hardly read by what follows."""
    model = make_model(CONFIGS[request.param])
    layer = model.base_model.encoder.layer[0]
    with torch.no_grad():
        layer.attention.output.LayerNorm.weight[5] *= 200
        layer.intermediate.dense.weight[:, 5] /= 200
    return read_checkpoint(save_checkpoint(tmp_path / "outlying", model))


def test_each_input_of_a_product_in_the_layers_has_its_factors(outlying):
    factors = smoothing(outlying, TEXTS)
    prefix = f"{outlying.config.model_type}.encoder.layer.1"
    expected = {
        f"{prefix}.{name}.smooth": width
        for name, width in {
            "attention.self": 32, "attention.output.dense": 32, "intermediate.dense": 32, "output.dense": 64
        }.items()
    }  # fmt: skip
    assert {name: len(each) for name, each in factors.items() if name.startswith(prefix)} == expected
    assert len(factors) == 4 * outlying.config.num_hidden_layers
    assert all((each > 0).all() and np.isfinite(each).all() for each in factors.values())
    reached = factors[f"{outlying.config.model_type}.encoder.layer.0.intermediate.dense.smooth"]
    assert reached[5] > 20 * np.median(reached)


NORMALIZED = ("attention.self", "intermediate.dense")
OTHERS = ("attention.output.dense", "output.dense")


def test_what_a_layer_norm_makes_has_a_range_which_is_how_far_it_goes_when_smoothed(outlying):
    found, factors = calibration(outlying, TEXTS), smoothing(outlying, TEXTS)
    prefix, layers = f"{outlying.config.model_type}.encoder.layer", outlying.config.num_hidden_layers
    inputs = [f"{prefix}.{number}.{name}" for number in range(layers) for name in NORMALIZED]
    others = [f"{prefix}.{number}.{name}.range" for number in range(layers) for name in OTHERS]
    assert set(found) == {*(f"{name}.{kind}" for name in inputs for kind in ("smooth", "range")), *others}
    with torch.inference_mode():
        states = [outlying.model(input_ids=torch.tensor([ids]), output_hidden_states=True) for ids in TEXTS]
    for number in range(layers):
        factor = factors[f"{prefix}.{number}.attention.self.smooth"]
        assert np.array_equal(found[f"{prefix}.{number}.attention.self.smooth"], factor)
        farthest = max(np.abs(each.hidden_states[number].numpy() / factor).max() for each in states)
        assert found[f"{prefix}.{number}.attention.self.range"] == pytest.approx(farthest, rel=1e-4)


@torch.inference_mode()
def inputs_of(module: torch.nn.Module, model: torch.nn.Module) -> np.ndarray:
    """FLOAT [tokens of all TEXTS, in]."""
    seen = []
    hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][0].numpy()))
    for ids in TEXTS:
        model(input_ids=torch.tensor([ids]))
    hook.remove()
    return np.concatenate(seen)


def test_other_inputs_have_the_range_of_their_farthest_row_unless_it_is_far_from_the_others(outlying):
    model, prefix = outlying.model, f"{outlying.config.model_type}.encoder.layer.0"
    layer = model.base_model.encoder.layer[0]
    found = calibration(outlying, TEXTS)
    for name, module in zip(OTHERS, (layer.attention.output.dense, layer.output.dense), strict=True):
        assert found[f"{prefix}.{name}.range"] == pytest.approx(np.abs(inputs_of(module, model)).max(), rel=1e-4)
    state = torch.from_numpy(inputs_of(layer.intermediate.dense, model)[7])
    with torch.no_grad():  # one neuron that this token wakes and hardly another does
        layer.intermediate.dense.weight[0] = 10 * state
        layer.intermediate.dense.bias[0] = -9.5 * state @ state
    found = calibration(outlying, TEXTS)
    assert f"{prefix}.attention.output.dense.range" in found
    assert f"{prefix}.output.dense.range" not in found


@pytest.fixture
def distance(outlying, tmp_path):
    """How far the logits of an int8 file with these constants are from torch's, on average."""
    with torch.inference_mode():
        exact = np.concatenate([outlying.model(input_ids=torch.tensor([ids])).logits.numpy() for ids in TEXTS])

    def measured(constants: dict[str, np.ndarray]) -> float:
        file = tmp_path / "model.onnx"
        graph = build_graph(outlying.config, outlying.weights() | constants, Recipe("int8", 8, unsigned=UNSIGNED))
        file.write_bytes(graph.SerializeToString())
        return np.abs(OnnxModel(file).logits(*pad(TEXTS, 0)) - exact).mean()

    return measured


def test_smoothed_int8_is_nearer_to_torch_where_a_channel_reaches_far(distance, outlying):
    assert distance(smoothing(outlying, TEXTS)) < 0.75 * distance({})


def test_ranges_cost_less_than_smoothing_gains_where_a_channel_reaches_far(distance, outlying):
    assert distance(calibration(outlying, TEXTS)) < distance({})
