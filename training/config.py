"""The one YAML of a training run: dataset, model, train and tune.

    python -m training.config [--config FILE] [--train.learning_rate 3e-5 …]   what a run would use, as YAML
    python -m training.config --schema                                         the JSON schema, for an editor
    python -m training.config --help                                           every value, its default, its meaning

Every value has a default, an unknown key is refused, and each value can be set on the command line by its path.
"""

import argparse
import difflib
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from training.errors import ConfigRefused

POLARITY = ["negative", "positive"]
STARS = ["negative", "neutral", "positive"]
KOREAN = {"negative": "부정", "neutral": "중립", "positive": "긍정"}

ENCODERS = ("nano", "kcbert-base", "kcbert-large", "kcelectra-base")
"""The names of `training.encoders`; anything else is a folder or a hub id."""

CONFIGS = Path(__file__).parent / "configs"
DEFAULT = CONFIGS / "nano.yaml"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _named(path: Any) -> Any:
    """An empty path would mean the current directory."""
    if isinstance(path, str) and not path.strip():
        raise ValueError("it is empty; name a path, or leave it out")
    return path


NamedPath = Annotated[Path, BeforeValidator(_named), AfterValidator(Path.expanduser)]


class DatasetConfig(Section):
    """Which reviews, and how they are cut."""

    kind: Literal["nsmc", "collected", "sample", "files"] = Field(
        "nsmc", description="nsmc: NSMC's files; collected: Parquet of training.collection; sample: the bundled reviews"
    )
    name: str | None = Field(None, description="what the figures call the data; default: NSMC, or the folder's name")
    folder: NamedPath | None = Field(
        None, description="nsmc, collected: where the files lie; nsmc without one: downloaded"
    )
    train: NamedPath | None = Field(None, description="files: a .tsv, .csv or .parquet, .gz included")
    test: NamedPath | None = Field(None, description="files: likewise; without one, test is cut from train")
    earlier: list[NamedPath] = Field(
        [], description="collected: files of reviews, or NSMC's folder, whose texts are left out of train and test"
    )
    text_column: str = Field("document", min_length=1, description="files: the column of the texts")
    label_column: str = Field("label", min_length=1, description="files: the column of the labels: index, name or 긍정")
    labels: list[str] = Field(
        POLARITY, min_length=2, description="in index order; negative, neutral, positive: cut by stars"
    )
    encoding: str = Field("utf-8", description="files: of TSV and CSV, e.g. cp949")
    dataset_sampling_rate: float = Field(1.0, gt=0, le=1, description="share of train that is used, stratified")
    dev_share: float = Field(0.05, gt=0, lt=0.5, description="share of train that chooses checkpoints")
    test_share: float = Field(0.2, gt=0, lt=0.5, description="collected, sample, files: share that becomes test")
    max_megabytes: int = Field(2048, gt=0, description="more unpacked data is refused: reviews are held in memory")

    @field_validator("labels")
    @classmethod
    def distinct(cls, labels: list[str]) -> list[str]:
        for label in labels:
            if not label.strip() or label.strip().isdecimal():
                raise ValueError(f"{label!r} is no name for a label; a number would be taken for its index")
        if len({label.strip().lower() for label in labels}) < len(labels):
            raise ValueError("each label is named once")
        return labels

    @field_validator("encoding")
    @classmethod
    def known(cls, encoding: str) -> str:
        try:
            "가".encode(encoding)
        except (LookupError, UnicodeEncodeError):
            raise ValueError(
                "Python knows no encoding of Korean text by that name; try utf-8, cp949 or utf-16"
            ) from None
        return encoding

    @model_validator(mode="after")
    def agrees(self):
        if self.kind == "files" and self.train is None:
            raise ValueError("dataset.kind is files, but dataset.train names none; name a .tsv, .csv or .parquet")
        if self.kind == "collected" and self.folder is None:
            raise ValueError("dataset.kind is collected, but dataset.folder names none; name the collection's folder")
        if self.kind == "sample" and self.labels != POLARITY:
            raise ValueError(f"dataset.labels is {self.labels}, but the bundled reviews know {POLARITY} only")
        if self.kind in ("nsmc", "collected") and self.labels not in (POLARITY, STARS):
            raise ValueError(f"dataset.labels is {self.labels}; {self.kind} can be cut into {POLARITY} or {STARS}")
        for name in OWNED:
            if self.kind not in OWNED[name] and getattr(self, name) != DatasetConfig.model_fields[name].default:
                raise ValueError(
                    f"dataset.{name} is set, but dataset.kind is {self.kind}, which does not read it; "
                    f"it belongs to {', '.join(OWNED[name])}"
                )
        return self


