"""A smaller embedding table for an encoder that has learned with a larger one, with little of it forgotten.

An ELECTRA-shaped encoder whose embeddings are as wide as its layers (E = H) becomes one with E < H and a projection
E x H: ``nano`` learns with 32,000 x 256 embeddings and ships with 32,000 x 128. The new table is the old one in the E
directions that matter most, by a singular value decomposition in which a word counts as often as it occurs (Lan et al.
2020, arXiv:1909.11942, factorize from the start; factorizing afterwards keeps what the wide table has learned).

The layer normalization behind the table moves from H to E dimensions and is carried over exactly, truncation apart:

    old   gamma * c / (|c| / sqrt(H)) + beta              c = the centred sum of word, position and type embedding
    new   P @ (a / (|a| / sqrt(E))) + beta                a = Q.T @ c,  P = diag(gamma) @ Q * sqrt(H / E)

Q holds the E directions, rotated so that the mean which the new normalization subtracts is the direction of least
weight.
"""

import numpy as np
import torch
from transformers import ElectraForSequenceClassification

from training.errors import CheckpointError


@torch.no_grad()
def shrink_embeddings(
    model: ElectraForSequenceClassification, size: int, word_counts: np.ndarray
) -> tuple[ElectraForSequenceClassification, float]:
    """The same classifier with embeddings of ``size``, and the share of the embeddings' weighted energy that it keeps.

    Args:
        model: with embedding_size == hidden_size.
        word_counts: INT [vocab_size], how often each word piece occurs in the texts to come.

    Raises:
        CheckpointError: the model has been shrunk before, or ``size`` is not below its embedding size.
    """
    config = model.config
    if config.embedding_size != config.hidden_size:
        raise CheckpointError(
            f"embeddings of {config.embedding_size} in layers of {config.hidden_size} are projected already; "
            "start from an encoder whose embeddings are as wide as its layers"
        )
    if not 0 < size < config.embedding_size:
        raise CheckpointError(f"embedding size {size} is not between 0 and the encoder's {config.embedding_size}")
    small = ElectraForSequenceClassification(type(config)(**{**config.to_dict(), "embedding_size": size}))
    kept = {name: value for name, value in model.state_dict().items() if ".embeddings." not in name}
    small.load_state_dict(kept, strict=False)

    old, new = model.electra.embeddings, small.electra.embeddings
    words = _centred(old.word_embeddings.weight)
    positions, types = _centred(old.position_embeddings.weight), _centred(old.token_type_embeddings.weight)
    # What is decomposed is what the network sees: the word with the type of a first text and an average early position.
    seen = words + types[0] + positions[:32].mean(0)
    directions, kept_energy = _directions(seen, torch.as_tensor(word_counts, dtype=torch.float64), size)
    new.word_embeddings.weight.copy_(words @ directions)
    new.position_embeddings.weight.copy_(positions @ directions)
    new.token_type_embeddings.weight.copy_(types @ directions)
    new.LayerNorm.weight.fill_(1.0)
    new.LayerNorm.bias.zero_()
    project = small.electra.embeddings_project
    project.weight.copy_(old.LayerNorm.weight[:, None] * directions * (config.hidden_size / size) ** 0.5)
    project.bias.copy_(old.LayerNorm.bias)
    return small.train(model.training), kept_energy


def _centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(1, keepdim=True)


def _directions(rows: torch.Tensor, counts: torch.Tensor, size: int) -> tuple[torch.Tensor, float]:
    """FP32 [hidden, size], orthonormal: the principal directions of ``rows``, and the share of energy they hold."""
    weighted = rows.double() * (counts + 1).sqrt()[:, None]
    energy, vectors = torch.linalg.eigh(weighted.T @ weighted)  # ascending
    top = vectors[:, -size:]  # column 0 has the least weight
    # A Householder reflection that maps the first axis onto (1, …, 1)/sqrt(size).
    ones = torch.full((size,), size**-0.5, dtype=torch.float64)
    mirror = ones.clone()
    mirror[0] -= 1.0
    rotation = torch.eye(size, dtype=torch.float64) - 2.0 * torch.outer(mirror, mirror) / mirror.dot(mirror)
    return (top @ rotation).float(), float(energy[-size:].sum() / energy.sum())
