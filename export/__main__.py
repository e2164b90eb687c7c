"""Publish the Champion of the registry, or any fine-tuned checkpoint, as the next version of the model repository.

    python -m export
    python -m export --checkpoint var/checkpoints/nano --repository model_repository --data ratings_test.txt

A checkpoint is a Hugging Face folder of a BertForSequenceClassification or ElectraForSequenceClassification with its
fast tokenizer. Progress goes to stderr; the folder of the version that serves then is the one line on stdout. A
Champion that serves already is not published again.
"""

import argparse
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from export.arguments import at_least
from export.errors import ExportError
from export.quantize import RECIPES
from export.reviews import DEFAULT_ROWS, MIN_ROWS
from export.settings import Settings, read_settings
from training.errors import TrainingError

log = logging.getLogger("export")


def main(arguments: list[str] | None = None) -> int:
    try:
        options = _parser(read_settings()).parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        print(export_champion(options) if options.checkpoint is None else export(options, options.checkpoint))
    except (ExportError, TrainingError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def export_champion(options: argparse.Namespace) -> Path:
    """Publish the Champion, unless it is published already; returns the folder that serves.

    Raises:
        ExportError, TrainingError: there is no Champion, or it cannot be fetched or exported.
    """
    from export.champion import find_champion, find_published, serves
    from export.publish import publish_again

    registry, champion = find_champion()
    published = find_published(options.repository, champion)
    if published and serves(options.repository, published):
        log.info("the Champion, version %d of the registry, serves already", champion.number)
        return published
    if published:
        publish_again(options.repository, published, datetime.now(UTC).replace(microsecond=0))
        log.info("the Champion, version %d of the registry, is version %s and serves again", champion.number,
                 published.name)  # fmt: skip
        return published
    log.info("the Champion is version %d of the registry", champion.number)
    return export(options, registry.fetch(champion))


def export(options: argparse.Namespace, folder_of_checkpoint: Path) -> Path:
    """Read, convert, publish; returns the published folder. Raises ExportError."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # transformers and torch take seconds to import: not before the arguments are known to be good.
    from export import bundle, convert, publish
    from export.checkpoint import read_checkpoint
    from export.manifest import MODEL_FILE, TOKENIZER_FILE

    checkpoint = read_checkpoint(folder_of_checkpoint, options.max_length)
    labels = ", ".join(label.name for label in checkpoint.labels)
    log.info("checkpoint %s: %s, labels %s", folder_of_checkpoint, checkpoint.encoder, labels)
    with publish.open_stage(options.repository, options.version) as stage:
        publish.check_labels(stage, len(checkpoint.labels))
        folder = stage.version_folder
        checkpoint.tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)
        conversion = convert.convert_checkpoint(
            checkpoint, folder / MODEL_FILE, precision=options.precision, data=options.data, rows=options.rows
        )
        now = datetime.now(UTC).replace(microsecond=0)
        manifest = bundle.write_manifest(folder, checkpoint, conversion, stage.version, now)
        published = publish.publish(stage, manifest, now)
    log.info(
        "version %d (%s, %.1f MB) serves", manifest.version, manifest.precision, manifest.files[MODEL_FILE].bytes / 1e6
    )
    return published


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, help="folder that save_pretrained has written (default: the registry's Champion)"
    )
    parser.add_argument(
        "--repository", type=Path, default=settings.repository, help="model repository (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", choices=sorted(RECIPES), default="int8",
        help="int8 falls back to fp32, saying so, when no int8 remedy passes the parity gate (default: %(default)s)",
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
    parser.add_argument(
        "--version", type=at_least(1), metavar="N", help="number to publish as (default: the next free one)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
