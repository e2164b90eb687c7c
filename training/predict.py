"""What a model reads in a text.

    python -m training.predict [--model MODEL] [--probs] [--json] TEXT …
    … | python -m training.predict [--model MODEL] [--probs] [--json]        a text per line

MODEL is a registry version, the folder of a checkpoint, or of a bundle (model_repository/sentiment/1). Without one:
the registry's Champion, and while there is none, the bundle that is served.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.special import softmax
from tokenizers import Tokenizer

from training.config import KOREAN, POLARITY, STARS
from training.errors import CheckpointError, TrainingError
from training.record import FILE as RECORD
from training.settings import Settings, read_settings

BATCH = 64  # texts
USUAL_LENGTH = 128  # tokens, where a checkpoint has no record; 95 % of NSMC's reviews have at most 53
BUNDLE = ("manifest.json", "model.onnx", "tokenizer.json")


@dataclass(frozen=True)
class Model:
    """``logits`` takes input ids and attention mask, INT64 [batch, length], and gives FP32 [batch, labels]."""

    source: str
    labels: tuple[str, ...]
    korean: tuple[str, ...]
    tokenizer: Tokenizer
    pad_token_id: int
    logits: Callable[[np.ndarray, np.ndarray], np.ndarray]


class SentimentPredictor:
    """Reads texts with one model, loaded when it is made. ``labels`` are names such as "positive", in index order.

    Raises:
        CheckpointError: the folder holds neither a checkpoint nor a bundle, or is damaged.
        RegistryError, TrackingError: the registry has no such version, or cannot be asked.
    """

    def __init__(self, model: str | int | Path | None = None):
        self._model = _load(_find(model))
        self.labels = self._model.labels

    @property
    def source(self) -> str:
        """Where the model came from, for people."""
        return self._model.source

    def predict(self, text: str | Iterable[str], return_probs: bool = False) -> dict | list[dict]:
        """One dict for one text, a list for a list: text, label (긍정, 부정, 중립), confidence, and probs if asked for.

        Raises:
            TypeError: something is no string.
            ValueError: a text is no valid Unicode, empty, or nothing is left of it when it is cleaned.
        """
        texts = [text] if isinstance(text, str) else _as_list(text)
        ids = self._encode(texts)
        special = self._model.tokenizer.num_special_tokens_to_add(is_pair=False)
        for number, (each, tokens) in enumerate(zip(texts, ids, strict=True), 1):
            if len(tokens) <= special:
                cleaned = " once it is cleaned" if each.strip() else ""
                raise ValueError(f"text {number} of {len(texts)} is empty{cleaned}; leave it out")
        rows = self._read(ids).tolist()
        predictions = [self._describe(each, row, return_probs) for each, row in zip(texts, rows, strict=True)]
        return predictions[0] if isinstance(text, str) else predictions

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """FP32 [rows, labels]; a text of which cleaning leaves nothing is read too.

        Raises:
            TypeError: something is no string.
        """
        return self._read(self._encode(texts))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        _refuse_other_types(texts)
        return [encoding.ids for encoding in self._model.tokenizer.encode_batch(texts)]

    def _read(self, ids: list[list[int]]) -> np.ndarray:
        """Batches are cut from texts of like length: padding is work too."""
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        logits = np.empty((len(ids), len(self.labels)), np.float32)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            logits[chosen] = self._model.logits(*_pad([ids[row] for row in chosen], self._model.pad_token_id))
        return softmax(logits, axis=1)

    def _describe(self, text: str, row: list[float], return_probs: bool) -> dict:
        best = int(np.argmax(row))
        prediction = {"text": text, "label": self._model.korean[best], "confidence": row[best]}
        return prediction | ({"probs": dict(zip(self.labels, row, strict=True))} if return_probs else {})


def _find(model: str | int | Path | None) -> Path:
    if not isinstance(model, str | int | Path | None) or isinstance(model, bool) or model == "":
        raise TypeError(f"model is {model!r}; give a version number, a folder, or nothing for the Champion")
    if isinstance(model, int) or (isinstance(model, str) and model.isdecimal() and not Path(model).exists()):
        return _from_registry(int(model), read_settings())
    if model is not None:
        return Path(model)
    settings = read_settings()
    return _from_registry(None, settings) or served_bundle(settings)


def _from_registry(number: int | None, settings: Settings) -> Path | None:
    """The checkpoint of a version; without a number, of the Champion, or None while there is none."""
    from training.registry import Registry  # brings MLflow along, which a folder does without

    registry = Registry(settings)
    version = registry.champion() if number is None else registry.version(number)
    return version and registry.fetch(version)


def served_bundle(settings: Settings) -> Path:
    file = settings.model_repository / "serving.json"
    try:
        serving = json.loads(file.read_text(encoding="utf-8"))
        return file.parent / serving["model"] / str(serving["version"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(
            f"the registry has no Champion, and {file} names no served bundle; train and promote a model, or name one"
        ) from exc


def _load(folder: Path) -> Model:
    if (folder / "manifest.json").is_file():
        return _load_bundle(folder)
    if (folder / "config.json").is_file():
        return _load_checkpoint(folder)
    raise CheckpointError(
        f"{folder} holds neither a checkpoint (config.json) nor a bundle (manifest.json); "
        "name the folder of one, or a version number of the registry"
    )


def _load_checkpoint(folder: Path) -> Model:
    import torch  # five seconds, which a bundle does without

    from training.encoders import load_finetuned

    model, tokenizer = load_finetuned(folder)
    labels = _label_names(model.config)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(_max_length(folder, tokenizer, model.config))
    backend.no_padding()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    @torch.inference_mode()
    def logits(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        ids, mask = (torch.from_numpy(array).to(device) for array in (input_ids, attention_mask))
        return model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()

    korean = tuple(KOREAN.get(label, label) for label in labels)
    return Model(f"checkpoint {folder}", labels, korean, backend, tokenizer.pad_token_id, logits)


def _label_names(config) -> tuple[str, ...]:
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if names == [f"LABEL_{index}" for index in range(len(names))]:  # transformers' own, where nobody named them
        names = {2: POLARITY, 3: STARS}.get(len(names), names)
    return tuple(names)


def _max_length(folder: Path, tokenizer, config) -> int:
    """Tokens: what the model was trained with, or the usual where no record says; never more than it has positions."""
    asked = min(USUAL_LENGTH, tokenizer.model_max_length)
    if (folder / RECORD).is_file():
        try:
            asked = int(json.loads((folder / RECORD).read_text(encoding="utf-8"))["max_length"])
        except (ValueError, KeyError, TypeError) as exc:
            raise CheckpointError(f"{folder / RECORD} is damaged ({exc!r}); mend it, or delete it") from exc
    return min(asked, config.max_position_embeddings)


def _load_bundle(folder: Path) -> Model:
    import onnxruntime

    missing = [name for name in BUNDLE if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}; a bundle is whole or none: export the model again")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        labels = tuple(label["name"] for label in manifest["labels"])
        korean = tuple(label["korean"] for label in manifest["labels"])
        digests = {name: manifest["files"][name]["sha256"] for name in BUNDLE[1:]}
        pad_token_id, max_length = int(manifest["pad_token_id"]), int(manifest["max_length"])
    except (ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{folder}/manifest.json is not what the contract says ({exc!r}); export again") from exc
    for name, digest in digests.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise CheckpointError(f"{folder}/{name} is not the file its manifest describes; export the model again")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def logits(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        (answer,) = session.run(["logits"], {"input_ids": input_ids, "attention_mask": attention_mask})
        return answer

    return Model(f"bundle {folder}", labels, korean, tokenizer, pad_token_id, logits)


def _pad(rows: list[list[int]], pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Input ids and attention mask, INT64 [batch, longest]."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def _as_list(texts: Iterable[str]) -> list:
    try:
        return list(texts)
    except TypeError:
        raise TypeError(f"predict takes a text or a list of texts, not {type(texts).__name__}") from None


def _refuse_other_types(texts: list) -> None:
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise TypeError(f"text {number} of {len(texts)} is {text!r}, a {type(text).__name__}; a text is a string")
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise ValueError(
                f"text {number} of {len(texts)} is no Unicode text ({exc.reason}); decode it anew"
            ) from None


def as_line(prediction: dict, language: str = "ko") -> str:
    """For people: label, confidence, perhaps probs, text; the labels in Korean, or else by their English names."""
    names = KOREAN if language == "ko" else {korean: name for name, korean in KOREAN.items()}
    label = names.get(prediction["label"], prediction["label"])
    probs = "".join(f"  {names.get(name, name)} {share:6.1%}" for name, share in prediction.get("probs", {}).items())
    return f"{label}  {prediction['confidence']:6.1%}{probs}  {prediction['text']}"


def _read_lines() -> Iterator[str]:
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        yield from (line.rstrip("\r\n") for line in sys.stdin)
    except UnicodeDecodeError as exc:
        raise ValueError(f"standard input is not UTF-8 ({exc.reason}); try iconv -f cp949 -t utf-8") from None


def _answer(predictor: SentimentPredictor, texts: Iterator[str], options: argparse.Namespace) -> int:
    """Print a line per text as it can be read; a text that cannot gets a line on stderr. Returns how many could not."""
    refused, number = 0, 0
    while batch := list(islice(texts, BATCH)):
        try:
            predictions = predictor.predict(batch, return_probs=options.probs)
        except ValueError:  # one of them is empty: each by itself
            predictions = []
            for place, text in enumerate(batch, number + 1):
                try:
                    predictions.append(predictor.predict(text, return_probs=options.probs))
                except ValueError as exc:
                    refused += 1
                    print(f"error: {str(exc).replace('text 1 of 1', f'text {place}')}", file=sys.stderr)
        for prediction in predictions:
            print(json.dumps(prediction, ensure_ascii=False) if options.json else as_line(prediction), flush=True)
        number += len(batch)
    return refused


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.predict", description="Read the feeling of texts.")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="without one: a text per line of standard input")
    parser.add_argument("--model", help="registry version, checkpoint folder or bundle folder (default: the Champion)")
    parser.add_argument("--probs", action="store_true", help="every label's probability")
    parser.add_argument("--json", action="store_true", help="a JSON object per line")
    options = parser.parse_args(argv)
    if not options.texts and sys.stdin.isatty():
        parser.error("no text; give some, or pipe them in, one per line")
    try:
        texts = iter(options.texts) if options.texts else _read_lines()
        refused = _answer(SentimentPredictor(options.model), texts, options)
    except (TrainingError, ValueError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
