"""The golden file of raw → normalized → ids, through the gateway's own way of loading the tokenizer that is served.

The training room wrote it; the same rows are tested there.  What it proves here is that cleaning lives in the bundle.
"""

import json

import pytest

from gateway.bundle import load_tokenizers
from gateway.plain import is_plain
from gateway.settings import ROOT

GOLDEN = ROOT / "tests" / "golden_cleaning.json"
DOCUMENT = json.loads(GOLDEN.read_text(encoding="utf-8"))
SERVING = json.loads((ROOT / "model_repository" / "serving.json").read_text(encoding="utf-8"))
SHIPPED = ROOT / "model_repository" / "sentiment" / str(SERVING["version"]) / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizers():
    return load_tokenizers(SHIPPED)


@pytest.mark.parametrize("row", DOCUMENT["rows"], ids=lambda row: row["raw"][:20])
def test_a_raw_text_is_cleaned_and_tokenized_as_in_training(tokenizers, row):
    tokenizer, plain_tokenizer = tokenizers
    assert tokenizer.normalizer.normalize_str(row["raw"]) == row["normalized"]
    assert tokenizer.encode(row["raw"]).ids == row["input_ids"]
    if is_plain(row["raw"]):
        tokenizer = plain_tokenizer
    (batched,) = tokenizer.encode_batch_fast([row["raw"]])  # the way of the hot path
    assert batched.ids == row["input_ids"]
