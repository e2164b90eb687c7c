"""Publish a fine-tuned checkpoint as the next version of the model repository.

    python -m export --checkpoint var/checkpoints/nano --repository model_repository --data ratings_test.txt

The checkpoint is a Hugging Face folder of a BertForSequenceClassification or ElectraForSequenceClassification with its
fast tokenizer. Progress goes to stderr; the folder of the new version is the one line on stdout.
"""

import argparse
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from export.errors import ExportError
from export.quantize import RECIPES
from export.settings import Settings, read_settings

log = logging.getLogger("export")

DEFAULT_ROWS = 5_000


def main(arguments: list[str] | None = None) -> int:
    try:
        options = _parser(read_settings()).parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        print(export(options))
    except ExportError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def export(options: argparse.Namespace) -> Path:
    """Read, convert, publish; returns the published folder. Raises ExportError."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # transformers and torch take seconds to import: not before the arguments are known to be good.
    from export import bundle, convert, parity, publish
    from export.checkpoint import read_checkpoint
    from export.manifest import MODEL_FILE, TOKENIZER_FILE
    from export.reviews import load_reviews

    checkpoint = read_checkpoint(options.checkpoint, options.max_length)
    log.info(
        "checkpoint %s: %s, labels %s",
        options.checkpoint,
        checkpoint.encoder,
        ", ".join(label.name for label in checkpoint.labels),
    )
    reviews = load_reviews(options.data, checkpoint.labels, options.rows)
    log.info("torch reads %s of the %s reviews of %s", f"{len(reviews.texts):,}", f"{reviews.found:,}", reviews.name)
    with publish.open_stage(options.repository, options.version) as stage:
        publish.check_labels(stage, len(checkpoint.labels))
        folder = stage.version_folder
        checkpoint.tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)
        reference = parity.measure_reference(checkpoint, checkpoint.tokenizer, reviews)
        conversion = convert.convert(checkpoint, reference, options.precision, folder / MODEL_FILE)
        now = datetime.now(UTC).replace(microsecond=0)
        manifest = bundle.write_manifest(folder, checkpoint, conversion, stage.version, now)
        published = publish.publish(stage, manifest, now)
    log.info(
        "version %d (%s, %.1f MB) serves", manifest.version, manifest.precision, manifest.files[MODEL_FILE].bytes / 1e6
    )
    return published


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder that save_pretrained has written")
    parser.add_argument(
        "--repository", type=Path, default=settings.repository, help="model repository (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", choices=sorted(RECIPES), default="int8",
        help="int8 falls back to fp32, saying so, when no int8 remedy passes the parity gate (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, help="labelled reviews in NSMC's format for the gate (default: the bundled ones)"
    )
    parser.add_argument(
        "--rows", type=_at_least(1_000), default=DEFAULT_ROWS, metavar="N",
        help="the gate compares on a seeded sample of at most N of them (default: %(default)s, at least 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--max-length", type=_at_least(3), metavar="N", help="tokens a text is cut to (default: as trained, else 128)"
    )
    parser.add_argument(
        "--version", type=_at_least(1), metavar="N", help="number to publish as (default: the next free one)"
    )
    return parser


def _at_least(least: int):
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
