"""The version folder: model.onnx, tokenizer.json and manifest.json, written as one and checked as one."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NotImplemented,
    RuntimeException,
)
from pydantic import ValidationError
from tokenizers import Tokenizer

from export.errors import BundleBroken
from export.golden import golden_rows, largest_shift
from export.manifest import IDS, LOGITS, MANIFEST_FILE, MASK, MODEL_FILE, TOKENIZER_FILE, File, Manifest
from export.onnx_model import OnnxModel

if TYPE_CHECKING:  # they bring torch along, which checking and publishing do without
    from export.checkpoint import Checkpoint
    from export.convert import Conversion

REMEDY = "export the checkpoint again"
CANNOT_RUN = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented, RuntimeException)


def write_manifest(
    folder: Path, checkpoint: "Checkpoint", conversion: "Conversion", version: int, created: datetime
) -> Manifest:
    """Describe the model and the tokenizer that lie in ``folder``; the manifest is written last."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    manifest = Manifest(
        version=version,
        created=created,
        encoder=checkpoint.encoder,
        precision=conversion.precision,
        max_length=checkpoint.max_length,
        vocab_size=tokenizer.get_vocab_size(),
        pad_token_id=checkpoint.pad_token_id,
        labels=list(checkpoint.labels),
        inputs=[IDS, MASK],
        output=LOGITS,
        files={name: describe_file(folder / name) for name in (MODEL_FILE, TOKENIZER_FILE)},
        source=checkpoint.source,
        metrics=checkpoint.metrics,
        parity=conversion.parity,
        reference=conversion.reference,
        golden=golden_rows(tokenizer, OnnxModel(folder / MODEL_FILE), checkpoint.pad_token_id),
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def describe_file(file: Path) -> File:
    with file.open("rb") as stream:
        return File(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), bytes=file.stat().st_size)


def read_manifest(folder: Path) -> Manifest:
    """Raises:
    BundleBroken: it is missing, or not what the contract says.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except OSError as exc:
        raise BundleBroken(f"{exc.filename} cannot be read back ({exc.strerror}); {REMEDY}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleBroken(f"{folder / MANIFEST_FILE}: {where}: {first['msg']}; {REMEDY}") from exc


def verify_bundle(folder: Path) -> Manifest:
    """Read a version back from disk: checksums, tokenizer, model, golden rows.

    Raises:
        BundleBroken: something is missing or is not what the manifest says.
    """
    manifest = read_manifest(folder)
    try:
        found = {name: describe_file(folder / name) for name in manifest.files}
    except OSError as exc:
        raise BundleBroken(f"{exc.filename} cannot be read back ({exc.strerror}); {REMEDY}") from exc
    for name, file in found.items():
        if file != manifest.files[name]:
            raise BundleBroken(f"{folder / name} is not the file its manifest describes (sha256 differs); {REMEDY}")
    _verify_tokenizer(folder / TOKENIZER_FILE, manifest)
    for number, row in enumerate(manifest.golden):
        if len(row.probabilities) != len(manifest.labels):
            raise BundleBroken(
                f"{folder / MANIFEST_FILE} names {len(manifest.labels)} labels and golden row {number} has "
                f"{len(row.probabilities)} probabilities; {REMEDY}"
            )
    try:
        model = OnnxModel(folder / MODEL_FILE)
        answers = model.probabilities([manifest.golden[0].input_ids], manifest.pad_token_id)
        if answers.shape != (1, len(manifest.labels)):
            raise BundleBroken(
                f"{folder / MODEL_FILE} answers with {answers.shape[-1]} logits, its manifest names "
                f"{len(manifest.labels)} labels; {REMEDY}"
            )
        shift = largest_shift(manifest.golden, model, manifest.pad_token_id)
    except CANNOT_RUN as exc:
        reason = str(exc).splitlines()[0][:300]
        raise BundleBroken(f"ONNX Runtime cannot run {folder / MODEL_FILE} ({reason}); {REMEDY}") from exc
    if not shift <= manifest.golden_probability_tolerance:
        raise BundleBroken(
            f"{folder / MODEL_FILE} is off its golden rows by {shift:.4f}, "
            f"{manifest.golden_probability_tolerance} is allowed; {REMEDY}"
        )
    return manifest


def _verify_tokenizer(file: Path, manifest: Manifest) -> None:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as exc:  # the tokenizers library raises nothing more precise
        raise BundleBroken(f"{file} is not a tokenizer ({exc}); {REMEDY}") from exc
    if tokenizer.get_vocab_size() != manifest.vocab_size:
        raise BundleBroken(
            f"{file} has {tokenizer.get_vocab_size()} words, its manifest says {manifest.vocab_size}; {REMEDY}"
        )
    for number, row in enumerate(manifest.golden):
        if tokenizer.encode(row.text).ids != row.input_ids:
            raise BundleBroken(f"{file} gives other ids than golden row {number}; {REMEDY}")
