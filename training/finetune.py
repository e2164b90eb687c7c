"""Fine-tuning: an encoder and reviews in, the folder of one trial out (see `training.search` for its files).

Every epoch is measured on dev and left on disk before the next one begins: its figures, the model if it is the best so
far by macro F1, and all that going on from there needs. A run that is killed loses the epoch it was in, no more. The
test part is never read here.

It runs alone in a process, or in each of several workers under Ray Train; then they share the batches (DDP), and the
first one alone writes.
"""

import functools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from training.batches import EncodedTexts, HiddenWords, LengthGroups, pad_batch
from training.config import TrainConfig, TrainingConfig
from training.data import Dataset
from training.distill import taught
from training.encoders import freeze, load_classifier, parameter_groups, revision_of
from training.errors import CollapsedModel, ConfigRefused
from training.evaluate import Metrics, measure, predict_logits, refuse_collapsed
from training.record import FILE as RECORD
from training.record import encoder_name, write_record
from training.search import CHECKPOINT, DEV_PREDICTIONS, EPOCHS, WORK, append_epoch, duration, read_epochs

log = logging.getLogger(__name__)

WHOLE = "whole"  # marks a checkpoint in the folder WORK that was written to its end; the folder goes with the run

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
EVALUATION_BATCH = 256
PROGRESS_SECONDS = 30


