"""Smoothing: the factors come from real texts, and help where a channel reaches far beyond the others."""

import numpy as np
import pytest
import torch

from export.checkpoint import read_checkpoint
from export.graph import build_graph
from export.onnx_model import OnnxModel, pad
from export.quantize import Recipe
from export.smooth import smoothing
from tests.export.checkpoints import CONFIGS, make_model, save_checkpoint

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


def test_smoothed_int8_is_nearer_to_torch_where_a_channel_reaches_far(outlying, tmp_path):
    with torch.inference_mode():
        exact = np.concatenate([outlying.model(input_ids=torch.tensor([ids])).logits.numpy() for ids in TEXTS])
    weights, distance = outlying.weights(), {}
    for name, given in {"plain": weights, "smoothed": weights | smoothing(outlying, TEXTS)}.items():
        file = tmp_path / f"{name}.onnx"
        file.write_bytes(build_graph(outlying.config, given, Recipe(name, 8)).SerializeToString())
        distance[name] = np.abs(OnnxModel(file).logits(*pad(TEXTS, 0)) - exact).mean()
    assert distance["smoothed"] < 0.75 * distance["plain"]
