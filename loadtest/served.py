"""The version that answers, read from the model repository, for those who speak to Triton directly."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Served:
    """``version`` is what ``serving.json`` named when this was read; a release meanwhile is not followed."""

    folder: Path
    model: str
    version: str
    manifest: dict
    tokenizer: Tokenizer
    _encoded: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, repository: Path) -> Self:
        """Raises:
        OSError: a file of the bundle is missing.
        """
        serving = json.loads((repository / "serving.json").read_text(encoding="utf-8"))
        folder = repository / serving["model"] / str(serving["version"])
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        # Padded as the gateway pads: requests of one shape share a batch, and padding costs next to nothing.
        tokenizer.enable_padding(length=manifest["max_length"], pad_id=manifest["pad_token_id"])
        return cls(folder, serving["model"], str(serving["version"]), manifest, tokenizer)

    def encode(self, text: str) -> dict[str, np.ndarray]:
        """``input_ids`` and ``attention_mask``, INT64 [1, max_length]; kept, so that asking again costs nothing."""
        if text not in self._encoded:
            encoding = self.tokenizer.encode(text)
            self._encoded[text] = {
                "input_ids": np.array([encoding.ids], np.int64),
                "attention_mask": np.array([encoding.attention_mask], np.int64),
            }
        return self._encoded[text]

    def mean_tokens(self, texts: list[str]) -> float:
        """Tokens of a text, padding left out."""
        encodings = self.tokenizer.encode_batch(texts)
        return sum(sum(encoding.attention_mask) for encoding in encodings) / len(texts)
