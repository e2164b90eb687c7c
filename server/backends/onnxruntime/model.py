"""The `onnxruntime` backend of the embedded Triton: runs model.onnx of a bundle with ONNX Runtime on the CPU.

Triton starts one process of this file per version and instance, and hands `execute` a list of requests, each with
`input_ids` and `attention_mask` INT64 [rows, tokens]; every request is answered with `logits` FP32 [rows, labels] or
with its own error.  The requests of one list are merged into one batch: they may differ in length, and a malformed
one is refused without harming its neighbours.

The batch is cut into runs of rows of like length, one run per core at a time, each on a thread of its own: attention
then pads little, a run's matrices stay in the caches of its core, and no operator waits for the slower half of itself
(export/EXPERIMENTS.md has the figures).  Of a large model, fewer rows than cores are one run that all cores share.

It reads the same config.pbtxt keys as NVIDIA's C++ backend of that name, so one repository serves under both.  Not
covered, because the C++ backend in a container is the way there: GPUs, other execution providers, models that are not
bundles.  Triton copies this file into a private folder and runs it in isolated mode: it can import nothing of ours.
"""

import ctypes
import functools
import hashlib
import importlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

NICENESS = 10  # a tenth of what others get, where they want it

Made = TypeVar("Made")


def standing_back(work: Callable[[], Made]) -> Made:
    """What `work` makes, in a thread that stands back: a version is loaded beside one that answers.

    On Linux niceness is a thread's own and passes to the threads it starts, and there is no way back without privilege.
    So nothing may be made here that starts threads which answer later.
    """

    def stand_back() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))

    with ThreadPoolExecutor(1, initializer=stand_back) as thread:
        return thread.submit(work).result()


for name in ("numpy", "onnxruntime"):  # a third of the work of loading a small model
    standing_back(functools.partial(importlib.import_module, name))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402

IDS, MASK, LOGITS = "input_ids", "attention_mask", "logits"
TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}
RUN_TOKENS = 256  # of one run at most, about: what a core's caches hold of the widest layer (192 to 512 are alike)
# Of a model file from which on cores share a run: below, an operator takes less time than it takes to wake a thread
# (layers 256 wide: 6 to 18 MB; 768 wide: 46 MB and more).
SHARED_BYTES = 32 << 20
# A request of fewer rows is computed without asking Triton whether it was cancelled meanwhile: the question goes to
# another process and back for one request after the other, 0.3 ms each when both cores have work.
ASKED_ROWS = 8
# The name a DLPack capsule has once its tensor has an owner.  Python keeps this pointer, so it must outlive them all.
CONSUMED = ctypes.c_char_p(b"used_dltensor")


class Broken(Exception):
    """This version cannot be loaded; the message says which file disagrees with which."""


