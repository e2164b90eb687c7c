"""What a few real texts say of the inputs of the large products: what smooths them, and how far they reach then.

Smoothing, as SmoothQuant does it (Xiao et al., 2023), moves what is hard to quantize in an input into the weight. A
channel of the input that reaches far beyond the others costs all of them their precision. So each channel is divided by
a factor and the weight's column multiplied by it, which changes nothing but the rounding.

An input that comes straight out of a LayerNorm can then do with one scale for all tokens: normalized rows are alike,
their largest values too. Its range is the farthest that the smoothed texts reach; a value beyond it is cut off there.

Factors and ranges stand among the weights, under the name of the module whose input they are of, ending in ``smooth``
and ``range``; query, key and value have one input.
"""

import numpy as np
import torch

from export.checkpoint import Checkpoint

ROWS = 128
LEAST = 1e-5  # below it a channel is silent
NORMALIZED = ("attention.self", "intermediate.dense")  # what reads the output of a LayerNorm

Constants = dict[str, np.ndarray]


def smoothing(checkpoint: Checkpoint, encoded: list[list[int]]) -> Constants:
    """Factors FLOAT [in] for the input of each product in the layers.

    ``encoded`` are the token ids of real texts, of which ``ROWS`` are read.
    """
    return {f"{name}.smooth": factor for name, (factor, _) in _factors(checkpoint, encoded).items()}


def calibration(checkpoint: Checkpoint, encoded: list[list[int]]) -> Constants:
    """Factors as of `smoothing` and ranges, FLOAT scalars, for the inputs that a LayerNorm has made."""
    found = {}
    for name, (factor, reach) in _factors(checkpoint, encoded).items():
        if name.endswith(NORMALIZED):
            found[f"{name}.smooth"] = factor
            found[f"{name}.range"] = np.float32(max((reach / factor).max(), LEAST))
    return found


def _factors(checkpoint: Checkpoint, encoded: list[list[int]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each input the factor of each channel, and how far the channel reaches, FLOAT [in] each."""
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, reach in _reach(checkpoint, encoded).items():
        columns = np.abs(checkpoint.model.get_submodule(name).weight.detach().numpy()).max(axis=0)
        group = name.rpartition(".")[0] if ".attention.self." in name else name
        groups.setdefault(group, []).append((reach, columns))
    found = {}
    for name, members in groups.items():
        reach, columns = (np.max(each, axis=0) for each in zip(*members, strict=True))
        factor = np.sqrt(np.maximum(reach, LEAST) / np.maximum(columns, LEAST))
        found[name] = np.where((reach > LEAST) & (columns > LEAST), factor, 1).astype(np.float32), reach
    return found


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
