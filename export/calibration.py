"""What a few real texts say of the inputs of the large products: what smooths them, and how far they reach then.

Smoothing, as SmoothQuant does it (Xiao et al., 2023), moves what is hard to quantize in an input into the weight. A
channel of the input that reaches far beyond the others costs all of them their precision. So each channel is divided by
a factor and the weight's column multiplied by it, which changes nothing but the rounding.

An input whose rows are alike can do with one scale for all tokens. What comes straight out of a LayerNorm always can,
once it is smoothed; attention's and the activation's results can where no token's largest value is far from the usual,
which a few tokens of some models are. The range is the farthest that the texts reach; what is beyond it is cut off.

Factors and ranges stand among the weights, under the name of the module whose input they are of, ending in ``smooth``
and ``range``; query, key and value have one input.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from export.checkpoint import Checkpoint

ROWS = 128
LEAST = 1e-5  # below it a channel is silent
NORMALIZED = ("attention.self", "intermediate.dense")  # what reads the output of a LayerNorm
ALIKE = 6.0  # times the median row's largest value, that of the farthest row at most

Constants = dict[str, np.ndarray]


def smoothing(checkpoint: Checkpoint, encoded: list[list[int]]) -> Constants:
    """Factors FLOAT [in] for the input of each product in the layers.

    ``encoded`` are the token ids of real texts, of which ``ROWS`` are read.
    """
    return {f"{name}.smooth": _factor(each) for name, each in _inputs(checkpoint, encoded).items()}


def calibration(checkpoint: Checkpoint, encoded: list[list[int]]) -> Constants:
    """Ranges, FLOAT scalars, of the inputs whose rows are alike, and factors as of `smoothing` of the normalized."""
    found = {}
    for name, each in _inputs(checkpoint, encoded).items():
        if name.endswith(NORMALIZED):
            found[f"{name}.smooth"] = factor = _factor(each)
            found[f"{name}.range"] = np.float32(max((each.reach / factor).max(), LEAST))
        elif (farthest := each.reach.max()) <= ALIKE * np.median(np.concatenate(each.rows)):
            found[f"{name}.range"] = np.float32(max(farthest, LEAST))
    return found


@dataclass
class Input:
    """Of some products of a layer, what the texts make of it."""

    reach: np.ndarray | float = 0.0  # FLOAT [in]: largest absolute value of each channel
    rows: list[np.ndarray] = field(default_factory=list)  # FLOAT [tokens] of each text: largest of each row
    columns: np.ndarray | float = 0.0  # FLOAT [in]: largest of the weights that multiply each channel


def _factor(given: Input) -> np.ndarray:
    reach, columns = given.reach, given.columns
    factor = np.sqrt(np.maximum(reach, LEAST) / np.maximum(columns, LEAST))
    return np.where((reach > LEAST) & (columns > LEAST), factor, 1).astype(np.float32)


@torch.inference_mode()
def _inputs(checkpoint: Checkpoint, encoded: list[list[int]]) -> dict[str, Input]:
    """The inputs of the linear modules of the layers; query, key and value have one."""
    inputs: dict[str, Input] = {}

    def watch(module: torch.nn.Linear, given: Input):
        def look(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            values = arguments[0].flatten(0, -2).abs()
            given.reach = np.maximum(given.reach, values.amax(dim=0).numpy())
            given.rows.append(values.amax(dim=1).numpy())

        given.columns = np.maximum(given.columns, module.weight.abs().amax(dim=0).numpy())
        return module.register_forward_pre_hook(look)

    hooks = [
        watch(module, inputs.setdefault(name.rpartition(".")[0] if ".attention.self." in name else name, Input()))
        for name, module in checkpoint.model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".encoder.layer." in name
    ]
    try:
        for ids in encoded[:: max(1, len(encoded) // ROWS)][:ROWS]:
            checkpoint.model(input_ids=torch.tensor([ids]))
    finally:
        for hook in hooks:
            hook.remove()
    return inputs
