"""What the texts look like that a version was measured on, so that a gateway can tell when other ones come (drift).

Of the reviews the parity gate read: the labels and confidences that the written file gave, how long the texts are in
tokens, and which share of their words the tokenizer does not know. The bins travel along; nobody else needs to know
them.
"""

import numpy as np
from tokenizers import Tokenizer

from export.manifest import Bins, Reference

CONFIDENCE_BINS = 10  # of equal width, from that of a guess among the labels to 1
LENGTH_EDGES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # tokens, the special ones included
UNKNOWN_EDGES = (0, 0.02, 0.05, 0.1, 0.2, 0.5)  # share of the tokens that are not special


def describe(encoded: list[list[int]], probabilities: np.ndarray, tokenizer: Tokenizer) -> Reference:
    """The shares of `encoded`, token ids of each text, and of `probabilities` [texts, labels]."""
    rows, labels = probabilities.shape
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
    guess = np.linspace(1 / labels, 1, CONFIDENCE_BINS + 1)[1:-1]
    return Reference(
        rows=rows,
        label=_shares(np.bincount(probabilities.argmax(axis=1), minlength=labels)),
        confidence=_bins([round(float(edge), 6) for edge in guess], probabilities.max(axis=1)),
        length=_bins(LENGTH_EDGES, [len(ids) for ids in encoded]),
        unknown=_bins(UNKNOWN_EDGES, [ids.count(unknown) / max(1, len(ids) - special) for ids in encoded]),
    )


def _bins(edges: list[float] | tuple[float, ...], values: list[float] | np.ndarray) -> Bins:
    """A value that is an edge lies in the bin below it."""
    places = np.searchsorted(edges, values, side="left")
    return Bins(edges=list(edges), shares=_shares(np.bincount(places, minlength=len(edges) + 1)))


def _shares(counts: np.ndarray) -> list[float]:
    return [round(float(count), 6) for count in counts / counts.sum()]
