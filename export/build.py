"""From a checkpoint to a staged version folder: read, convert, measured against torch, described."""

import argparse
import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from export.arguments import at_least
from export.publish import Stage, check_labels
from export.reviews import DEFAULT_ROWS, MIN_ROWS

log = logging.getLogger(__name__)

NICENESS = 10  # a tenth of what others get, where they want it


@dataclass(frozen=True)
class Order:
    """How a checkpoint is to be exported; ``data`` is what the parity gate reads, ``max_length`` in tokens."""

    precision: str
    data: Path | None
    rows: int
    max_length: int | None


def add_arguments(parser: argparse.ArgumentParser, precisions: tuple[str, ...] = ("int8", "fp32")) -> None:
    """The options of an `Order`; the first of ``precisions`` is the usual one."""
    parser.add_argument(
        "--precision", choices=precisions, default=precisions[0],
        help="falls back to fp32, saying so, when nothing less passes the parity gate (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path,
        help="labelled reviews for the gate: TSV as NSMC's, CSV or Parquet (default: the bundled ones)",
    )  # fmt: skip
    parser.add_argument(
        "--rows", type=at_least(MIN_ROWS), default=DEFAULT_ROWS, metavar="N",
        help=f"the gate compares on a seeded sample of at most N of them (default: %(default)s, at least {MIN_ROWS})",
    )  # fmt: skip
    parser.add_argument(
        "--max-length", type=at_least(3), metavar="N", help="tokens a text is cut to (default: as trained, else 128)"
    )


def order(options: argparse.Namespace) -> Order:
    return Order(options.precision, options.data, options.rows, options.max_length)


def stand_back() -> None:
    """What serves on this machine comes first: this process, for the rest of its life, takes the time that is left."""
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))


def build(stage: Stage, checkpoint_folder: Path, order: Order) -> None:
    """Write model.onnx, tokenizer.json and manifest.json into the stage.

    Raises:
        ExportError: the checkpoint cannot be exported, or the parity gate stays closed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # transformers and torch take seconds to import: not before the arguments are known to be good.
    from export import bundle, convert
    from export.checkpoint import read_checkpoint
    from export.manifest import MODEL_FILE, TOKENIZER_FILE

    checkpoint = read_checkpoint(checkpoint_folder, order.max_length)
    labels = ", ".join(label.name for label in checkpoint.labels)
    log.info("checkpoint %s: %s, labels %s", checkpoint_folder, checkpoint.encoder, labels)
    check_labels(stage.repository, len(checkpoint.labels))
    folder = stage.version_folder
    # Not Tokenizer.save, whose error on a full disk is like any other.
    (folder / TOKENIZER_FILE).write_text(checkpoint.tokenizer.to_str(pretty=False), encoding="utf-8")
    conversion = convert.convert_checkpoint(
        checkpoint, folder / MODEL_FILE, precision=order.precision, data=order.data, rows=order.rows
    )
    now = datetime.now(UTC).replace(microsecond=0)
    manifest = bundle.write_manifest(folder, checkpoint, conversion, stage.version, now)
    log.info("version %d: %s, %.1f MB", stage.version, manifest.precision, manifest.files[MODEL_FILE].bytes / 1e6)