OWNED = {
    "folder": ("nsmc", "collected"),
    "earlier": ("collected",),
    "train": ("files",),
    "test": ("files",),
    "text_column": ("files",),
    "label_column": ("files",),
    "encoding": ("files",),
    "test_share": ("collected", "sample", "files"),
}  # values that only some kinds read; set for another they would be ignored, so they are refused


class ModelConfig(Section):
    """Which encoder, and how much of it learns."""

    encoder: str = Field(
        "nano", min_length=1, description="nano, kcbert-base, kcbert-large, kcelectra-base, a folder or a hub id"
    )
    max_length: int = Field(128, ge=8, le=512, description="tokens a text is cut to")
    unfrozen_layers: int | None = Field(
        None,
        ge=0,
        description="top layers that learn beside the head; embeddings and the rest stay; null: all learn",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the hidden values dropped while learning")


class TrainConfig(Section):
    """How it learns. The defaults are nano's; KcBERT and its like want a learning rate of 2e-5 to 5e-5."""

    learning_rate: float = Field(2e-4, gt=0, le=0.1, description="at its peak, after the warm-up")
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps; without it some runs collapse")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="learning rate after the warm-up")
    weight_decay: float = Field(0.01, ge=0, le=1, description="of AdamW; biases and LayerNorm have none")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate per layer downwards")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="share of the target spread over all labels")
    word_dropout: float = Field(0.15, ge=0, lt=1, description="share of the tokens hidden behind [MASK]")
    epochs: int = Field(2, ge=1, le=1000, description="passes over train")
    batch_size: int = Field(128, ge=1, le=65536, description="reviews per step, all workers of a trial together")
    precision: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="of the matrix products; weights are fp32")
    seed: int = Field(1, ge=0, description="of the fresh head, the order of the reviews and dropout")
    early_stopping: int | None = Field(
        None, ge=1, description="epochs without a better dev F1 until a trial ends; null: never"
    )
    teachers: list[NamedPath] = Field(
        [], description="checkpoint folders to learn from as well (training.distill); they want label_smoothing 0"
    )
    register_threshold: float = Field(0.7, ge=0, le=1, description="test F1 below which a model is not registered")

    @model_validator(mode="after")
    def agrees(self):
        if self.teachers and self.label_smoothing > 0:
            raise ValueError(
                f"train.label_smoothing is {self.label_smoothing}, but targets from train.teachers hold their doubt "
                "already; set it to 0, or leave the teachers out"
            )
        return self


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


def _kind_of_range(value: Any) -> str:
    return "choices" if isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value) else "range"


Range = Annotated[
    Annotated[UniformRange, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_kind_of_range)
]


class TuneConfig(Section):
    """How many trials are run, over what, and on which part of the machine."""

    trials: int = Field(8, ge=1, le=10_000, description="trials of one search")
    concurrent: int | None = Field(None, ge=1, description="trials at one time; default: as many as fit")
    workers_per_trial: int = Field(1, ge=1, description="processes per trial (DDP)")
    gpus_per_worker: float | None = Field(None, ge=0, description="default: 1 where there are GPUs, else 0")
    cpus_per_worker: float = Field(1, gt=0, description="CPU cores that a worker reserves")
    grace_epochs: int = Field(1, ge=1, description="ASHA stops no trial before this many epochs")
    reduction_factor: int = Field(3, ge=2, description="ASHA lets the best 1/n of the trials go on")
    space: dict[str, Range] = Field(
        default_factory=lambda: {
            "train.learning_rate": UniformRange(low=5e-5, high=5e-4, log=True),
            "train.weight_decay": UniformRange(low=0.0, high=0.1),
            "train.word_dropout": Choices(choices=[0.0, 0.1, 0.15, 0.2]),
        },
        description="values of model and train that trials vary, by path: {low, high, log} or {choices: [...]}",
    )
    seed: int = Field(1, ge=0, description="of the values that Optuna proposes")