@dataclass(frozen=True)
class Finetuned:
    """The best epoch, as it was written and read again: FP32, in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    dev_metrics: dict
    folder: Path


def finetune(
    config: TrainingConfig,
    dataset: Dataset,
    folder: Path,
    *,
    callbacks: Sequence[Callable[[dict], None]] = (),
    resume: bool = False,
) -> Finetuned:
    """Train on the dataset's train part and choose the best epoch on dev; ``folder`` is the trial's.

    Args:
        callbacks: each is called in every worker with an epoch's figures, once they are on disk.
        resume: go on from the last whole epoch in ``folder``; without one, or without ``resume``, begin anew.

    Raises:
        ConfigRefused: a value does not fit this machine, this encoder or the number of workers.
        DatasetError, CheckpointError: data or encoder cannot be used.
        CollapsedModel: every epoch's model answers one class; there is no checkpoint.
    """
    if resume and _has_ended(folder):
        return _finished(config, dataset, folder)
    workers = _workers()
    _refuse_unfit(config.train, workers)
    disable_progress_bar()  # it counts the files that are written
    set_seed(config.train.seed)
    train, dev = dataset.learning_parts()
    if config.train.teachers:
        train = taught(dataset, config.train.teachers, config.model.max_length)
    model, tokenizer = load_classifier(config.model.encoder, list(dataset.labels), dropout=config.model.dropout)
    freeze(model, config.model.unfrozen_layers)
    if config.train.word_dropout and tokenizer.mask_token_id is None:
        raise ConfigRefused(
            f"train.word_dropout is {config.train.word_dropout}, but {config.model.encoder} has no [MASK] token to "
            "hide words behind; set it to 0"
        )
    start = _resume_point(folder) if resume else None
    if start is None and _first_worker():
        _clear(folder)
    epochs = _settle_epochs(folder, start)
    keeper = EpochKeeper(config, dataset, folder, tokenizer, dev, epochs, callbacks)
    if not keeper.over:
        trainer = _trainer(config, model, tokenizer, train, keeper, workers)
        trainer.train(resume_from_checkpoint=start and str(start))
        trainer.accelerator.wait_for_everyone()  # the first worker may still be writing
    return _finished(config, dataset, folder)


def _trainer(config: TrainingConfig, model, tokenizer, train: pd.DataFrame, keeper: "EpochKeeper", workers: int):
    recipe = config.train
    texts = _encode(train, tokenizer, config.model.max_length)
    groups = parameter_groups(
        model,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
    )
    args = TrainingArguments(
        output_dir=str(keeper.folder / WORK),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size // workers,
        per_device_eval_batch_size=EVALUATION_BATCH,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup,
        lr_scheduler_type=SCHEDULES[recipe.schedule],
        label_smoothing_factor=recipe.label_smoothing,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # a loss that is no number is to be seen
        disable_tqdm=True,
        report_to="none",
        seed=recipe.seed,
    )
    args._n_gpu = min(1, args.n_gpu)  # several GPUs are for several workers; threads in one (DataParallel) are slower
    trainer = GroupedTrainer(
        model=model,
        args=args,
        train_dataset=HiddenWords(texts, tokenizer.mask_token_id, recipe.word_dropout)
        if recipe.word_dropout
        else texts,
        eval_dataset=keeper.dev_texts,
        data_collator=functools.partial(pad_batch, pad_token_id=tokenizer.pad_token_id),
        compute_metrics=_dev_metrics,
        optimizers=(torch.optim.AdamW(groups, lr=recipe.learning_rate), None),
        callbacks=[keeper],
    )
    trainer.sampler = LengthGroups(texts, args.train_batch_size, recipe.seed)
    trainer.remove_callback(PrinterCallback)
    return trainer


class GroupedTrainer(Trainer):
    """The Trainer with our sampler: its own grouping by length draws another order after a resume.

    Where labels are distributions, the loss is the cross entropy against them.
    """

    sampler: LengthGroups

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not inputs["labels"].is_floating_point():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = torch.nn.functional.cross_entropy(outputs.logits.float(), inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset=None) -> LengthGroups:
        return self.sampler


class EpochKeeper(TrainerCallback):
    """Leaves each epoch on disk, says how it went, and ends a run that gets no better.

    ``epochs`` are the figures of those that are whole; `append_epoch` says what they hold.
    """

    def __init__(self, config: TrainingConfig, dataset: Dataset, folder: Path, tokenizer, dev, epochs, callbacks):
        self.config = config
        self.dataset = dataset
        self.folder = folder
        self.tokenizer = tokenizer
        self.dev = dev
        self.dev_texts = _encode(dev, tokenizer, config.model.max_length)
        self.epochs = epochs
        self.callbacks = callbacks
        self.published_f1 = _published_f1(folder, epochs)
        self.began = self.spoke = time.monotonic()

    @property
    def over(self) -> bool:
        """The last epoch has been, or as many as ``early_stopping`` in a row brought no better F1."""
        if not self.epochs:
            return False
        scores = [epoch["dev_f1"] for epoch in self.epochs]
        patience = self.config.train.early_stopping or math.inf
        return len(scores) >= self.config.train.epochs or len(scores) - 1 - scores.index(max(scores)) >= patience

    def on_epoch_begin(self, args, state, control, **_):
        self.began = self.spoke = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        now = time.monotonic()
        if now - self.spoke >= PROGRESS_SECONDS and state.is_world_process_zero:
            self.spoke = now
            share = state.global_step / state.max_steps * args.num_train_epochs - len(self.epochs)
            left = (now - self.began) / max(share, 1e-9) * (args.num_train_epochs - len(self.epochs) - share)
            log.info("epoch %s/%s: %.0f %%, %s left", len(self.epochs) + 1, args.num_train_epochs, 100 * share,
                     duration(left))  # fmt: skip

    def on_save(self, args, state, control, model=None, **_):
        # The order matters to who resumes: the mark comes last, and until then the epoch before is where it goes on.
        figures = self._figures(state)
        if state.is_world_process_zero:
            best = figures["dev_f1"] > self.published_f1 and self._publish(model, figures)
            append_epoch(self.folder, figures)
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / WHOLE).touch()
            for older in Path(args.output_dir).glob("checkpoint-*"):
                if older != checkpoint:
                    shutil.rmtree(older)
            self._say(figures, best)
        self.epochs.append(figures)
        for callback in self.callbacks:
            callback(figures)
        if self.over:
            control.should_training_stop = True

    def _figures(self, state) -> dict:
        dev = next(entry for entry in reversed(state.log_history) if "eval_f1" in entry)
        train = next(entry for entry in reversed(state.log_history) if "loss" in entry)
        return {
            "epoch": len(self.epochs) + 1,
            "train_loss": train["loss"],
            "dev_loss": dev["eval_loss"],
            "dev_f1": dev["eval_f1"],
            "dev_accuracy": dev["eval_accuracy"],
            "learning_rate": train["learning_rate"],
            "seconds": round(time.monotonic() - self.began, 3),
        }

    def _publish(self, model: PreTrainedModel, figures: dict) -> bool:
        """Put this epoch's model in the place of the best one before; not when it has collapsed."""
        part, target = self.folder / f"{CHECKPOINT}.part", self.folder / CHECKPOINT
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        self.tokenizer.save_pretrained(part)
        # What is measured is what was written: the trainer's own copy computes in its precision.
        written, _ = load_classifier(str(part), list(self.dataset.labels))
        logits = predict_logits(written.to(model.device), self.dev_texts, EVALUATION_BATCH)
        labels = self.dev.label.to_numpy()
        try:
            refuse_collapsed(logits.argmax(1), labels)
        except CollapsedModel as exc:
            log.warning("epoch %s: %s", figures["epoch"], exc)
            shutil.rmtree(part)
            return False
        metrics = measure(f"{self.dataset.name} dev", labels, logits.argmax(1), logits.shape[1])
        self._record(part, revision_of(model), figures["epoch"], metrics)
        if target.exists():
            old = self.folder / f"{CHECKPOINT}.old"
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            part.rename(target)
            shutil.rmtree(old)
        else:
            part.rename(target)
        self._write_predictions(logits)
        self.published_f1 = figures["dev_f1"]
        return True

    def _record(self, checkpoint: Path, revision: str | None, epoch: int, metrics: Metrics) -> None:
        write_record(
            checkpoint,
            encoder=encoder_name(self.config.model.encoder),
            labels=list(self.dataset.labels),
            max_length=self.config.model.max_length,
            dataset=self.dataset,
            encoder_revision=revision,
            config=self.config.model_dump(mode="json"),
            epoch=epoch,
            dev_metrics=metrics.as_dict(),
        )

    def _write_predictions(self, logits) -> None:
        probabilities = torch.from_numpy(logits).softmax(1).tolist()
        rows = pd.DataFrame({"text": self.dev.document, "label": self.dev.label, "probabilities": probabilities})
        part = self.folder / f"{DEV_PREDICTIONS}.part"
        rows.to_parquet(part, index=False)
        part.replace(self.folder / DEV_PREDICTIONS)

    def _say(self, figures: dict, best: bool) -> None:
        left = (self.config.train.epochs - figures["epoch"]) * figures["seconds"]
        log.info(
            "epoch %s/%s: dev F1 %.4f%s, accuracy %.4f, loss %.4f on train and %.4f on dev, %s, %s",
            figures["epoch"], self.config.train.epochs, figures["dev_f1"], " (best)" if best else "",
            figures["dev_accuracy"], figures["train_loss"], figures["dev_loss"], duration(figures["seconds"]),
            f"about {duration(left)} left" if left else "the last one",
        )  # fmt: skip


