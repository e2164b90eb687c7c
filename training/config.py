"""The one YAML of a training run: dataset, model, train and tune.

    python -m training.config --schema                  the JSON schema
    python -m training.config --config FILE [--train.learning_rate 3e-5 …]   what a run would use

Every value has a default, an unknown key is refused, and each value can be set on the command line by its path.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

POLARITY = ["negative", "positive"]
STARS = ["negative", "neutral", "positive"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetConfig(Section):
    """Which reviews, and how they are cut."""

    kind: Literal["nsmc", "collected", "sample", "files"] = Field(
        "nsmc", description="nsmc: NSMC's files; collected: Parquet of training.collection; sample: the bundled reviews"
    )
    name: str | None = Field(None, description="what the figures call the data; default: NSMC, or the folder's name")
    folder: Path | None = Field(None, description="nsmc, collected: where the files lie; nsmc without one: downloaded")
    train: Path | None = Field(None, description="files: a .tsv, .csv or .parquet, .gz included")
    test: Path | None = Field(None, description="files: likewise; without one, test is cut from train")
    text_column: str = "document"
    label_column: str = "label"
    labels: list[str] = Field(POLARITY, description="in index order; three: cut by stars, where there are any")
    encoding: str = Field("utf-8", description="of TSV and CSV files, e.g. cp949")
    dataset_sampling_rate: float = Field(1.0, gt=0, le=1, description="share of train that is used, stratified")
    dev_share: float = Field(0.05, gt=0, lt=0.5, description="share of train that chooses checkpoints")
    test_share: float = Field(0.2, gt=0, lt=0.5, description="share that becomes test where no test file is named")
    max_megabytes: int = Field(2048, gt=0, description="a larger file is refused: reviews are held in memory")


class ModelConfig(Section):
    """Which encoder, and how much of it learns."""

    encoder: str = Field("nano", description="nano, kcbert-base, kcbert-large, kcelectra-base, a folder or a hub id")
    max_length: int = Field(128, ge=8, le=512, description="tokens a text is cut to")
    unfrozen_layers: int | None = Field(
        None,
        ge=0,
        description="top layers that learn beside the head; embeddings and the rest stay; null: all learn",
    )
    dropout: float = Field(0.0, ge=0, lt=1)


class TrainConfig(Section):
    """How it learns. The defaults are nano's; KcBERT and its like want a learning rate of 2e-5 to 5e-5."""

    learning_rate: float = Field(2e-4, gt=0, le=0.1)
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps; without it some runs collapse")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(0.01, ge=0, le=1)
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate per layer downwards")
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    word_dropout: float = Field(0.15, ge=0, lt=1, description="share of the tokens hidden behind [MASK]")
    epochs: int = Field(2, ge=1, le=1000)
    batch_size: int = Field(128, ge=1, le=65536, description="reviews per step, all workers of a trial together")
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    seed: int = Field(1, ge=0)
    early_stopping: int | None = Field(None, ge=1, description="epochs without a better dev F1 until a trial ends")
    register_threshold: float = Field(0.7, ge=0, le=1, description="test F1 below which a model is not registered")


class UniformRange(Section):
    """Anything between ``low`` and ``high``; ``log``: evenly over orders of magnitude."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def in_order(self):
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; a log range starts above 0")
        return self


class Choices(Section):
    """One of ``choices``."""

    choices: Annotated[list, Field(min_length=1)]


class TuneConfig(Section):
    """How many trials are run, over what, and on which part of the machine."""

    trials: int = Field(8, ge=1, le=10_000)
    concurrent: int | None = Field(None, ge=1, description="trials at one time; default: as many as fit")
    workers_per_trial: int = Field(1, ge=1, description="processes per trial (DDP)")
    gpus_per_worker: float | None = Field(None, ge=0, description="default: 1 where there are GPUs, else 0")
    cpus_per_worker: float = Field(1, gt=0)
    grace_epochs: int = Field(1, ge=1, description="ASHA stops no trial before this many epochs")
    reduction_factor: int = Field(3, ge=2, description="ASHA lets the best 1/n of the trials go on")
    space: dict[str, UniformRange | Choices] = Field(
        default_factory=lambda: {
            "train.learning_rate": UniformRange(low=5e-5, high=5e-4, log=True),
            "train.weight_decay": UniformRange(low=0.0, high=0.1),
            "train.label_smoothing": UniformRange(low=0.0, high=0.1),
        },
        description="values that trials vary, by their path",
    )
    seed: int = Field(1, ge=0)


class TrainingConfig(Section):
    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