class TrainingConfig(Section):
    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def agrees(self):
        workers, batch = self.tune.workers_per_trial, self.train.batch_size
        if batch % workers:
            raise ValueError(
                f"train.batch_size is {batch} and cannot be shared by tune.workers_per_trial {workers}; "
                f"take {max(batch // workers, 1) * workers}"
            )
        if self.tune.grace_epochs > self.train.epochs:
            raise ValueError(
                f"tune.grace_epochs is {self.tune.grace_epochs}, but a trial ends after train.epochs "
                f"{self.train.epochs}; lower the one or raise the other"
            )
        for path, varied in self.tune.space.items():
            self._check_varied(path, varied)
        return self

    def _check_varied(self, path: str, varied: UniformRange | Choices) -> None:
        """Every value that a trial could get must be one that this config could hold."""
        where = f"tune.space.{path}"
        if path not in PATHS:
            raise ValueError(f"{where} varies a value that does not exist{_nearest(path)}")
        if path.split(".")[0] not in ("model", "train"):
            raise ValueError(f"{where} cannot vary: trials are compared on one dataset; vary model or train")
        if path == "train.teachers":
            raise ValueError(f"{where} cannot vary: all trials learn from the same; run a search for each")
        if isinstance(varied, UniformRange) and PATHS[path].annotation is not float:
            raise ValueError(f"{where} is a range, but not every number fits there; use choices: [...]")
        values = [varied.low, varied.high] if isinstance(varied, UniformRange) else varied.choices
        for value in values:
            document = self.model_dump()
            document["tune"]["space"] = {}
            section, key = path.split(".")
            document[section][key] = value
            try:
                TrainingConfig.model_validate(document)
            except ValidationError as exc:
                raise ValueError(f"{where} holds a value that is refused: {_sentences(exc)[0]}") from None


def with_absolute_paths(config: TrainingConfig) -> TrainingConfig:
    """So that what a run leaves can be used from another directory, and on another node."""
    paths = {key: getattr(config.dataset, key) for key in ("folder", "train", "test")}
    paths = {key: path and path.resolve() for key, path in paths.items()}
    paths["earlier"] = [path.resolve() for path in config.dataset.earlier]
    dataset = config.dataset.model_copy(update=paths)
    encoder = config.model.encoder
    if encoder not in ENCODERS and Path(encoder).is_dir():
        encoder = str(Path(encoder).resolve())
    model = config.model.model_copy(update={"encoder": encoder})
    train = config.train.model_copy(update={"teachers": [teacher.resolve() for teacher in config.train.teachers]})
    return config.model_copy(update={"dataset": dataset, "model": model, "train": train})


