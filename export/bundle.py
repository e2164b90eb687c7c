"""The version folder: model.onnx, tokenizer.json and manifest.json, written as one and checked as one."""

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf
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
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    for number, row in enumerate(manifest.golden):
        if tokenizer.encode(row.text).ids != row.input_ids:
            raise BundleBroken(f"{folder / TOKENIZER_FILE} gives other ids than golden row {number}; {REMEDY}")
    try:
        shift = largest_shift(manifest.golden, OnnxModel(folder / MODEL_FILE), manifest.pad_token_id)
    except (Fail, InvalidGraph, InvalidProtobuf) as exc:
        raise BundleBroken(f"ONNX Runtime cannot run {folder / MODEL_FILE} ({exc}); {REMEDY}") from exc
    if not shift <= manifest.golden_probability_tolerance:
        raise BundleBroken(
            f"{folder / MODEL_FILE} is off its golden rows by {shift:.4f}, "
            f"{manifest.golden_probability_tolerance} is allowed; {REMEDY}"
        )
    return manifest


def flush_folder(folder: Path) -> None:
    """Make the folder and its files durable, and readable by the user Triton runs as."""
    for file in sorted(folder.iterdir()):
        file.chmod(0o644)
        flush(file)
    folder.chmod(0o755)
    flush(folder)


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
