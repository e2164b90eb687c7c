"""`manifest.json` of a version: what the files are, where they come from, how they were tested (contract: schema 1)."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_serializer

MODEL = "sentiment"
IDS, MASK, LOGITS = "input_ids", "attention_mask", "logits"
MODEL_FILE, TOKENIZER_FILE, MANIFEST_FILE = "model.onnx", "tokenizer.json", "manifest.json"
# How far a probability may lie from a golden row on another machine or release of ONNX Runtime.
GOLDEN_PROBABILITY_TOLERANCE = 0.02

Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Part):
    """``name`` is for programs, ``korean`` for readers."""

    name: Annotated[str, Field(min_length=1)]
    korean: Annotated[str, Field(min_length=1)]


class File(_Part):
    sha256: str
    bytes: int


class Source(_Part):
    checkpoint: str
    git_commit: str | None = None
    dataset: str | None = None
    mlflow_run: str | None = None
    registry_version: str | None = None


class Metrics(BaseModel):
    """On the test part of the dataset the model was trained with. Other figures of training.json stay there."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    rows: int
    accuracy: Share
    f1: Share
    accuracy_interval: tuple[Share, Share]


class Attempt(_Part):
    """One recipe the gate judged, with what was measured against torch on the rows of the gate.

    ``reason`` says why it was refused, or what to know although it was accepted. The figures are absent from versions
    published before there were any, and the shifts where a probability was not finite.
    """

    remedy: str
    accepted: bool
    reason: str | None
    label_agreement: Share | None = None
    accuracy: Share | None = None
    max_probability_shift: Share | None = None
    max_batch_probability_shift: Share | None = None


class Parity(_Part):
    """What the gate measured between the written file and torch; probabilities, not points."""

    rows: int
    label_agreement: Share
    accuracy_reference: Share
    accuracy_exported: Share
    max_probability_shift: Share
    batch_probability_tolerance: Share
    max_batch_probability_shift: Share
    attempts: list[Attempt]
    vnni: bool | None = None  # whether the CPU that measured has VNNI; quantize.py says why that matters


class Bins(_Part):
    """Shares of texts; `edges` are the upper ends of all bins but the last, which has none."""

    edges: list[float]
    shares: list[Share]


class Reference(_Part):
    """What the texts of the parity gate look like to the written files (reference.py); `label` in label order."""

    rows: int
    label: list[Share]
    confidence: Bins
    length: Bins
    unknown: Bins


class GoldenRow(_Part):
    """Token ids as the tokenizer gives them (special tokens, no padding); probabilities in label order."""

    text: str
    input_ids: list[int]
    probabilities: list[Share]


class Manifest(_Part):
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    model: Literal["sentiment"] = MODEL
    version: Annotated[int, Field(ge=1)]
    created: AwareDatetime
    encoder: str
    precision: Literal["int8", "fp16", "fp32"]
    max_length: int
    vocab_size: int
    pad_token_id: int
    labels: list[Label]
    inputs: list[str]
    output: str
    files: dict[str, File]
    source: Source
    metrics: Metrics | None
    parity: Parity
    reference: Reference | None = None  # of versions that were published before there was one
    golden_probability_tolerance: float = GOLDEN_PROBABILITY_TOLERANCE
    golden: list[GoldenRow]

    @field_serializer("created")
    def with_offset(self, created: datetime) -> str:
        return created.isoformat()

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1) + "\n"
