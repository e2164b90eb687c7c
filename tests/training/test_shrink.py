"""A smaller embedding table answers like the large one wherever the large one used no more directions than it has."""

import numpy as np
import pytest
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification

from training.errors import CheckpointError
from training.shrink import shrink_embeddings

VOCABULARY, HIDDEN, SIZE = 200, 64, 24
COUNTS = np.arange(VOCABULARY)


def classifier(rank: int) -> ElectraForSequenceClassification:
    """Random, with embeddings that span ``rank`` directions."""
    torch.manual_seed(rank)
    config = ElectraConfig(
        vocab_size=VOCABULARY,
        embedding_size=HIDDEN,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=3,
    )
    model = ElectraForSequenceClassification(config).eval()
    embeddings = model.electra.embeddings
    basis = torch.randn(rank, HIDDEN)
    with torch.no_grad():
        for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
            table.weight.copy_(torch.randn(table.weight.shape[0], rank) @ basis)
        embeddings.LayerNorm.weight.uniform_(0.5, 2.0)
        embeddings.LayerNorm.bias.uniform_(-1.0, 1.0)
    return model


def logits(model) -> torch.Tensor:
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_nothing_is_lost_when_the_embeddings_span_fewer_directions_than_are_kept():
    model = classifier(rank=SIZE - 1)
    small, kept = shrink_embeddings(model, SIZE, COUNTS)
    assert small.electra.embeddings.word_embeddings.weight.shape == (VOCABULARY, SIZE)
    assert kept == pytest.approx(1.0)
    assert torch.allclose(logits(small), logits(model), atol=1e-4)


def test_the_directions_of_frequent_words_are_kept_before_those_of_rare_ones():
    model = classifier(rank=HIDDEN)
    often, rarely = torch.arange(5, 25), torch.arange(100, 120)
    counts = np.ones(VOCABULARY, dtype=int)
    counts[often] = 100_000
    small, kept = shrink_embeddings(model, SIZE, counts)
    assert 0.9 < kept < 1.0
    project, table = small.electra.embeddings_project.weight, small.electra.embeddings.word_embeddings.weight
    normalization = model.electra.embeddings.LayerNorm.weight
    back = (table @ (project / normalization[:, None]).T) / (HIDDEN / SIZE) ** 0.5
    wide = model.electra.embeddings.word_embeddings.weight
    lost = (wide - wide.mean(1, keepdim=True) - back).norm(dim=1)
    assert lost[often].mean() < 0.5 * lost[rarely].mean()


def test_an_encoder_is_shrunk_once_and_only_downwards():
    model = classifier(rank=8)
    small, _ = shrink_embeddings(model, SIZE, COUNTS)
    with pytest.raises(CheckpointError, match="projected already"):
        shrink_embeddings(small, 8, COUNTS)
    with pytest.raises(CheckpointError, match="64"):
        shrink_embeddings(model, HIDDEN, COUNTS)
