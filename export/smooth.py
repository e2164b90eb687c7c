"""Smoothing, as SmoothQuant does it (Xiao et al., 2023): what is hard to quantize in an input moves into the weight.

A channel of the input that reaches far beyond the others costs all of them their precision, since a row has one scale.
So each channel is divided by a factor and the weight's column multiplied by it, which changes nothing but the rounding.
The factors come from how far each channel reaches over a few real texts, and stand among the weights under the name of
the module whose input they divide, ending in ``smooth``.
"""

import numpy as np
import torch

from export.checkpoint import Checkpoint

ROWS = 128
LEAST = 1e-5  # below it a channel is silent


def smoothing(checkpoint: Checkpoint, encoded: list[list[int]]) -> dict[str, np.ndarray]:
    """FLOAT [in] for the input of each product in the layers; query, key and value have one input."""
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, reach in _reach(checkpoint, encoded).items():
        columns = np.abs(checkpoint.model.get_submodule(name).weight.detach().numpy()).max(axis=0)
        group = name.rpartition(".")[0] if ".attention.self." in name else name
        groups.setdefault(group, []).append((reach, columns))
    factors = {}
    for name, members in groups.items():
        reach, columns = (np.max(each, axis=0) for each in zip(*members, strict=True))
        factor = np.sqrt(np.maximum(reach, LEAST) / np.maximum(columns, LEAST))
        factors[f"{name}.smooth"] = np.where((reach > LEAST) & (columns > LEAST), factor, 1).astype(np.float32)
    return factors


@torch.inference_mode()
def _reach(checkpoint: Checkpoint, encoded: list[list[int]]) -> dict[str, np.ndarray]:
    """For each linear module of the layers the largest absolute value of each channel of its input."""
    reach: dict[str, np.ndarray] = {}

    def watch(name: str):
        def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            largest = inputs[0].flatten(0, -2).abs().amax(dim=0).numpy()
            reach[name] = np.maximum(reach.get(name, 0), largest)

        return look

    hooks = [
        module.register_forward_pre_hook(watch(name))
        for name, module in checkpoint.model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".encoder.layer." in name
    ]
    try:
        for ids in encoded[:: max(1, len(encoded) // ROWS)][:ROWS]:
            checkpoint.model(input_ids=torch.tensor([ids]))
    finally:
        for hook in hooks:
            hook.remove()
    return reach
