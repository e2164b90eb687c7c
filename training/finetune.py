"""``python -m training.finetune --encoder NAME --data DIR --output DIR``: a classifier from an encoder.

The checkpoint is chosen by macro F1 on a dev part cut from train; test is read once, after that, and the figures go
into ``training.json`` beside the weights, from where export carries them into the bundle.
"""

import argparse
import functools
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed

from training.batches import EncodedTexts, HiddenWords, pad_batch
from training.data import Dataset, cut_dev, open_dataset
from training.encoders import load_classifier
from training.errors import TrainingError
from training.evaluate import Metrics, measure, predict_logits, refuse_collapsed
from training.record import encoder_name, write_record
from training.settings import Settings, read_settings

log = logging.getLogger(__name__)

LABELS = ["negative", "positive"]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one run; the defaults are ``nano``'s (KcBERT and its like want a rate of 2e-5 to 5e-5).

    ``evaluations`` is how often per epoch dev is measured and a checkpoint kept.
    """

    epochs: float = 1
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup: float = 0.06  # share of the steps; without it about one run in nine collapses at 5e-5
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    dropout: float = 0.0
    word_dropout: float = 0.15  # share of the tokens hidden behind [MASK]: keeps it from learning reviews by heart
    max_length: int = 128
    dev_share: float = 0.05
    evaluations: int = 3
    seed: int = 1


def finetune(encoder: str, dataset: Dataset, output: Path, recipe: Recipe) -> Metrics:
    """Train, choose on dev, measure on test, write ``output``; returns the test metrics.

    Raises:
        TrainingError: data or encoder cannot be used, or the model collapsed.
    """
    set_seed(recipe.seed)
    train, dev = cut_dev(dataset.train(), recipe.dev_share)
    model, tokenizer = load_classifier(encoder, LABELS, dropout=recipe.dropout)

    def encode(rows) -> EncodedTexts:
        return EncodedTexts(tokenizer, rows.document.tolist(), rows.label.tolist(), recipe.max_length)

    dev_texts = encode(dev)
    steps_per_epoch = -(-len(train) // recipe.batch_size)
    pause = max(1, steps_per_epoch // recipe.evaluations)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output.with_name(f"{output.name}.work")),
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=recipe.batch_size,
            per_device_eval_batch_size=256,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.warmup,
            weight_decay=recipe.weight_decay,
            label_smoothing_factor=recipe.label_smoothing,
            lr_scheduler_type="linear",
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=pause,
            save_steps=pause,
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="f1",
            logging_steps=max(1, pause // 4),
            report_to="none",
            seed=recipe.seed,
        ),
        train_dataset=HiddenWords(encode(train), tokenizer.mask_token_id, recipe.word_dropout),
        eval_dataset=dev_texts,
        data_collator=functools.partial(pad_batch, pad_token_id=tokenizer.pad_token_id),
        compute_metrics=_dev_metrics,
    )
    trainer.train()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)

    # What is measured is what was written: the trainer's copy computes in bfloat16.
    model, tokenizer = load_classifier(str(output), LABELS)
    refuse_collapsed(predict_logits(model, dev_texts).argmax(1), dev.label.to_numpy())
    dev_metrics = _measure(f"{dataset.name} dev", model, dev_texts, dev)
    log.info("%s", dev_metrics)
    test = dataset.test()
    test_metrics = _measure(f"{dataset.name} test", model, encode(test), test)
    log.info("%s", test_metrics)
    write_record(
        output,
        encoder=encoder_name(encoder),
        labels=LABELS,
        max_length=recipe.max_length,
        dataset=dataset,
        recipe=vars(recipe),
        dev_metrics=dev_metrics.as_dict(),
        metrics=test_metrics.as_dict(),
    )
    return test_metrics


def _dev_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions
    metrics = measure("dev", prediction.label_ids, logits.argmax(1), logits.shape[1])
    return {"accuracy": metrics.accuracy, "f1": metrics.f1}


def _measure(name: str, model, texts: EncodedTexts, rows) -> Metrics:
    logits = predict_logits(model, texts)
    return measure(name, rows.label.to_numpy(), logits.argmax(1), logits.shape[1])


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        settings = read_settings()
        options = _parser(settings).parse_args(argv)
        dataset = open_dataset(options.data, name=options.name, cache=settings.var / "data")
        recipe = Recipe(**{field: getattr(options, field) for field in vars(Recipe())})
        finetune(options.encoder, dataset, options.output, recipe)
    except TrainingError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    log.info("wrote %s", options.output)
    return 0


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.finetune", description="Fine-tune an encoder on reviews.")
    pretrained = settings.var / "checkpoints" / "nano-pretrained"
    parser.add_argument("--encoder", default=str(pretrained), help=f"a name, folder or hub id (default: {pretrained})")
    parser.add_argument("--data", type=Path, help="folder with NSMC's files (default: official NSMC, downloaded)")
    parser.add_argument("--name", help="what the figures call the data (default: NSMC, or the folder's name)")
    parser.add_argument("--output", type=Path, default=settings.var / "checkpoints" / "nano")
    for field, value in vars(Recipe()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