class TritonPythonModel:
    """One loaded version.  The class name and the method names are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version folder; raise `Broken` when its files disagree, or its answers are wrong on this machine."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = read_manifest(folder)
        model = folder / config["default_model_filename"]
        standing_back(lambda: check_sum(model, manifest))
        self.labels = len(manifest["labels"])
        options = session_options(config)
        self.threads = options.intra_op_num_threads
        # ONNX Runtime settles the threads of a run when it makes the session, so there may be two, with weights each.
        self.shared = None
        if self.threads > 1:
            alone = session_options(config, threads=1)
            alone.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL  # so that it starts no threads at all
            self.alone = standing_back(lambda: load_session(model, alone))
            if model.stat().st_size >= SHARED_BYTES:
                self.shared = load_session(model, options)
        else:
            self.alone = load_session(model, options)
        check_graph(self.alone, config, labels=self.labels)
        self.pool = ThreadPoolExecutor(self.threads)
        self.run_options = run_options(config)
        self.vocabulary = manifest["vocab_size"]
        self.longest = manifest["max_length"]
        self.padding = manifest["pad_token_id"]
        standing_back(lambda: check_golden_rows(self.alone, manifest))

    def execute(self, requests: list) -> list:
        """Answer each request, in order."""
        answers = [None] * len(requests)
        merged, refused = [], []
        for index, request in enumerate(requests):
            ids, mask = (read_tensor(request, name) for name in (IDS, MASK))
            complaint = self.wrong_shape(ids, mask)
            if complaint:
                answers[index] = failure(complaint, pb_utils.TritonError.INVALID_ARG)
                refused.append(index)
            elif len(ids) >= ASKED_ROWS and request.is_cancelled():
                answers[index] = failure("the caller cancelled the request", pb_utils.TritonError.CANCELLED)
            else:
                merged.append((index, ids, mask))
        for index, answer in self.answer(merged):
            answers[index] = answer
            if answer.has_error():
                refused.append(index)
        for index in refused:  # the id joins this line to the gateway's; repr, because anything may be in it
            pb_utils.Logger.log_warn(f"request {requests[index].request_id()!r}: {answers[index].error().message()}")
        return answers

    def finalize(self) -> None:
        self.pool.shutdown()

    def answer(self, merged: list) -> list:
        """Run well-shaped requests `(index, ids, mask)` as one batch; return `(index, response)` for each."""
        if not merged:
            return []
        answers = []
        ids, mask = self.pad(merged)
        if self.wrong_values(ids, mask):  # somewhere in the batch: look at one request after the other
            complaints = [(request, self.wrong_values(*request[1:])) for request in merged]
            merged = [request for request, complaint in complaints if not complaint]
            answers = [
                (index, failure(complaint, pb_utils.TritonError.INVALID_ARG))
                for (index, *_), complaint in complaints
                if complaint
            ]
            if not merged:
                return answers
            ids, mask = self.pad(merged)
        try:
            logits = self.compute(ids, mask)
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this one
            sentence = f"ONNX Runtime could not run a batch of {ids.shape[0]} x {ids.shape[1]} tokens: {error}"
            return answers + [(index, failure(sentence, pb_utils.TritonError.INTERNAL)) for index, *_ in merged]
        row = 0
        for index, request_ids, _ in merged:
            answers.append((index, response(logits[row : row + len(request_ids)])))
            row += len(request_ids)
        return answers

    def compute(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits FP32 [rows, labels], in the order of the rows."""
        # Only the padding at the end is dropped: earlier columns carry the positions of the words after them.
        lengths = mask.shape[1] - mask[:, ::-1].argmax(axis=1)
        if self.shared is not None and len(ids) < self.threads:
            session, runs = self.shared, [np.arange(len(ids))]
        else:
            session, runs = self.alone, cut(lengths, self.threads)
        logits = np.empty((len(ids), self.labels), np.float32)

        def run(rows: np.ndarray) -> None:
            used = lengths[rows].max()
            (logits[rows],) = session.run([LOGITS], {IDS: ids[rows, :used], MASK: mask[rows, :used]}, self.run_options)

        if len(runs) > 1:
            list(self.pool.map(run, runs))
        else:
            run(*runs)
        return logits

    def pad(self, merged: list) -> tuple[np.ndarray, np.ndarray]:
        """All rows of all requests as two INT64 matrices as wide as the widest request."""
        rows = sum(len(ids) for _, ids, _ in merged)
        width = max(ids.shape[1] for _, ids, _ in merged)
        all_ids = np.full((rows, width), self.padding, np.int64)
        all_masks = np.zeros((rows, width), np.int64)
        row = 0
        for _, ids, mask in merged:
            all_ids[row : row + len(ids), : ids.shape[1]] = ids
            all_masks[row : row + len(ids), : ids.shape[1]] = mask
            row += len(ids)
        return all_ids, all_masks

    def wrong_shape(self, ids: np.ndarray, mask: np.ndarray) -> str | None:
        if ids.ndim != 2 or ids.size == 0:
            return f"{IDS} has shape {list(ids.shape)}; it must be [rows, tokens] with at least one of each"
        if ids.shape != mask.shape:
            return f"{MASK} has shape {list(mask.shape)} and {IDS} {list(ids.shape)}; they must be equal"
        if ids.shape[1] > self.longest:
            return f"{IDS} has {ids.shape[1]} tokens, the model reads {self.longest}; truncate the text"
        return None

    def wrong_values(self, ids: np.ndarray, mask: np.ndarray) -> str | None:
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            outside = (ids < 0) | (ids >= self.vocabulary)
            return (
                f"{IDS} holds {ids[outside][0]}, the vocabulary ends at {self.vocabulary - 1}; "
                f"use the tokenizer.json of this version"
            )
        if mask.min() < 0 or mask.max() > 1:
            return f"{MASK} holds a value that is neither 0 nor 1"
        if not mask.any(axis=1).all():
            return f"{MASK} has a row without a 1: a text has at least its start and end tokens"
        return None


def cut(lengths: np.ndarray, threads: int) -> list[np.ndarray]:
    """Row numbers, the longest first, in runs of about equal tokens: so many for each thread as RUN_TOKENS asks."""
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    tokens = lengths.sum()
    runs = threads * -(-tokens // (threads * RUN_TOKENS))
    run_of_row = (2 * lengths.cumsum() - lengths) * runs // (2 * tokens)  # by where its middle lies
    return np.split(order, np.flatnonzero(np.diff(run_of_row)) + 1)


def read_tensor(request, name: str) -> np.ndarray:
    """The tensor, without a copy.

    Never `Tensor.as_numpy()` here, nor `Tensor(name, array)` below: the stub of Triton 24.10 was built against
    numpy 1 and reads an item size of 0 from numpy 2, so the one repeats the first number and the other answers with
    no bytes, both in silence.  DLPack carries its own sizes.
    """
    return np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))


def response(logits: np.ndarray):
    if not np.isfinite(logits).all():
        return failure("the model answered with a number that is not finite", pb_utils.TritonError.INTERNAL)
    capsule = np.ascontiguousarray(logits).__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(LOGITS, capsule)
    # The stub of Triton 24.10 gives the capsule a name numpy does not know for a tensor taken over, and numpy prints a
    # traceback into the log each time one of those goes.
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), CONSUMED)
    return pb_utils.InferenceResponse([tensor])


def failure(sentence: str, code: int):
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(sentence, code))


