"""Time model files against each other on texts of natural length: how EXPERIMENTS.md got its figures.

    taskset -c 0,1 python -m export.benchmark --bundle model_repository/sentiment/1 --threads 2 [other.onnx …]

All files read the tokens of the bundle. Printed are milliseconds per text; compare within one run only.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from export.arguments import at_least
from export.errors import ExportError
from export.timing import BATCH_SIZES, Contender, milliseconds_per_text, texts_of_natural_length
from training.errors import TrainingError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        first = Contender.of_bundle(options.bundle)
        texts = texts_of_natural_length(options.data)
    except (ExportError, TrainingError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    contenders = [first, *(dataclasses.replace(first, file=file) for file in options.others)]
    tokens = sum(len(encoding.ids) for encoding in first.tokenizer.encode_batch(texts)) / len(texts)
    print(f"{tokens:.1f} tokens per text, {options.threads} thread(s), ms per text")
    print("  ".join(["batch", *(str(contender.file) for contender in contenders)]))
    figures = milliseconds_per_text(contenders, texts, options.threads)
    for size in BATCH_SIZES:
        print("  ".join([f"{size:5}", *(f"{figure[size]:.3f}" for figure in figures)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="version folder whose model and tokenizer are used")
    parser.add_argument("--data", type=Path, help="reviews in NSMC's format (default: the bundled ones)")
    parser.add_argument("--threads", type=at_least(1), default=2, help="of ONNX Runtime (default: %(default)s)")
    parser.add_argument("others", type=Path, nargs="*", help="more model files with the same inputs and output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
