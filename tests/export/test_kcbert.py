"""KcBERT-base's shape with random weights: 30,000 words, 768 wide, 12 layers.

The true config.json and vocab.txt are taken from ../shared/kcbert-base when they are there (they are not ours to ship);
elsewhere an equal config and a made-up vocabulary of the same size stand in.
"""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from transformers import BertConfig, BertForSequenceClassification

from export.calibration import calibration
from export.golden import SENTENCES
from export.graph import build_graph
from export.onnx_model import OnnxModel, pad, softmax
from export.quantize import FP32, INT8_LADDER

SHARED = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "kcbert-base"
SHAPE = dict(
    vocab_size=30_000,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=300,
)


def kcbert_config(**changes) -> BertConfig:
    shape = json.loads((SHARED / "config.json").read_text()) if SHARED.is_dir() else SHAPE
    assert {name: shape[name] for name in SHAPE} == SHAPE
    return BertConfig(**{**SHAPE, **changes})


def kcbert_tokenizer() -> Tokenizer:
    if SHARED.is_dir():
        return BertWordPieceTokenizer(str(SHARED / "vocab.txt"), lowercase=False, strip_accents=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    syllables = [chr(code) for code in range(ord("가"), ord("힣") + 1)]
    words = [*special, *syllables, *(f"##{syllable}" for syllable in syllables)]
    words += [f"[unused{number}]" for number in range(30_000 - len(words))]
    return BertWordPieceTokenizer(
        {word: index for index, word in enumerate(words)}, lowercase=False, strip_accents=False
    )


def kcbert_model(config: BertConfig) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval()


@pytest.mark.parametrize("recipe", [*INT8_LADDER[:2], FP32], ids=lambda recipe: recipe.remedy)
def test_twelve_layers_answer_like_torch(tmp_path, recipe):
    model, tokenizer = kcbert_model(kcbert_config()), kcbert_tokenizer()
    tokenizer.enable_truncation(300)
    texts = [encoding.ids for encoding in tokenizer.encode_batch([*SENTENCES[:7], SENTENCES[-1]])]
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if recipe.calibrated:
        weights |= calibration(SimpleNamespace(model=model), texts[:4])
    file = tmp_path / "model.onnx"
    file.write_bytes(build_graph(model.config, weights, recipe).SerializeToString(deterministic=True))
    ids, mask = (torch.from_numpy(array) for array in pad(texts, 0))
    with torch.inference_mode():
        expected = softmax(model(input_ids=ids, attention_mask=mask).logits.numpy())
    assert np.ptp(expected[:, 0]) > 0.005, "these texts would not tell a right graph from a wrong one"
    found = OnnxModel(file).probabilities(texts, 0)
    assert np.abs(found - expected).max() < (0.01 if recipe.weight_bits else 1e-5)


def test_two_layers_of_it_are_published(tmp_path, export, repository):
    folder = tmp_path / "kcbert"
    kcbert_model(kcbert_config(num_hidden_layers=2)).save_pretrained(folder)
    kcbert_tokenizer().save(str(folder / "tokenizer.json"))
    started = time.monotonic()
    answer = export("--checkpoint", folder, "--rows", "1000")
    assert answer.status == 0, f"{answer.err} after {time.monotonic() - started:.0f} s"
    manifest = json.loads((repository / "sentiment/1/manifest.json").read_text(encoding="utf-8"))
    assert (manifest["encoder"], manifest["vocab_size"], manifest["max_length"]) == ("bert-2x768", 30_000, 128)
