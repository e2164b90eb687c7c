"""``python -m training.pretrain --data DIR --output DIR``: an encoder of our own, from scratch.

Learns a WordPiece vocabulary from the reviews, then trains a small ELECTRA-shaped encoder on two tasks at once:

* the masked word (15 % of the tokens; Devlin et al. 2019, arXiv:1810.04805), which teaches the language of reviews, and
* the stars of the same masked review (three bands: 1-4, 5-8, 9-10), which is weak supervision that every crawl brings.

The output is a Hugging Face folder, an ``ElectraForSequenceClassification`` over three bands, from which every
fine-tuning starts. ``nano`` is shallow and wide in its vocabulary on purpose: looking an embedding up costs nothing at
serving time, while every layer costs 2 x its parameters per token.

With ``--start FOLDER --embedding-size 128`` an encoder goes on from an earlier one whose embedding table is made
smaller first (`training.shrink`).
"""

import argparse
import functools
import json
import logging
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import (
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.models.electra.modeling_electra import ElectraGeneratorPredictions
from transformers.trainer_utils import get_last_checkpoint

from training.batches import EncodedTexts, pad_batch
from training.config import DatasetConfig
from training.data import STAR_LABELS, fingerprint, open_dataset
from training.encoders import load_classifier
from training.errors import CheckpointError, TrainingError
from training.record import write_record
from training.settings import Settings, read_settings
from training.shrink import shrink_embeddings
from training.vocabulary import SPECIAL_TOKENS, train_tokenizer

log = logging.getLogger(__name__)

IGNORED = -100  # PyTorch's cross entropy leaves this target out


@dataclass(frozen=True)
class Shape:
    """An encoder's shape; the defaults are ``nano``: 10 M parameters, of which 1.6 M are in layers."""

    vocab_size: int = 32_000
    embedding_size: int = 256
    hidden_size: int = 256
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 512
    max_length: int = 128

    def config(self) -> ElectraConfig:
        return ElectraConfig(
            vocab_size=self.vocab_size,
            embedding_size=self.embedding_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_length,
            num_labels=len(STAR_LABELS),
            id2label=dict(enumerate(STAR_LABELS)),
            label2id={label: index for index, label in enumerate(STAR_LABELS)},
            # Masked words are regularization enough for a few epochs, and dropout masks cost a fifth of a CPU step.
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        )


class MaskedStars(nn.Module):
    """The encoder with both heads; ``forward`` gives the summed loss and the stars' logits FP32 [batch, 3]."""

    def __init__(self, classifier: ElectraForSequenceClassification):
        super().__init__()
        self.config = config = classifier.config
        self.classifier = classifier
        self.word_head = ElectraGeneratorPredictions(config)
        self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, input_ids, attention_mask, labels, masked_words):
        hidden = self.classifier.electra(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        stars = self.classifier.classifier(hidden)
        star_loss = nn.functional.cross_entropy(stars.float(), labels)
        # Only the masked positions meet the whole vocabulary: 15 % of the largest product.
        asked = masked_words != IGNORED
        words = nn.functional.linear(
            self.word_head(hidden[asked]), self.classifier.electra.embeddings.word_embeddings.weight, self.word_bias
        )
        word_loss = nn.functional.cross_entropy(words.float(), masked_words[asked])
        return {"loss": star_loss + 0.5 * word_loss, "logits": stars}


def mask_words(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    mask_token_id: int,
    vocab_size: int,
    probability: float = 0.15,
) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT's masking: of the chosen 15 %, 80 % become [MASK], 10 % a random word, 10 % stay.

    Special tokens are never chosen. Returns (masked input_ids, targets with IGNORED elsewhere), INT64 [batch, length].
    """
    words = (input_ids >= len(SPECIAL_TOKENS)) & attention_mask.bool()
    chosen = words & (torch.rand(input_ids.shape) < probability)
    targets = torch.where(chosen, input_ids, IGNORED)
    fate = torch.rand(input_ids.shape)
    masked = torch.where(chosen & (fate < 0.8), mask_token_id, input_ids)
    random_words = torch.randint(len(SPECIAL_TOKENS), vocab_size, input_ids.shape)
    return torch.where(chosen & (fate >= 0.9), random_words, masked), targets


def masked_batch(items, *, tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    batch = pad_batch(items, tokenizer.pad_token_id)
    batch["input_ids"], batch["masked_words"] = mask_words(
        batch["input_ids"],
        batch["attention_mask"],
        mask_token_id=tokenizer.mask_token_id,
        vocab_size=len(tokenizer),
    )
    return batch


def pretrain(
    texts: list[str],
    labels: list[int],
    output: Path,
    *,
    start: Path | Shape,
    embedding_size: int | None = None,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
    half: bool = False,
) -> Path:
    """Learn an encoder, and its vocabulary when it starts from a bare shape; write the folder ``output`` and return it.

    Interrupted, it goes on from the last checkpoint beside it when called again with the same arguments.

    Raises:
        CheckpointError: ``start`` cannot be used, or what was interrupted had other arguments.

    Args:
        half: write the weights in half precision, as shipped encoders are; the default is FP32.
        start: a shape, or an earlier encoder's folder; then `embedding_size` makes its table smaller first.
    """
    work = output.with_name(f"{output.name}.work")
    _refuse_other_work(work, fingerprint(STAR_LABELS, pd.DataFrame({"document": texts, "label": labels})), start,
                       embedding_size, epochs, batch_size, learning_rate, seed)  # fmt: skip
    set_seed(seed)
    if isinstance(start, Shape):
        tokenizer = _vocabulary(texts, start, work / "tokenizer")
        classifier = ElectraForSequenceClassification(start.config())
        encoded = EncodedTexts(tokenizer, texts, labels, start.max_length)
    else:
        classifier, tokenizer = load_classifier(str(start), STAR_LABELS, dropout=0.0)
        encoded = EncodedTexts(tokenizer, texts, labels, classifier.config.max_position_embeddings)
        if embedding_size:
            classifier, kept = shrink_embeddings(
                classifier, embedding_size, _word_counts(encoded, classifier.config.vocab_size)
            )
            log.info("embeddings of %d keep %.1f %% of what the reviews use", embedding_size, 100 * kept)
    model = MaskedStars(classifier)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(work),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=0.03,
            lr_scheduler_type="linear",
            weight_decay=0.01,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            logging_steps=100,
            save_steps=1000,
            save_total_limit=1,
            report_to="none",
            seed=seed,
        ),
        train_dataset=encoded,
        data_collator=functools.partial(masked_batch, tokenizer=tokenizer),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)))
    (model.classifier.half() if half else model.classifier).save_pretrained(output)
    tokenizer.save_pretrained(output)
    shutil.rmtree(work)
    return output


def _refuse_other_work(work: Path, *arguments: object) -> None:
    """Going on with other data, seed or shape would mix two runs into one; the first call notes its own."""
    asked, file = [str(argument) for argument in arguments], work / "arguments.json"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asked), encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != asked:
        raise CheckpointError(
            f"{work} holds an interrupted run with other arguments; repeat those, or delete the folder"
        )


def _vocabulary(texts: list[str], shape: Shape, folder: Path) -> PreTrainedTokenizerFast:
    """Learned once: an interrupted pretraining must go on with the same one."""
    if not folder.is_dir():
        log.info("learning a vocabulary of %s pieces from %s reviews", f"{shape.vocab_size:,}", f"{len(texts):,}")
        train_tokenizer(texts, shape.vocab_size, max_length=shape.max_length).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _word_counts(texts: EncodedTexts, vocab_size: int) -> np.ndarray:
    return np.bincount(torch.cat(texts.rows).numpy(), minlength=vocab_size)


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        settings = read_settings()
        options = _parser(settings).parse_args(argv)
        dataset = open_dataset(DatasetConfig(folder=options.data), cache=settings.var / "data")
        reviews = dataset.star_reviews().head(options.limit or sys.maxsize)
        log.info("%s reviews of %s, fingerprint %s", f"{len(reviews):,}", dataset.name, dataset.fingerprint)
        pretrain(
            reviews.document.tolist(),
            reviews.label.tolist(),
            options.output,
            start=options.start or replace(Shape(), embedding_size=options.embedding_size or Shape.embedding_size),
            embedding_size=options.embedding_size,
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            half=options.half,
        )
        recipe = {name: getattr(options, name) for name in ("epochs", "batch_size", "learning_rate", "seed", "limit")}
        recipe |= {"start": options.start and options.start.name, "embedding_size": options.embedding_size}
        write_record(
            options.output,
            encoder="nano",
            labels=STAR_LABELS,
            max_length=Shape().max_length,
            dataset=dataset,
            recipe=recipe,
        )
    except TrainingError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    log.info("wrote %s", options.output)
    return 0


def _at_least_1(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return int(text)


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.pretrain", description="Train an encoder from scratch.")
    parser.add_argument("--data", type=Path, help="folder with NSMC's files (default: official NSMC, downloaded)")
    parser.add_argument("--output", type=Path, default=settings.var / "checkpoints" / "nano-wide")
    parser.add_argument("--start", type=Path, help="go on from this encoder instead of from nothing")
    parser.add_argument(
        "--embedding-size", type=_at_least_1, help="of a new encoder, or to make that of --start smaller"
    )
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=_at_least_1, default=256, help="reviews per step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--limit", type=_at_least_1, help="read only the first N reviews (for a trial)")
    parser.add_argument("--half", action="store_true", help="write the weights in half precision")
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
