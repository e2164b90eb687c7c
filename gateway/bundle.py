"""The bundle on disk: which version serves, its tokenizer, labels and manifest, checked against each other.

`read_serving` reads `serving.json`; `read_bundle` reads a version folder, the one `serving.json` names or another, and
the model's `config.pbtxt`.  Both raise `BundleBroken` with one sentence unless every piece is there and agrees.  What
Triton has loaded is not looked at here (shelf.py does that).
"""

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

import orjson
from google.protobuf import text_format
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator
from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tritonclient.grpc import model_config_pb2

from gateway.errors import BundleBroken
from gateway.plain import for_plain_text, is_plain

SCHEMA = 1
INPUTS = ["input_ids", "attention_mask"]  # INT64 [batch, length] each
BUNDLE_FILES = ("model.onnx", "tokenizer.json")
PAUSE_SECONDS = 0.01  # between two long holds of the global lock: a request in work waits for one of them at most
SUM_TOLERANCE = 1e-3  # of the probabilities of a golden row, written as rounded decimals

Version = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Contract(BaseModel):
    """Strict types; keys this gateway does not know are left alone, the `schema` number guards against real change."""

    model_config = ConfigDict(strict=True, frozen=True)


class Terms(_Contract):
    """A version on trial beside the one that answers, with a share of the requests (candidate.py)."""

    version: Version
    mode: Literal["shadow", "canary"]
    share: Annotated[float, Field(gt=0, le=1)]
    since: Annotated[AwareDatetime, Field(strict=False)]


class Serving(_Contract):
    """`serving.json`: which version answers, and which one is on trial beside it.

    `rolled_back` is the version that a rollback left; it is there until the next release.
    """

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    version: Version
    previous: Version | None = None
    since: Annotated[AwareDatetime, Field(strict=False)]
    rolled_back: Version | None = None
    candidate: Terms | None = None


class Label(_Contract):
    name: Annotated[str, Field(min_length=1)]
    korean: Annotated[str, Field(min_length=1)]


class FileDigest(_Contract):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class GoldenRow(_Contract):
    """A text, the ids its tokenizer makes of it, and the probabilities the exported model gave (label order)."""

    text: str
    input_ids: list[Annotated[int, Field(ge=0)]]
    probabilities: list[Probability]


class Bins(_Contract):
    """Shares of texts; `edges` are the upper ends of all bins but the last, which has none."""

    edges: Annotated[list[float], Field(min_length=1)]
    shares: list[Probability]

    @model_validator(mode="after")
    def one_share_for_each_bin(self) -> Self:
        if self.edges != sorted(set(self.edges)) or len(self.shares) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} ascending edges make {len(self.edges) + 1} bins; export it again")
        return self


class Reference(_Contract):
    """What the texts looked like that the version was measured on (drift.py); `label` in label order."""

    rows: Annotated[int, Field(ge=1)]
    label: list[Probability]
    confidence: Bins
    length: Bins
    unknown: Bins


class Manifest(_Contract):
    """What the gateway reads of `manifest.json`."""

    schema_: Annotated[int, Field(alias="schema")]
    model: str
    version: Version
    encoder: str
    precision: str
    max_length: Annotated[int, Field(ge=3)]
    vocab_size: Annotated[int, Field(ge=1)]
    pad_token_id: Annotated[int, Field(ge=0)]
    labels: Annotated[list[Label], Field(min_length=2)]
    inputs: list[str]
    output: str
    files: dict[str, FileDigest]
    metrics: dict[str, Any] | None = None
    reference: Reference | None = None
    golden_probability_tolerance: Annotated[float, Field(gt=0, lt=0.5)]
    created: str | None = None
    source: dict[str, Any] | None = None
    parity: dict[str, Any] | None = None
    golden: Annotated[list[GoldenRow], Field(min_length=1)]


class Tokens(NamedTuple):
    """One text as the model reads it; `special` tokens included, padding not."""

    ids: list[int]
    truncated: bool