def _refuse_unfit(recipe: TrainConfig, workers: int) -> None:
    if recipe.batch_size % workers:
        raise ConfigRefused(
            f"train.batch_size is {recipe.batch_size}, which {workers} workers (tune.workers_per_trial) cannot share "
            f"evenly; take a multiple of {workers}"
        )
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigRefused(
            "train.precision is fp16, which needs a CUDA GPU, and there is none here; take bf16 or fp32"
        )
    if recipe.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ConfigRefused(
            f"train.precision is bf16, which {torch.cuda.get_device_name()} does not compute in; take fp16 or fp32"
        )


def _workers() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _first_worker() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _encode(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerFast, max_length: int) -> EncodedTexts:
    return EncodedTexts(tokenizer, rows.document.tolist(), rows.label.tolist(), max_length)


def _dev_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions
    metrics = measure("dev", prediction.label_ids, logits.argmax(1), logits.shape[1])
    return {"accuracy": metrics.accuracy, "f1": metrics.f1}


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WORK, CHECKPOINT):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (EPOCHS, DEV_PREDICTIONS):
        (folder / name).unlink(missing_ok=True)


def _has_ended(folder: Path) -> bool:
    return (folder / CHECKPOINT / RECORD).is_file() and not (folder / WORK).exists()


def _resume_point(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [mark.parent for mark in (folder / WORK).glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]), default=None)


def _settle_epochs(folder: Path, start: Path | None) -> list[dict]:
    """The figures of the epochs up to the checkpoint ``start``; later and half-written lines leave the file."""
    if start is None:
        return []
    last = round(json.loads((start / "trainer_state.json").read_text(encoding="utf-8"))["epoch"])
    epochs = [figures for figures in read_epochs(folder) if figures["epoch"] <= last]
    if _first_worker():
        part = folder / f"{EPOCHS}.part"
        part.write_text("".join(json.dumps(figures) + "\n" for figures in epochs), encoding="utf-8")
        part.replace(folder / EPOCHS)
    return epochs


def _published_f1(folder: Path, epochs: list[dict]) -> float:
    """Dev F1 of the epoch in ``checkpoint/``; minus infinity where there is none, or its epoch is to be repeated."""
    record = folder / CHECKPOINT / RECORD
    if not record.is_file():
        return -math.inf
    epoch = json.loads(record.read_text(encoding="utf-8"))["epoch"]
    return next((figures["dev_f1"] for figures in epochs if figures["epoch"] == epoch), -math.inf)


def _finished(config: TrainingConfig, dataset: Dataset, folder: Path) -> Finetuned:
    checkpoint = folder / CHECKPOINT
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # another worker may still be deciding by the files that go now
    if _first_worker():
        shutil.rmtree(folder / WORK, ignore_errors=True)
    if not (checkpoint / RECORD).is_file():
        raise CollapsedModel(
            f"after each of {config.train.epochs} epochs the model answers one class for nearly all dev reviews; "
            "train again with a lower learning rate or a longer warm-up"
        )
    model, tokenizer = load_classifier(str(checkpoint), list(dataset.labels))
    record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    return Finetuned(model.eval(), tokenizer, record["dev_metrics"], folder)
