"""Versions by which a switch can be told: each has a tokenizer, a model and answers of its own.

Both kinds keep one list of golden texts, so that a stream of requests can be judged whichever version answers.
"""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from tokenizers import Tokenizer

from export.build import stand_back
from export.bundle import describe_file
from export.golden import golden_rows
from export.onnx_model import OnnxModel
from export.publish import Stage, open_stage
from export.release import Released, release
from export.settings import Settings
from export.triton_config import build_config, to_text
from tests.bundles import set_serving, write_bundle, write_json
from tests.stack_process import ROOT, Stack

SHIPPED = ROOT / "model_repository"
DIALECTS = 6  # as many versions in a row are told apart
SHIFT = 0.5  # of the two logits, apart: more than any tolerance, except where a text is beyond doubt


def tiny_version(stage: Stage) -> None:
    """Of tests/bundles.py."""
    bundle = write_bundle(stage.folder / "tiny", stage.version, dialect=stage.version % DIALECTS)
    shutil.copytree(bundle, stage.version_folder, dirs_exist_ok=True)


def shipped_version(stage: Stage) -> None:
    write_variant(stage.version_folder, stage.version)


KINDS: dict[str, Callable[[Stage], None]] = {"tiny": tiny_version, "shipped": shipped_version}


def first_repository(folder: Path, kind: str) -> Path:
    """A repository with one version of this kind, which serves."""
    return two_versions(folder, only=1) if kind == "shipped" else write_bundle(folder, 1, dialect=1).parent.parent


def release_next(stack: Stack, kind: str) -> Released:
    """The next version, released by the real promoter into the running stack; it stands back as the command does."""

    def promote() -> Released:
        stand_back()  # on Linux only the thread that says so
        with open_stage(stack.repository) as stage:
            KINDS[kind](stage)
            return release(stage, promoter_settings(stack))

    with ThreadPoolExecutor(1) as own_thread:
        return own_thread.submit(promote).result()


def promoter_settings(stack: Stack) -> Settings:
    """What `python -m export` reads from the environment of the stack."""
    return Settings(
        model_repository=str(stack.repository),
        var=stack.var,
        triton_grpc_port=stack.ports["TRITON_GRPC_PORT"],
        gateway_port=stack.ports["GATEWAY_PORT"],
    )


def two_versions(repository: Path, only: int | None = None) -> Path:
    """A repository with versions 1 and 2 of the shipped model, both loaded; 1 serves, and 2 served before."""
    versions = [1, 2] if only is None else [only]
    for version in versions:
        folder = repository / "sentiment" / str(version)
        folder.mkdir(parents=True)
        write_variant(folder, version)
    config = to_text(build_config(2, versions))
    (repository / "sentiment" / "config.pbtxt").write_text(config, encoding="utf-8")
    set_serving(repository, versions[0], previous=None if only else 2)
    return repository


def write_variant(folder: Path, version: int) -> None:
    """The shipped version under another number: it ends each text with more marks, leans to one of the labels, has the
    golden rows and checksums that go with that, and comes from no registry, so that a rollback need not look there."""
    dialect = 1 + version % DIALECTS
    serving = json.loads((SHIPPED / "serving.json").read_text(encoding="utf-8"))
    source = SHIPPED / "sentiment" / str(serving["version"])
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    _lean(source / "model.onnx", folder / "model.onnx", SHIFT * dialect * (-1) ** version)
    _end_with_more_marks(source / "tokenizer.json", folder / "tokenizer.json", dialect)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = golden_rows(tokenizer, OnnxModel(folder / "model.onnx"), manifest["pad_token_id"])
    manifest |= {
        "version": version,
        "source": {"checkpoint": f"the shipped model, dialect {dialect}"},
        "files": {name: describe_file(folder / name).model_dump() for name in manifest["files"]},
        "golden": [row.model_dump() for row in rows],
    }
    write_json(folder / "manifest.json", manifest)


def _lean(source: Path, target: Path, shift: float) -> None:
    model = onnx.load(source)
    name = model.graph.node[-1].input[2]  # the bias of the last layer
    (bias,) = (each for each in model.graph.initializer if each.name == name)
    leaning = numpy_helper.to_array(bias) + np.array([shift, -shift], np.float32)
    bias.CopyFrom(numpy_helper.from_array(leaning.astype(np.float32), name))
    onnx.save(model, target)


def _end_with_more_marks(source: Path, target: Path, count: int) -> None:
    tokenizer = json.loads(source.read_text(encoding="utf-8"))
    mark = {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    tokenizer["post_processor"]["single"] += [mark] * count
    write_json(target, tokenizer)