@dataclass(frozen=True, eq=False)
class Bundle:
    """Tokenizer, labels, version and manifest of one version: switched together, by one reference assignment."""

    model: str
    version: str
    manifest: Manifest
    labels: tuple[Label, ...]
    tokenizer: Tokenizer
    plain_tokenizer: Tokenizer  # of plain texts (plain.py) it makes the same tokens, sooner
    special_tokens: int
    unknown_id: int | None
    max_batch_size: int
    pad_tails: tuple[bytes, ...]
    mask_rows: tuple[bytes, ...]

    @property
    def max_length(self) -> int:
        return self.manifest.max_length

    def tokens(self, texts: list[str]) -> list[Tokens]:
        plain = [is_plain(text) for text in texts]
        of_plain, of_others = (
            iter(tokenizer.encode_batch_fast([text for text, each in zip(texts, plain, strict=True) if each is which]))
            for tokenizer, which in ((self.plain_tokenizer, True), (self.tokenizer, False))
        )
        return [self._tokens(next(of_plain if each else of_others)) for each in plain]

    def _tokens(self, encoding: Encoding) -> Tokens:
        ids = encoding.ids
        return Tokens(ids, len(ids) == self.max_length and bool(encoding.overflowing))

    def is_empty(self, tokens: Tokens) -> bool:
        """Nothing but the special tokens is left: the text was empty, or cleaning left nothing of it."""
        return len(tokens.ids) <= self.special_tokens

    def width(self, rows: list[list[int]]) -> int:
        """How long the rows of one request to Triton are made.

        max_length, so that Triton's batcher can merge any two requests; a full batch is merged with none, and is only
        as long as its longest row.
        """
        return max(map(len, rows)) if len(rows) == self.max_batch_size else self.max_length

    def padded(self, rows: list[list[int]], width: int) -> tuple[bytes, bytes]:
        """Input ids and attention mask, INT64 [rows, width], as the bytes Triton takes."""
        ids = b"".join(array("q", row).tobytes() + self.pad_tails[len(row)][: 8 * (width - len(row))] for row in rows)
        return ids, b"".join(self.mask_rows[len(row)][: 8 * width] for row in rows)


Document = TypeVar("Document", bound=_Contract)


def serving_path(repository: Path) -> Path:
    return repository / "serving.json"


def read_serving(repository: Path) -> Serving:
    return _read_json(serving_path(repository), Serving)


def read_bundle(repository: Path, version: int | None = None) -> Bundle:
    """The bundle of `version`, or of the version that `serving.json` names, checked.

    Hashes model.onnx, so it takes up to a second on a large one.
    """
    serving = read_serving(repository)
    version = version or serving.version
    folder = repository / serving.model / str(version)
    if not folder.is_dir():
        raise BundleBroken(
            f"{serving_path(repository)} names version {version}, but {folder} is not there; "
            "name a version that was published, or publish this one"
        )
    manifest = read_manifest(folder, serving.model, version)
    _check_digests(manifest, folder)
    tokenizer, plain_tokenizer = load_tokenizers(folder / "tokenizer.json")
    _check_tokenizer(manifest, tokenizer, folder)
    _check_golden_rows(manifest, tokenizer, folder)
    config = _read_config(repository / serving.model / "config.pbtxt")
    _check_config(manifest, config, repository)
    padding = array("q", [manifest.pad_token_id]).tobytes()
    one, zero = array("q", [1]).tobytes(), array("q", [0]).tobytes()
    lengths = range(manifest.max_length + 1)
    return Bundle(
        model=serving.model,
        version=str(version),
        manifest=manifest,
        labels=tuple(manifest.labels),
        tokenizer=tokenizer,
        plain_tokenizer=plain_tokenizer,
        special_tokens=tokenizer.num_special_tokens_to_add(is_pair=False),
        unknown_id=_unknown_id(tokenizer),
        max_batch_size=config.max_batch_size,
        pad_tails=tuple(padding * (manifest.max_length - length) for length in lengths),
        mask_rows=tuple(one * length + zero * (manifest.max_length - length) for length in lengths),
    )