def read_manifest(folder: Path) -> dict:
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        wanted = (
            *("files", "labels", "vocab_size", "max_length", "pad_token_id"),
            *("golden", "golden_probability_tolerance"),
        )
        missing = [key for key in wanted if key not in manifest]
    except FileNotFoundError:
        raise Broken(f"{file} is missing: a version folder without a manifest is not a bundle") from None
    except (OSError, ValueError, TypeError) as error:
        raise Broken(f"{file} cannot be read: {error}") from None
    if missing:
        raise Broken(f"{file} lacks {', '.join(missing)}")
    return manifest


def check_sum(model: Path, manifest: dict) -> None:
    try:
        expected = manifest["files"][model.name]["sha256"]
    except (KeyError, TypeError):
        raise Broken(f"manifest.json has no sha256 for {model.name}") from None
    try:
        with model.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise Broken(f"{model} cannot be read: {error}") from None
    if found != expected:
        raise Broken(f"{model} has sha256 {found[:12]}…, manifest.json says {expected[:12]}…: publish the bundle anew")


def check_graph(session: onnxruntime.InferenceSession, config: dict, *, labels: int) -> None:
    """The graph, config.pbtxt and manifest.json must speak of the same tensors."""
    for kind, nodes, entries, names in (
        ("inputs", session.get_inputs(), config["input"], {IDS, MASK}),
        ("outputs", session.get_outputs(), config["output"], {LOGITS}),
    ):
        graph = {node.name: TYPES.get(node.type, node.type) for node in nodes}
        stated = {entry["name"]: entry["data_type"] for entry in entries}
        if graph != stated or set(graph) != names:
            raise Broken(f"the {kind} of model.onnx are {graph}, config.pbtxt says {stated}")
    (entry,) = config["output"]
    width = session.get_outputs()[0].shape[-1]
    if [labels] != entry["dims"] or width != labels:
        raise Broken(
            f"model.onnx answers with {width} logits, config.pbtxt says {entry['dims']}, "
            f"manifest.json has {labels} labels"
        )


def check_golden_rows(session: onnxruntime.InferenceSession, manifest: dict) -> None:
    """The texts whose answers travel with the model must be answered so on this machine.

    A CPU without VNNI can be wrong where the one that exported was right, in silence: it saturates (onnxruntime#6004).
    """
    rows = manifest["golden"]
    width = max(len(row["input_ids"]) for row in rows)
    ids = np.full((len(rows), width), manifest["pad_token_id"], np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row["input_ids"])] = row["input_ids"]
        mask[index, : len(row["input_ids"])] = 1
    try:
        (logits,) = session.run([LOGITS], {IDS: ids, MASK: mask})
    except Exception as error:  # ONNX Runtime's own exceptions share no base class but this one
        raise Broken(f"ONNX Runtime could not run the golden rows: {error}") from None
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    expected = np.array([row["probabilities"] for row in rows])
    shifts = np.abs(shares - expected).max(axis=1)
    flipped = int((shares.argmax(axis=1) != expected.argmax(axis=1)).sum())
    allowed = manifest["golden_probability_tolerance"]
    if flipped or not shifts.max() <= allowed:
        raise Broken(
            f"model.onnx does not give the answers of its manifest on this machine: of {len(rows)} golden rows "
            f"{flipped} have another label, and a probability is off by {shifts.max():.4f}, {allowed} is allowed; "
            + (
                "publish the bundle anew"
                if has_vnni()
                else "this CPU has no VNNI, export the checkpoint on one like it"
            )
        )


def has_vnni() -> bool:
    """Whether this CPU adds products of bytes without saturating; True where /proc does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        flags = next(line for line in text.splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return True
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(flags)


def load_session(model: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])


def session_options(config: dict, threads: int = 0) -> onnxruntime.SessionOptions:
    """ONNX Runtime's options from config.pbtxt, under the keys and with the meanings of the C++ backend.

    Ours are the default number of threads, the cores this process may use, where ONNX Runtime would take all, and that
    idle threads sleep: spinning, even for 20 us, they take the cores that gateway and Triton need (EXPERIMENTS.md).
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads or parameter(config, "intra_op_thread_count") or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = parameter(config, "inter_op_thread_count") or 0
    options.enable_cpu_mem_arena = bool(parameter(config, "enable_mem_arena", 1))
    options.enable_mem_pattern = bool(parameter(config, "enable_mem_pattern", 1))
    if parameter(config, "execution_mode") == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    levels = {
        -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = levels.get(level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    return options


def run_options(config: dict) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    key = "memory.enable_memory_arena_shrinkage"
    if key in config["parameters"]:
        options.add_run_config_entry(key, config["parameters"][key]["string_value"])
    return options


def parameter(config: dict, key: str, default: int = 0) -> int:
    """The whole number config.pbtxt gives for `key`; true and false count as 1 and 0, as for the C++ backend."""
    text = config["parameters"].get(key, {}).get("string_value", str(default)).strip()
    text = {"true": "1", "false": "0"}.get(text.lower(), text)
    try:
        return int(text)
    except ValueError:
        raise Broken(f"parameter {key} of config.pbtxt is {text!r}; it must be a whole number") from None
