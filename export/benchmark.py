"""Time model files against each other on texts of natural length: how EXPERIMENTS.md got its figures.

    taskset -c 0,1 python -m export.benchmark --bundle model_repository/sentiment/1 --threads 2 [other.onnx …]

Each file answers the same batches, padded to max_length as the gateway pads them, in turns, so that a noisy neighbour
hits them alike. Printed are milliseconds per text; compare within one run only. Tokenizer and servers are not timed.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from export.bundle import verify_bundle
from export.errors import ExportError
from export.manifest import IDS, LOGITS, MASK, MODEL_FILE, TOKENIZER_FILE, Manifest
from export.onnx_model import pad
from training.data import SAMPLE, read_reviews
from training.errors import TrainingError

BATCH_SIZES = (1, 8, 32)
TEXTS = {1: 40, 8: 160, 32: 320}  # per batch size: enough for the lengths to average out
TURNS = 7
QUANTILE = 0.2  # of the turns of one batch: what the file takes when it is left in peace


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        manifest = verify_bundle(options.bundle)
        texts = read_reviews(options.data or SAMPLE).document.sample(max(TEXTS.values()), random_state=1).tolist()
    except (ExportError, TrainingError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    tokenizer = Tokenizer.from_file(str(options.bundle / TOKENIZER_FILE))
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    files = [options.bundle / MODEL_FILE, *options.others]
    sessions = [_session(file, options.threads) for file in files]
    print(f"{np.mean([len(row) for row in encoded]):.1f} tokens per text, {options.threads} thread(s), ms per text")
    print("  ".join(["batch", *(str(file) for file in files)]))
    for size in BATCH_SIZES:
        times = _times(sessions, _batches(encoded, size, manifest))
        print("  ".join([f"{size:5}", *(f"{each / size * 1000:.3f}" for each in times)]), flush=True)
    return 0


def _session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _batches(encoded: list[list[int]], size: int, manifest: Manifest) -> list[dict[str, np.ndarray]]:
    starts = range(0, TEXTS[size], size)
    rows = [pad(encoded[start : start + size], manifest.pad_token_id, manifest.max_length) for start in starts]
    return [{IDS: ids, MASK: mask} for ids, mask in rows]


def _times(sessions: list[onnxruntime.InferenceSession], batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Seconds per batch, one figure per session."""
    seconds = np.empty((len(sessions), len(batches), TURNS))
    for turn in range(TURNS):
        for place, batch in enumerate(batches):
            for number, session in enumerate(sessions):
                started = time.perf_counter()
                session.run([LOGITS], batch)
                seconds[number, place, turn] = time.perf_counter() - started
    return np.quantile(seconds, QUANTILE, axis=2).mean(axis=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="version folder whose model and tokenizer are used")
    parser.add_argument("--data", type=Path, help="reviews in NSMC's format (default: the bundled ones)")
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime (default: %(default)s)")
    parser.add_argument("others", type=Path, nargs="*", help="more model files with the same inputs and output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
