"""Tiny checkpoints, written in milliseconds by transformers itself, and labelled reviews with words they can learn."""

import itertools
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from export.quantize import has_vnni

transformers_logging.disable_progress_bar()

UNSIGNED = not has_vnni()  # weights of 8 bits must be so where their products would saturate otherwise

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SUBJECTS = ["이 영화", "배우 연기", "감독 연출", "음악", "결말", "대사", "장면", "후속편", "이야기", "주인공"]
SUBJECTS += ["예고편", "자막", "화질", "배송", "포장", "가격", "국물", "직원", "숙소", "새 앱"]
DEGREES = ["정말", "생각보다", "솔직히"]
PRAISE = ["좋다", "최고", "훌륭하다", "감동", "추천", "재미있다", "사랑스럽다", "완벽하다", "만족", "또 본다"]
BLAME = ["별로", "최악", "지루하다", "실망", "아깝다", "엉망", "답답하다", "후회", "짜증", "안 좋다"]
SHRUG = ["보통", "무난하다", "평범하다", "그저 그렇다", "그럭저럭", "쏘쏘", "중간", "애매하다", "반반", "볼 만은 하다"]
VERDICTS = {2: (BLAME, PRAISE), 3: (BLAME, SHRUG, PRAISE)}
VOCABULARY = SPECIAL + sorted(
    {word for phrase in [*SUBJECTS, *DEGREES, *BLAME, *SHRUG, *PRAISE] for word in phrase.split()}
)

_SMALL = dict(
    vocab_size=len(VOCABULARY), hidden_size=32, num_attention_heads=4, intermediate_size=64, max_position_embeddings=40
)
# Every branch of graph.py: both families, with and without projection, 2 and 3 labels, each activation, a single layer.
CONFIGS: dict[str, PretrainedConfig] = {
    "bert, 2 labels": BertConfig(**_SMALL, num_hidden_layers=2),
    "bert, 3 labels, gelu_new": BertConfig(**_SMALL, num_hidden_layers=3, num_labels=3, hidden_act="gelu_new"),
    "bert, one layer": BertConfig(**_SMALL, num_hidden_layers=1),
    "electra, projection": ElectraConfig(**_SMALL, num_hidden_layers=2, embedding_size=16),
    "electra, no projection, 3 labels": ElectraConfig(**_SMALL, num_hidden_layers=2, embedding_size=32, num_labels=3),
    "electra, relu": ElectraConfig(**_SMALL, num_hidden_layers=2, embedding_size=16, hidden_act="relu"),
}


def labelled_reviews(labels: int = 2) -> list[tuple[str, int]]:
    """600 texts per label, of one to three clauses that agree with each other, in a mixed order."""
    rows = []
    for number, (subject, degree, place) in enumerate(itertools.product(SUBJECTS, DEGREES, range(10 * labels))):
        label = place % labels
        verdicts = VERDICTS[labels][label]
        clauses = number // labels % 3
        more = [f"{SUBJECTS[(number + 5 * step) % 20]} {verdicts[(place + step) % 10]}" for step in range(clauses)]
        rows.append((", ".join([f"{subject} {degree} {verdicts[place // labels]}", *more]), label))
    return [rows[index * 7 % len(rows)] for index in range(len(rows))]


def write_reviews(file: Path, rows: list[tuple[str, int]]) -> Path:
    lines = ["id\tdocument\tlabel"] + [f"{number}\t{text}\t{label}" for number, (text, label) in enumerate(rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def make_tokenizer() -> Tokenizer:
    """WordPiece over the words above, with a normalizer of its own that must survive the export."""
    words = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("<br>", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def make_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Random weights, wide enough that different texts get clearly different answers."""
    config.initializer_range = 0.3
    torch.manual_seed(seed)
    kind = {"bert": BertForSequenceClassification, "electra": ElectraForSequenceClassification}[config.model_type]
    model = kind(config).eval()
    for name, parameter in model.named_parameters():  # transformers starts these at 0 and 1, which would hide a mix-up
        if name.endswith("bias") or "LayerNorm" in name:
            torch.nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.2)
    return model


def save_checkpoint(folder: Path, model: PreTrainedModel, tokenizer: Tokenizer | None = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save(str(folder / "tokenizer.json"))
    return folder


def train_classifier(rows: list[tuple[str, int]], config: PretrainedConfig, steps: int = 80) -> PreTrainedModel:
    """A model that has learned ``rows``: a second or two on one thread."""
    config.initializer_range = 0.05
    torch.manual_seed(1)
    model = {"bert": BertForSequenceClassification, "electra": ElectraForSequenceClassification}[config.model_type](
        config
    )
    tokenizer = make_tokenizer()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch([text for text, _ in rows])
    ids = torch.tensor([encoding.ids for encoding in encoded])
    mask = torch.tensor([encoding.attention_mask for encoding in encoded])
    labels = torch.tensor([label for _, label in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = slice(step * 64 % len(rows), step * 64 % len(rows) + 64)
        logits = model(input_ids=ids[batch], attention_mask=mask[batch]).logits
        # Smoothed, so that the model stays unsure enough to show it when its graph is damaged.
        torch.nn.functional.cross_entropy(logits, labels[batch], label_smoothing=0.2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
