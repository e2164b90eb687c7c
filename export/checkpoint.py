"""Reads a fine-tuned checkpoint: a Hugging Face folder with weights, a fast tokenizer, and perhaps `training.json`.

Everything that export needs to know about it is read and cross-checked here, before any work is done.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from export.errors import CheckpointError, UnsupportedModel
from export.graph import ACTIVATIONS
from export.manifest import Label, Metrics, Source
from training.config import KOREAN, POLARITY, STARS

SUPPORTED = ("BertForSequenceClassification", "ElectraForSequenceClassification")
DEFAULT_MAX_LENGTH = 128  # tokens; 95 % of NSMC's reviews have at most 53
USUAL_NAMES = {2: POLARITY, 3: STARS}


class TrainingRecord(BaseModel):
    """What is read of `training.json`; its other figures stay there."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    encoder: str | None = None
    max_length: int | None = None
    dataset: str | None = None
    git_commit: str | None = None
    mlflow_run: str | None = None
    registry_version: str | None = None
    metrics: Metrics | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A classifier ready to be exported. ``model`` is fp32 and in eval mode; ``tokenizer`` truncates and never pads."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    encoder: str
    labels: tuple[Label, ...]
    max_length: int
    pad_token_id: int
    source: Source
    metrics: Metrics | None

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    def weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in self.model.state_dict().items()}


def read_checkpoint(folder: Path, max_length: int | None = None) -> Checkpoint:
    """The checkpoint in ``folder``; ``max_length`` (tokens) overrides what training used.

    Raises:
        CheckpointError: the folder is missing, incomplete or contradicts itself.
        UnsupportedModel: the model is of a kind that graph.py does not write.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json; name a folder that save_pretrained has written")
    config = _read_config(folder)
    check_supported(config)
    record = _read_training_record(folder)
    tokenizer = _read_tokenizer(folder)
    _check_vocabulary(tokenizer, config, folder)
    length = _choose_max_length(folder, config, max_length or record.max_length)
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    return Checkpoint(
        model=_load_model(folder),
        tokenizer=tokenizer,
        encoder=record.encoder or f"{config.model_type}-{config.num_hidden_layers}x{config.hidden_size}",
        labels=_read_labels(config),
        max_length=length,
        pad_token_id=_pad_token_id(tokenizer, config, folder),
        source=Source(
            checkpoint=folder.resolve().name,
            git_commit=record.git_commit,
            dataset=record.dataset,
            mlflow_run=record.mlflow_run,
            registry_version=record.registry_version,
        ),
        metrics=record.metrics,
    )


def check_supported(config: PretrainedConfig) -> None:
    """Raises:
    UnsupportedModel: naming what is asked and what is supported.
    """
    architectures = config.architectures or ["none"]
    if architectures[0] not in SUPPORTED:
        raise UnsupportedModel(
            f"config.json names the architecture {architectures[0]}; export writes {_either(SUPPORTED)}"
        )
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise UnsupportedModel(f"the model has {positions} position embeddings; export writes absolute ones")
    if config.is_decoder or config.add_cross_attention:
        raise UnsupportedModel("the model is a decoder or has cross attention; export writes encoders only")
    if config.hidden_act not in ACTIVATIONS:
        raise UnsupportedModel(f"hidden_act is {config.hidden_act!r}; export writes {_either(tuple(ACTIVATIONS))}")
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise UnsupportedModel(
            f"the model has {config.num_labels} label(s) and problem_type {config.problem_type!r}; "
            "export writes classifiers that choose one of at least two labels"
        )
    if config.hidden_size % config.num_attention_heads:
        raise UnsupportedModel(
            f"hidden_size {config.hidden_size} is no multiple of num_attention_heads {config.num_attention_heads}"
        )


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _read_config(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as exc:
        raise UnsupportedModel(
            f"{folder}/config.json cannot be used ({_first_line(exc)}); export writes {_either(SUPPORTED)}"
        ) from exc


def _read_training_record(folder: Path) -> TrainingRecord:
    """What training.finetune wrote beside the weights; nothing for checkpoints from elsewhere."""
    file = folder / "training.json"
    if not file.is_file():
        return TrainingRecord()
    try:
        return TrainingRecord.model_validate_json(file.read_bytes())
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(
            f"{file}: {where}: {first['msg']}; mend it, or delete it to export without its record"
        ) from exc


def _read_tokenizer(folder: Path) -> Tokenizer:
    """`tokenizer.json` as it lies there, cleaning included; transformers may rebuild one it loads, so it is not asked.

    Only a folder without that file (a `vocab.txt` alone) goes through AutoTokenizer.
    """
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            return Tokenizer.from_file(str(file))
        rebuilt = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return Tokenizer.from_str(rebuilt.backend_tokenizer.to_str())
    except Exception as exc:  # tokenizers raises bare Exceptions for any fault in a file
        raise CheckpointError(
            f"{folder} has no usable fast tokenizer ({_first_line(exc)}); save one with tokenizer.save_pretrained"
        ) from exc


def _check_vocabulary(tokenizer: Tokenizer, config: PretrainedConfig, folder: Path) -> None:
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= config.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {folder} gives ids up to {highest}, the model has {config.vocab_size} embeddings; "
            "use the tokenizer that the model was trained with"
        )
    if len(tokenizer.encode("").ids) < 2:
        raise CheckpointError(
            f"the tokenizer of {folder} adds no [CLS] and [SEP]; give it the post-processor it was trained with"
        )


def _choose_max_length(folder: Path, config: PretrainedConfig, asked: int | None) -> int:
    limit = config.max_position_embeddings
    if asked is None:
        return min(_tokenizer_limit(folder), limit, DEFAULT_MAX_LENGTH)
    if not 3 <= asked <= limit:
        raise CheckpointError(f"max_length is {asked}; the model of {folder} reads 3 to {limit} tokens")
    return asked


def _tokenizer_limit(folder: Path) -> int:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return DEFAULT_MAX_LENGTH
    return int(json.loads(file.read_text(encoding="utf-8")).get("model_max_length", DEFAULT_MAX_LENGTH))


def _pad_token_id(tokenizer: Tokenizer, config: PretrainedConfig, folder: Path) -> int:
    for candidate in (config.pad_token_id, tokenizer.token_to_id("[PAD]")):
        if candidate is not None and 0 <= candidate < tokenizer.get_vocab_size():
            return candidate
    raise CheckpointError(f"{folder} names no padding token; set pad_token_id in config.json")


def _read_labels(config: PretrainedConfig) -> tuple[Label, ...]:
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if names == [f"LABEL_{index}" for index in range(len(names))]:
        names = list(USUAL_NAMES.get(len(names), names))
    if len(set(names)) < len(names):
        raise CheckpointError(
            f"id2label in config.json names a label twice: {', '.join(names)}; give each its own name"
        )
    return tuple(Label(name=name, korean=KOREAN.get(name.lower(), name)) for name in names)


def _load_model(folder: Path) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
        raise CheckpointError(f"the weights of {folder} cannot be loaded: {_first_line(exc)}") from exc
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise CheckpointError(
            f"{folder} lacks the weights of {some}; export a checkpoint that was fine-tuned and saved whole"
        )
    return model.eval()


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]
