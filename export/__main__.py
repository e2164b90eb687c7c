"""Release the Champion of the registry, or any fine-tuned checkpoint, as the next version of the model repository.

    python -m export
    python -m export --checkpoint var/checkpoints/nano --repository model_repository --data ratings_test.txt
    python -m export --watch                  follows the Champion of the registry until Ctrl-C

A checkpoint is a Hugging Face folder of a BertForSequenceClassification or ElectraForSequenceClassification with its
fast tokenizer. Progress goes to stderr; the folder of the version that serves then is the one line on stdout. A
Champion that serves already is not published again. Where Triton and the gateway run, the version is loaded and proven
beside the one before, which stays loaded for a soak time after the switch (export/release.py).
"""

import argparse
import logging
import sys
from pathlib import Path

from export.arguments import add_repository, add_soak, at_least
from export.build import add_arguments, build, order, stand_back
from export.errors import ExportError, ReleaseRefused
from export.publish import open_stage
from export.release import Released, release, soak
from export.serving import read_serving, version_folder
from export.settings import Settings, read_settings
from training.errors import TrainingError

log = logging.getLogger("export")


def main(arguments: list[str] | None = None) -> int:
    try:
        settings = read_settings()
        options = _parser(settings).parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        if options.watch:
            from export.watch import watch

            watch(options.repository, settings, order(options), options.soak)
            return 0
        released = _release(options, settings)
        serving = released.serving if released else read_serving(options.repository)
        log.info("version %d serves", serving.version)
        print(version_folder(options.repository, serving.version), flush=True)
        if released and released.live:
            soak(options.repository, settings, serving, options.soak)
    except (ExportError, TrainingError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what served before serves on", file=sys.stderr)
        return 130
    return 0


def _release(options: argparse.Namespace, settings: Settings) -> Released | None:
    """None when the Champion serves already."""
    if options.checkpoint is None:
        from export.champion import find_champion, release_champion

        registry, champion = find_champion()
        if options.champion not in (None, champion.number):
            raise ReleaseRefused(
                f"the registry's Champion is version {champion.number}, and --champion names {options.champion}; "
                "another became it meanwhile: export that one, or promote this one again"
            )
        return release_champion(options.repository, settings, order(options), registry, champion, options.version)
    with open_stage(options.repository, options.version) as stage:
        build(stage, options.checkpoint, order(options))
        return release(stage, settings)


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--checkpoint", type=Path, help="folder that save_pretrained has written (default: the registry's Champion)"
    )
    what.add_argument(
        "--champion",
        type=at_least(1),
        metavar="N",
        help="release the Champion only if it is this version of the registry",
    )
    what.add_argument("--watch", action="store_true", help="release the Champion whenever it changes, until Ctrl-C")
    add_repository(parser, settings)
    add_arguments(parser)
    parser.add_argument(
        "--version", type=at_least(1), metavar="N", help="number to publish as (default: the next free one)"
    )
    add_soak(parser, settings)
    return parser


if __name__ == "__main__":
    stand_back()
    sys.exit(main())
