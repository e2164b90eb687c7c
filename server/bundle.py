"""Reads what training left on disk: serving.json, config.pbtxt and the manifest of the served version.

Every disagreement between the files is a `CannotStart` with a sentence that names the file.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from google.protobuf import text_format
from pydantic import BaseModel, Field, ValidationError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from server.errors import CannotStart

MODEL = "sentiment"
SCHEMA = 1
INPUTS = ["input_ids", "attention_mask"]
OUTPUT = "logits"
FILES = {"model.onnx", "tokenizer.json"}
REMEDY = "publish the bundle anew with `python -m export`"


class Serving(BaseModel):
    """serving.json: which version answers."""

    model: Literal["sentiment"]
    version: Annotated[int, Field(ge=1)]


class File(BaseModel):
    sha256: str


class GoldenRow(BaseModel):
    """A text whose answer is known.  `probabilities` is the softmax of the logits, in label order."""

    text: str
    input_ids: Annotated[list[int], Field(min_length=1)]
    probabilities: list[float]


class Manifest(BaseModel):
    """manifest.json as far as this room needs it; other rooms read other parts."""

    model: Literal["sentiment"]
    version: int
    max_length: Annotated[int, Field(ge=1)]
    vocab_size: Annotated[int, Field(ge=1)]
    pad_token_id: Annotated[int, Field(ge=0)]
    labels: Annotated[list[dict[str, str]], Field(min_length=2)]
    inputs: list[str]
    output: str
    files: dict[str, File]
    golden_probability_tolerance: Annotated[float, Field(gt=0, lt=1)]
    golden: Annotated[list[GoldenRow], Field(min_length=1)]


@dataclass(frozen=True)
class Bundle:
    """One version that can be served."""

    version: int
    folder: Path
    manifest: Manifest
    max_batch_size: int


def read_served_bundle(repository: Path) -> Bundle:
    """The bundle serving.json names, checked except for the checksums (`check_files`)."""
    if not repository.is_dir():
        raise CannotStart(f"{repository} does not exist; set NUNCHI_MODEL_REPOSITORY to a model repository")
    version = read_served_version(repository)
    config = read_config(repository)
    folder = repository / MODEL / str(version)
    manifest = read_manifest(folder)
    check_agreement(repository, version, config, manifest)
    return Bundle(version, folder, manifest, config.max_batch_size)


def read_served_version(repository: Path) -> int:
    file = repository / "serving.json"
    return _validated(Serving, _read_json(file), file).version


def read_config(repository: Path) -> ModelConfig:
    file = repository / MODEL / "config.pbtxt"
    try:
        return text_format.Parse(_read_text(file), ModelConfig())
    except text_format.ParseError as error:
        raise CannotStart(f"{file} is not a Triton model configuration: {error}; {REMEDY}") from None


def read_manifest(folder: Path) -> Manifest:
    file = folder / "manifest.json"
    document = _read_json(file)
    schema = document.get("schema")
    if schema != SCHEMA:
        raise CannotStart(f"{file} has schema {schema}, this server reads schema {SCHEMA}; {REMEDY}")
    return _validated(Manifest, document, file)


def check_agreement(repository: Path, version: int, config: ModelConfig, manifest: Manifest) -> None:
    """The three files must speak of the same model."""
    file = repository / MODEL / "config.pbtxt"
    if manifest.version != version:
        raise CannotStart(
            f"serving.json names version {version}, the manifest in its folder says {manifest.version}; {REMEDY}"
        )
    versions = list(config.version_policy.specific.versions)
    if versions and version not in versions:
        raise CannotStart(f"serving.json names version {version}, {file} loads only {versions}; {REMEDY}")
    stated = {
        "name": (config.name, MODEL),
        "backend": (config.backend, "onnxruntime"),
        "inputs": ([entry.name for entry in config.input], INPUTS),
        "outputs": ([entry.name for entry in config.output], [OUTPUT]),
        "manifest inputs": (manifest.inputs, INPUTS),
        "manifest output": (manifest.output, OUTPUT),
        "logits": ([list(entry.dims) for entry in config.output], [[len(manifest.labels)]]),
    }
    for what, (found, wanted) in stated.items():
        if found != wanted:
            raise CannotStart(f"{file} and the bundle disagree: {what} is {found}, it must be {wanted}; {REMEDY}")
    if config.max_batch_size < 1:
        raise CannotStart(f"{file} has max_batch_size {config.max_batch_size}, which turns batching off; {REMEDY}")
    for row in manifest.golden:
        if len(row.probabilities) != len(manifest.labels) or not all(
            0 <= token < manifest.vocab_size for token in row.input_ids
        ):
            raise CannotStart(
                f"a golden row of version {version} does not fit its {len(manifest.labels)} labels "
                f"and {manifest.vocab_size} words; {REMEDY}"
            )


def check_files(bundle: Bundle) -> None:
    """The files beside the manifest are the ones it was written for.  Reads all of them (about 1 GB/s)."""
    missing = FILES - set(bundle.manifest.files)
    if missing:
        raise CannotStart(f"{bundle.folder / 'manifest.json'} has no checksum for {', '.join(missing)}; {REMEDY}")
    for name, expected in bundle.manifest.files.items():
        file = bundle.folder / name
        try:
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise CannotStart(f"{file} cannot be read ({error.strerror}); {REMEDY}") from None
        if found != expected.sha256:
            raise CannotStart(
                f"{file} has sha256 {found[:12]}…, its manifest says {expected.sha256[:12]}…; "
                f"restore the file (git checkout, git lfs pull) or {REMEDY}"
            )


def _read_json(file: Path) -> dict:
    try:
        document = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise CannotStart(f"{file} is not JSON ({error}); {REMEDY}") from None
    if not isinstance(document, dict):
        raise CannotStart(f"{file} holds a {type(document).__name__} where an object belongs; {REMEDY}")
    return document


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise CannotStart(f"{file} cannot be read ({error.strerror}); {REMEDY}") from None
    except UnicodeDecodeError as error:
        raise CannotStart(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); {REMEDY}") from None


def _validated(model: type[BaseModel], document: dict, file: Path) -> BaseModel:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CannotStart(f"{file}: {where}: {first['msg'].lower()}; {REMEDY}") from None