PATHS: dict[str, FieldInfo] = {
    f"{section}.{name}": field
    for section, part in TrainingConfig.model_fields.items()
    for name, field in part.annotation.model_fields.items()
}
SPACE = "tune.space"


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config``, and a help that lists every ``--section.key``; those are left to `parse_config`.

    The parser may have no positional arguments: they would take the values of ``--section.key value``.
    """
    shipped = f"training/configs/{DEFAULT.name}"
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"YAML of the run (default: {shipped})")
    parser.allow_abbrev = False
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    shipped_values = load_config(None, []).model_dump(mode="json")
    lines = ["values of the YAML, each settable as --section.key value (default in brackets):"]
    for path, field in PATHS.items():
        default = shipped_values[path.split(".")[0]][path.split(".")[1]]
        shown = "see the YAML" if path == SPACE else yaml.safe_dump(default, default_flow_style=True).split("\n")[0]
        lines.append(f"  --{path} [{shown}]\n        {field.description}")
    parser.epilog = "\n".join(lines)


def parse_config(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple[argparse.Namespace, TrainingConfig]:
    """The parser's own options, and the config of ``--config`` with every ``--section.key`` set.

    Raises:
        ConfigRefused: see `load_config`.
    """
    options, overrides = parser.parse_known_args(argv)
    return options, load_config(options.config, overrides)


def load_config(path: Path | None, overrides: list[str]) -> TrainingConfig:
    """The YAML at ``path`` (without one: nano.yaml), with ``overrides`` as left on the command line.

    ``["--train.learning_rate", "3e-5", "--tune.trials=4"]`` sets two values. Relative paths in the YAML start at the
    current directory.

    Raises:
        ConfigRefused: the file cannot be read, or a value is unknown, out of its limits or contradicts another.
    """
    values = _read_yaml(path or DEFAULT)
    for key, value in _parse_overrides(overrides).items():
        _set(values, key, value)
    return _validated(values)


def override(config: TrainingConfig, params: dict[str, Any]) -> TrainingConfig:
    """``config`` with the values of ``params``, by path: ``{"train.learning_rate": 3e-5}``.

    Raises:
        ConfigRefused: a path does not exist, or its value is refused.
    """
    values = config.model_dump()
    for path, value in params.items():
        _set(values, path, value)
    return _validated(values)


def as_yaml(config: TrainingConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _set(values: dict, path: str, value: Any) -> None:
    section, _, key = path.partition(".")
    if path.startswith(f"{SPACE}."):
        tune = values.setdefault("tune", {})
        tune.setdefault("space", TuneConfig().model_dump()["space"])[path.removeprefix(f"{SPACE}.")] = value
    elif path in PATHS:
        values.setdefault(section, {})[key] = value
    else:
        raise ConfigRefused(f"there is no value {path}{_nearest(path)}")


def _validated(values: dict) -> TrainingConfig:
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as exc:
        raise ConfigRefused("\n".join(_sentences(exc))) from None


def _sentences(exc: ValidationError) -> list[str]:
    """One per wrong value: its path, its value, the limit, and what to do."""
    return [_sentence(error) for error in exc.errors(include_url=False)]


def _sentence(error: dict) -> str:
    parts = list(error["loc"])
    if parts[:2] == ["tune", "space"]:
        del parts[3:4]  # pydantic's tag, "range" or "choices", behind the path of the varied value
    path = ".".join(map(str, parts))
    message = error["msg"].removeprefix("Value error, ")
    if path.startswith(f"{SPACE}.") and error["type"] in ("missing", "extra_forbidden", "model_type"):
        fault = {"missing": "is missing", "extra_forbidden": "is unknown"}.get(error["type"], "is no range")
        return f"{path} {fault}; write {{low: …, high: …, log: true}} or {{choices: […]}}"
    if error["type"] == "extra_forbidden":
        return f"there is no value {path}{_nearest(path)}"
    if error["type"] == "value_error" and len(error["loc"]) < 2:
        return message  # contradictions between values name their paths themselves
    shown = repr(error["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
    sentence = f"{path} is {shown}: {message.replace('Input should', 'it should')}"
    return f"{sentence}; leave it out for the default" if path in PATHS and path != SPACE else sentence


def _nearest(path: str) -> str:
    """``; did you mean …?`` with the nearest known path, or the known ones of its section."""
    same_name = [known for known in PATHS if known.split(".")[1] == path.split(".")[-1]]
    near = same_name or difflib.get_close_matches(
        path, PATHS if "." in path else TrainingConfig.model_fields, n=1, cutoff=0.75
    )
    if near:
        return f"; did you mean {near[0]}?"
    section = path.split(".")[0]
    known = [known for known in PATHS if known.startswith(f"{section}.")] or list(TrainingConfig.model_fields)
    return f"; there are {', '.join(known)}"


def _one_line(exc: yaml.YAMLError) -> str:
    return " ".join(str(exc).split())


def _parse_overrides(words: list[str]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise ConfigRefused(f"{word!r} belongs to no value; write --section.key value")
        path, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise ConfigRefused(f"--{path} has no value behind it; write --{path} VALUE")
        params[path] = _value(path, text)
    return params


def _value(path: str, text: str) -> Any:
    """Texts and paths as they stand; numbers, lists and ranges as YAML reads them."""
    if text == "null":
        return None
    annotation = PATHS[path].annotation if path in PATHS else None
    if annotation is str or (
        {str, NamedPath} & set(get_args(annotation)) and get_origin(annotation) not in (list, dict)
    ):
        return text
    try:
        return yaml.load(text, ConfigLoader)
    except yaml.YAMLError as exc:
        raise ConfigRefused(f"--{path} is {text!r}, which is no YAML value: {_one_line(exc)}") from None


class ConfigLoader(yaml.SafeLoader):
    """YAML whose ``3e-5`` is a number, as in YAML 1.2, and where a key stands once."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(path: Path) -> dict:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), ConfigLoader)
    except OSError as exc:
        shipped = ", ".join(f"training/configs/{file.name}" for file in sorted(CONFIGS.glob("*.yaml")))
        raise ConfigRefused(f"{path} cannot be read ({exc.strerror}); there are {shipped}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigRefused(f"{path} is not UTF-8 (byte {exc.start}); save it as UTF-8") from exc
    except yaml.YAMLError as exc:
        raise ConfigRefused(f"{path} is no YAML: {_one_line(exc)}") from exc
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigRefused(
            f"{path} holds a {type(values).__name__}; it must hold {', '.join(TrainingConfig.model_fields)}"
        )
    for section, part in values.items():
        if section in TrainingConfig.model_fields and not isinstance(part, dict | None):
            raise ConfigRefused(f"{section} is {part!r}; it must hold keys, each with its value")
    return {section: {} if part is None else part for section, part in values.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.config", description="Print the config of a run.")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the YAML instead")
    add_config_arguments(parser)
    try:
        options, config = parse_config(parser, argv)
    except ConfigRefused as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    print(json.dumps(TrainingConfig.model_json_schema(), indent=2) if options.schema else as_yaml(config).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
