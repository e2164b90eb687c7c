"""What a checkpoint would take when served: exported as `python -m export` would, then timed, and nothing is published.

    python -m export.latency --checkpoint var/registry/3 --against model_repository/sentiment/1

Its model file and the one of the rival answer the same texts in turns, each by its own tokenizer. Progress goes to
stderr; stdout gets one line of JSON: milliseconds_per_text by batch size, bytes of the model file, precision, what the
parity gate measured, and the same of the rival under "against" (null without one), as far as it is known of it.
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

from export.arguments import at_least
from export.errors import ExportError
from training.errors import TrainingError

log = logging.getLogger("export.latency")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        answer = measure(options.checkpoint, options.against, options.threads)
    except (ExportError, TrainingError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    print(json.dumps(answer))
    return 0


def measure(checkpoint_folder: Path, against: Path | None, threads: int) -> dict:
    """The JSON of this command as a dictionary.

    Raises:
        ExportError: the checkpoint cannot be exported, or ``against`` is no whole bundle.
    """
    # transformers and torch take seconds to import: not before the arguments are known to be good.
    from export.checkpoint import read_checkpoint
    from export.convert import convert_checkpoint
    from export.manifest import MODEL_FILE
    from export.timing import Contender, milliseconds_per_text, texts_of_natural_length

    rivals = [Contender.of_bundle(against)] if against else []
    checkpoint = read_checkpoint(checkpoint_folder)
    with tempfile.TemporaryDirectory(prefix="nunchi-latency-") as folder:
        file = Path(folder) / MODEL_FILE
        conversion = convert_checkpoint(checkpoint, file)
        exported = Contender(file, checkpoint.tokenizer, checkpoint.max_length, checkpoint.pad_token_id)
        log.info("timing on %d thread(s)%s", threads, f", in turns with {against}" if against else "")
        figures = milliseconds_per_text([exported, *rivals], texts_of_natural_length(), threads)
        own, *theirs = (
            {
                "milliseconds_per_text": {size: round(milliseconds, 4) for size, milliseconds in figure.items()},
                "bytes": contender.file.stat().st_size,
            }
            for contender, figure in zip([exported, *rivals], figures, strict=True)
        )
    parity = conversion.parity.model_dump(mode="json")
    return {**own, "precision": conversion.precision, "parity": parity, "against": theirs[0] if theirs else None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.latency", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder that save_pretrained has written")
    parser.add_argument(
        "--against", type=Path, help="version folder to time in turns with it, e.g. the one that serves"
    )
    parser.add_argument("--threads", type=at_least(1), default=2, help="of ONNX Runtime (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