def read_manifest(folder: Path, model: str, version: int) -> Manifest:
    """The manifest in a version folder, if it is of this version; the files it vouches for are not looked at."""
    manifest = _read_json(folder / "manifest.json", Manifest)
    _check_identity(manifest, (model, version), folder)
    return manifest


def load_tokenizers(file: Path) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer with its cleaning (normalizer) and truncation, exactly as the file says; and one for plain texts.

    tokenizers holds Python's global lock while it reads a file, for 32,000 words so long that requests pile up. What it
    is slow at, the vocabulary of a WordPiece, is therefore given to it apart from the rest, with pauses.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BundleBroken(f"{file} cannot be read ({error.strerror}); publish the version again") from error
    try:
        frame, words = _vocabulary_apart(content)
        sleep(PAUSE_SECONDS)
        tokenizer = Tokenizer.from_buffer(frame)
        if words is None:
            return tokenizer, tokenizer
        plain_tokenizer = Tokenizer.from_buffer(for_plain_text(frame))
        tokenizer.model = plain_tokenizer.model = words
        sleep(PAUSE_SECONDS)
        return tokenizer, plain_tokenizer
    except Exception as error:  # tokenizers raises a bare Exception for any fault in the file
        raise BundleBroken(f"{file} is not a tokenizer file ({error}); publish the version again") from error


