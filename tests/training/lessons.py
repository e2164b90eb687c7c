"""Reviews that so small a model can learn in seconds, and the behaviour suite's own sentences among them."""

import random
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification

from training.behaviour import read_cases
from training.vocabulary import train_tokenizer

TELLING = [["별로", "최악", "지루함"], ["명작", "감동", "꿀잼"]]
FILLING = ["이", "영화", "정말", "그냥", "어제", "친구", "봤다", "배우", "음악", "장면", "결말", "오늘", "다시", "극장"]


def sentences(rows: int, seed: int) -> pd.DataFrame:
    """One telling word decides, anywhere in the text: rows INT 0 (negative) and 1 (positive) in turns."""
    chance = random.Random(seed)
    texts = []
    for row in range(rows):
        words = [*chance.choices(FILLING, k=6), chance.choice(TELLING[row % 2])]
        texts.append(" ".join(chance.sample(words, len(words))))
    return pd.DataFrame({"document": texts, "label": [row % 2 for row in range(rows)]})


def misled(rows: pd.DataFrame) -> pd.DataFrame:
    """The same, with 감동 taken for a bad word: who learns from it makes a mistake that a better model does not."""
    return rows.assign(label=rows.label.where(~rows.document.str.contains("감동"), 0))


def behaviour_as_lessons() -> pd.DataFrame:
    """What no real training may do: the suite's own sentences, so that so small a model can pass its gate."""
    lessons = {}
    for case in read_cases():
        lessons.setdefault(case.text, int(case.expected != "negative"))
        if case.other:
            lessons.setdefault(case.other, int(case.expected == "same"))
    return pd.DataFrame({"document": list(lessons), "label": list(lessons.values())})


def write_encoder(folder: Path, texts: Iterable[str]) -> None:
    """An untrained one of one layer x 32, with a vocabulary of these texts."""
    tokenizer = train_tokenizer(texts, 1500, max_length=32)
    torch.manual_seed(0)
    shape = ElectraConfig(
        vocab_size=len(tokenizer), hidden_size=32, embedding_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    ElectraForSequenceClassification(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
