"""Tiny but real bundles for the tests of the serving rooms: made in milliseconds, without torch.

A bundle is what README.md says it is: a real `tokenizer.json` (WordPiece, a handful of Korean words), a real
`model.onnx` (embedding, masked mean, linear layer), a `manifest.json` whose golden rows ONNX Runtime computed from
that very file, and a `config.pbtxt` built as a protobuf message.  The model has opinions: "좋다" and "재미" push
towards the last label, "싫다" and "지루" towards the first.  Versions disagree in their probabilities by more than the
golden tolerance, so a test can tell which version answered.  Versions of different `dialect` differ in their
tokenizers too: the same text has other ids and another number of tokens, and the model of one cannot read the ids of
another.

    repository = tmp_path / "model_repository"
    write_bundle(repository)                    # sentiment/1, served
    write_bundle(repository, 2)                 # sentiment/2 beside it, not yet served
    set_serving(repository, 2, previous=1)
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tritonclient.grpc import model_config_pb2

MODEL = "sentiment"
PAD, UNKNOWN, START, END = range(4)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
POSITIVE = ["좋다", "재미", "최고", "감동", "추천", "사랑", "ㅋㅋ"]
NEGATIVE = ["싫다", "지루", "최악", "실망", "별로", "돈", "ㅠㅠ"]
NEUTRAL = ["영화", "배우", "연기", "이", "정말", "다시", "보고", "싶은", "는", "가", "!", ".", "great", "bad"]
VOCABULARY = SPECIAL + POSITIVE + NEGATIVE + NEUTRAL
LABELS = {
    2: [("negative", "부정"), ("positive", "긍정")],
    3: [("negative", "부정"), ("neutral", "중립"), ("positive", "긍정")],
}
CREATED = "2026-11-22T12:00:00+00:00"
GOLDEN_ROWS = 32
GOLDEN_TOLERANCE = 0.02


def write_bundle(
    repository: Path, version: int = 1, *, labels: int = 2, max_length: int = 32, dialect: int = 0
) -> Path:
    """Write `<repository>/sentiment/<version>/` and a config.pbtxt naming every version there is; return the folder.

    The first bundle of a repository is also the one serving.json names; later ones wait for `set_serving`.
    """
    folder = Path(repository) / MODEL / str(version)
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer(max_length, dialect)
    tokenizer.save(str(folder / "tokenizer.json"))
    embedding = tiny_embedding()[dialect_order(dialect)]
    onnx.save(tiny_model(labels=labels, version=version, embedding=embedding), str(folder / "model.onnx"))
    write_manifest(folder, tokenizer, version=version, labels=labels, max_length=max_length)
    write_config(Path(repository), labels=labels)
    if not (Path(repository) / "serving.json").exists():
        set_serving(repository, version)
    return folder


def set_serving(
    repository: Path, version: int, previous: int | None = None, *, candidate: dict[str, object] | None = None
) -> None:
    """Say which version answers, the way a promotion does: atomically.  `candidate` has version, mode, share, since."""
    document = {"model": MODEL, "version": version, "previous": previous, "since": CREATED}
    if candidate:
        document["candidate"] = {"since": CREATED} | candidate
    _replace(Path(repository) / "serving.json", json.dumps(document))


def tiny_tokenizer(max_length: int, dialect: int = 0) -> Tokenizer:
    """A dialect rotates the words and ends a text with so many marks more."""
    words = {VOCABULARY[word]: index for index, word in enumerate(dialect_order(dialect))}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace("<br>", " "),
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False
            ),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]" + " [SEP]" * dialect, special_tokens=[("[CLS]", START), ("[SEP]", END)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.enable_truncation(max_length)
    return tokenizer


def dialect_order(dialect: int) -> list[int]:
    """The words by id: the special ones stay, the others move on by `dialect` places."""
    special, ordinary = list(range(len(SPECIAL))), list(range(len(SPECIAL), len(VOCABULARY)))
    return special + ordinary[dialect:] + ordinary[:dialect]


def tiny_model(*, labels: int = 2, version: int = 1, embedding: np.ndarray | None = None) -> onnx.ModelProto:
    """input_ids, attention_mask INT64 [batch, length] -> logits FP32 [batch, labels]; padding changes nothing.

    `embedding` (FP32 [words, 4]) replaces the table, for instance by one with an infinity in a row.
    """
    table = tiny_embedding() if embedding is None else embedding
    head = np.zeros((table.shape[1], labels), np.float32)
    head[0] = np.linspace(-1, 1, labels)  # the first dimension is sentiment, the others are noise
    head[1:] = np.random.default_rng(version).normal(0, 0.1, (table.shape[1] - 1, labels))
    bias = np.linspace(0, 0.6, labels, dtype=np.float32) * ((version - 1) % 4)  # higher, and nothing is in doubt
    constants = {
        "table": table.astype(np.float32),
        "head": head.astype(np.float32),
        "bias": bias,
        "last_axis": np.array([2], np.int64),
        "length_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last_axis"], ["column"]),
        helper.make_node("Mul", ["words", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "length_axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "length_axis"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "head"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_sentiment",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def tiny_embedding() -> np.ndarray:
    table = np.random.default_rng(0).normal(0, 0.5, (len(VOCABULARY), 4)).astype(np.float32)
    table[:, 0] = 0
    for word in POSITIVE:
        table[VOCABULARY.index(word), 0] = 6
    for word in NEGATIVE:
        table[VOCABULARY.index(word), 0] = -6
    return table


def write_manifest(folder: Path, tokenizer: Tokenizer, *, version: int, labels: int, max_length: int) -> None:
    """Describe the two files beside it, with golden rows computed from them.  Call again after changing either."""
    write_json(
        folder / "manifest.json",
        {
            "schema": 1,
            "model": MODEL,
            "version": version,
            "created": CREATED,
            "encoder": "tiny",
            "precision": "fp32",
            "max_length": max_length,
            "vocab_size": tokenizer.get_vocab_size(),
            "pad_token_id": PAD,
            "labels": [{"name": name, "korean": korean} for name, korean in LABELS[labels]],
            "inputs": ["input_ids", "attention_mask"],
            "output": "logits",
            "files": {name: describe(folder / name) for name in ("model.onnx", "tokenizer.json")},
            "source": {
                "checkpoint": "tiny",
                "git_commit": None,
                "dataset": "none",
                "mlflow_run": None,
                "registry_version": None,
            },
            "metrics": None,
            "parity": {
                "rows": GOLDEN_ROWS,
                "label_agreement": 1.0,
                "accuracy_reference": 1.0,
                "accuracy_exported": 1.0,
                "max_probability_shift": 0.0,
                "batch_probability_tolerance": GOLDEN_TOLERANCE,
                "max_batch_probability_shift": 0.0,
                "attempts": [{"remedy": "fp32", "accepted": True, "reason": None}],
            },
            "golden_probability_tolerance": GOLDEN_TOLERANCE,
            "golden": golden_rows(folder / "model.onnx", tokenizer),
        },
    )


def golden_rows(model: Path, tokenizer: Tokenizer) -> list[dict]:
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    words = POSITIVE + NEGATIVE + NEUTRAL
    random = np.random.default_rng(7)
    texts = [" ".join(random.choice(words, random.integers(1, 12))) for _ in range(GOLDEN_ROWS)]
    rows = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        (logits,) = session.run(["logits"], {"input_ids": [ids], "attention_mask": [[1] * len(ids)]})
        rows.append({"text": text, "input_ids": ids, "probabilities": softmax(logits[0].astype(float)).tolist()})
    return rows


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def write_config(repository: Path, *, labels: int = 2, parameters: dict[str, str] | None = None) -> None:
    """config.pbtxt of the contract, naming every version folder present; `parameters` as the C++ backend reads them."""
    config = model_config_pb2.ModelConfig(name=MODEL, backend="onnxruntime", max_batch_size=64)
    for name in ("input_ids", "attention_mask"):
        config.input.add(name=name, data_type=model_config_pb2.TYPE_INT64, dims=[-1])
    config.output.add(name="logits", data_type=model_config_pb2.TYPE_FP32, dims=[labels])
    config.instance_group.add(count=1)
    config.dynamic_batching.SetInParent()
    versions = sorted(int(folder.name) for folder in (repository / MODEL).iterdir() if folder.name.isdigit())
    config.version_policy.specific.versions.extend(versions)
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = value
    _replace(repository / MODEL / "config.pbtxt", text_format.MessageToString(config))


def describe(file: Path) -> dict:
    return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}


def write_json(file: Path, document: dict) -> None:
    file.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