def _vocabulary_apart(content: bytes) -> tuple[bytes, WordPiece | None]:
    """The file with no words but the special ones, and its WordPiece; the file as it is, where that cannot be done.

    The special words stay, as they are given their ids while the file is read.
    """
    try:
        document = orjson.loads(content)
        model = document["model"]
        if model["type"] != "WordPiece":
            return content, None
        sleep(PAUSE_SECONDS)
        words = model.pop("vocab")
        model["vocab"] = {each["content"]: words[each["content"]] for each in document["added_tokens"]}
        settings = {key: model[key] for key in ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word")}
        return orjson.dumps(document), WordPiece(words, **settings)
    except (ValueError, TypeError, KeyError, OverflowError):  # whatever is wrong, tokenizers says it best
        return content, None


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """None where every text can be spelled (byte-level BPE), and for Unigram, which does not tell."""
    unknown = getattr(tokenizer.model, "unk_token", None)
    return tokenizer.token_to_id(unknown) if unknown else None


def _read_json(file: Path, kind: type[Document]) -> Document:
    try:
        return kind.model_validate_json(file.read_bytes())
    except OSError as error:
        raise BundleBroken(
            f"{file} cannot be read ({error.strerror}); publish a bundle (`python -m export`) or set "
            "NUNCHI_MODEL_REPOSITORY to a repository that has one"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleBroken(
            f"{file} is not what the contract says: {where or 'the document'}: {first['msg']}; publish it again"
        ) from error


def _check_identity(manifest: Manifest, asked: tuple[str, int], folder: Path) -> None:
    if manifest.schema_ != SCHEMA:
        raise BundleBroken(
            f"{folder}/manifest.json has schema {manifest.schema_}, this gateway reads schema {SCHEMA}; "
            "export the model again with the code of this gateway"
        )
    if (manifest.model, manifest.version) != asked:
        raise BundleBroken(
            f"{folder}/manifest.json describes {manifest.model} version {manifest.version}, serving.json asks for "
            f"{asked[0]} version {asked[1]}; publish the version again"
        )
    if manifest.inputs != INPUTS:
        raise BundleBroken(
            f"{folder}/manifest.json has the inputs {manifest.inputs}, the contract {INPUTS}; export the model again"
        )
    if manifest.reference and len(manifest.reference.label) != len(manifest.labels):
        raise BundleBroken(
            f"{folder}/manifest.json has {len(manifest.labels)} labels, its reference {len(manifest.reference.label)}; "
            "export the model again"
        )
    names = [label.name for label in manifest.labels]
    if len(set(names)) != len(names):
        raise BundleBroken(f"{folder}/manifest.json names a label twice: {', '.join(names)}; export the model again")


def _check_digests(manifest: Manifest, folder: Path) -> None:
    if set(manifest.files) != set(BUNDLE_FILES):
        raise BundleBroken(
            f"{folder}/manifest.json vouches for {sorted(manifest.files)}, the contract for {sorted(BUNDLE_FILES)}; "
            "export the model again"
        )
    for name, expected in manifest.files.items():
        file = folder / name
        try:
            size = file.stat().st_size
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise BundleBroken(f"{file} cannot be read ({error.strerror}); publish the version again") from error
        if (digest, size) != (expected.sha256, expected.bytes):
            raise BundleBroken(
                f"{file} has {size} bytes and sha256 {digest[:12]}…, its manifest says {expected.bytes} bytes and "
                f"{expected.sha256[:12]}…; a published version is never edited: publish it again under a new number"
            )


def _check_tokenizer(manifest: Manifest, tokenizer: Tokenizer, folder: Path) -> None:
    words = tokenizer.get_vocab_size()
    if words != manifest.vocab_size:
        raise BundleBroken(
            f"{folder}/tokenizer.json has {words} words, its manifest says {manifest.vocab_size}; export it again"
        )
    if manifest.pad_token_id >= words:
        raise BundleBroken(
            f"{folder}/manifest.json pads with id {manifest.pad_token_id}, the vocabulary ends at {words - 1}; "
            "export the model again"
        )
    truncation = tokenizer.truncation or {}
    if truncation.get("max_length") != manifest.max_length:
        raise BundleBroken(
            f"{folder}/tokenizer.json truncates to {truncation.get('max_length')} tokens, its manifest says "
            f"{manifest.max_length}; export the model again"
        )
    if tokenizer.padding is not None:
        raise BundleBroken(
            f"{folder}/tokenizer.json pads by itself, but padding is the gateway's; export the model again"
        )


def _check_golden_rows(manifest: Manifest, tokenizer: Tokenizer, folder: Path) -> None:
    for index, row in enumerate(manifest.golden):
        ids = tokenizer.encode(row.text).ids
        if ids != row.input_ids:
            raise BundleBroken(
                f"{folder}/tokenizer.json makes {ids[:8]}… of golden row {index}, its manifest says "
                f"{row.input_ids[:8]}…; export the model again"
            )
        if len(row.probabilities) != len(manifest.labels):
            raise BundleBroken(
                f"{folder}/manifest.json has {len(manifest.labels)} labels but {len(row.probabilities)} probabilities "
                f"in golden row {index}; export the model again"
            )
        if abs(sum(row.probabilities) - 1) > SUM_TOLERANCE:
            raise BundleBroken(
                f"the probabilities of golden row {index} in {folder}/manifest.json add up to "
                f"{sum(row.probabilities):.3f}, not 1; export the model again"
            )


def _read_config(file: Path) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        raise BundleBroken(f"{file} cannot be read ({error.strerror}); publish the bundle again") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BundleBroken(f"{file} is not a Triton model configuration ({error}); publish the bundle again") from error


def _check_config(manifest: Manifest, config: model_config_pb2.ModelConfig, repository: Path) -> None:
    file = repository / manifest.model / "config.pbtxt"
    inputs, outputs = {each.name for each in config.input}, {each.name: list(each.dims) for each in config.output}
    if inputs != set(manifest.inputs) or list(outputs) != [manifest.output]:
        raise BundleBroken(
            f"{file} takes {sorted(inputs)} and gives {sorted(outputs)}, the manifest of version {manifest.version} "
            f"says {sorted(manifest.inputs)} and {manifest.output!r}; export the model again"
        )
    if outputs[manifest.output] != [len(manifest.labels)]:
        raise BundleBroken(
            f"{file} gives {outputs[manifest.output]} logits, the manifest of version {manifest.version} has "
            f"{len(manifest.labels)} labels; export the model again"
        )
    if config.max_batch_size < 1:
        raise BundleBroken(f"{file} has max_batch_size {config.max_batch_size}, so Triton cannot batch; set 64")
