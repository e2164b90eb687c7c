"""TorchServe's handler of a bundle: travels inside the .mar, next to model.onnx, tokenizer.json and manifest.json.

    POST /predictions/sentiment   {"text": "다시 보고 싶은 영화", "return_probs": false}

is answered as the gateway answers `POST /v1/predict`, errors included (`application/problem+json` with a stable
`code`). TorchServe hands `handle` the requests that it has put together into one batch; each has an answer or an error
of its own, and `x-batch-rows` says how many there were. Needs onnxruntime and tokenizers where TorchServe runs, and
nothing of ours. Not covered: `/v1/predict/batch`, which TorchServe's own batching stands for.
"""

import hashlib
import json
import os
from http import HTTPStatus
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

LONGEST_TEXT = 20_000  # characters, as the gateway's NUNCHI_MAX_TEXT_CHARACTERS
KEYS = {"text": str, "return_probs": bool}


class SentimentHandler:  # the only class: TorchServe takes a module's one class for its handler
    def initialize(self, context) -> None:
        """Load the bundle that was unpacked from the .mar.

        Raises:
            RuntimeError: a file is not the one manifest.json describes, or this machine does not give the answers of
                the golden rows. TorchServe then starts no worker.
        """
        folder = Path(context.system_properties["model_dir"])
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, file in self.manifest["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != file["sha256"]:
                raise RuntimeError(f"{name} is not the file manifest.json describes; pack the bundle anew")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), sess_options=session_options(), providers=["CPUExecutionProvider"]
        )
        golden = self.manifest["golden"]
        answers = self.probabilities([row["input_ids"] for row in golden])
        shift = float(np.abs(answers - np.array([row["probabilities"] for row in golden])).max())
        allowed = self.manifest["golden_probability_tolerance"]
        if not shift <= allowed:
            raise RuntimeError(
                f"model.onnx is off its golden rows by {shift:.4f} on this machine, {allowed} is allowed"
            )

    def handle(self, requests: list[dict], context) -> list[bytes]:
        """One body for each request, in order."""
        answers = [None] * len(requests)
        asked = []
        for index, request in enumerate(requests):
            question, complaint = read_question(request)
            encoding = None if complaint else self.tokenizer.encode(question["text"])
            if encoding and all(encoding.special_tokens_mask):
                complaint = problem(
                    422, "empty_text", "text is empty after cleaning; send at least one letter or digit"
                )
            if complaint:
                answers[index] = complaint
            else:
                asked.append((index, question, encoding))
        if asked:
            rows = self.probabilities([encoding.ids for _, _, encoding in asked])
            for (index, question, encoding), row in zip(asked, rows, strict=True):
                answers[index] = self.answer(question, encoding, row)
        for index, answer in enumerate(answers):
            failed = "status" in answer
            if failed:
                context.set_response_status(answer["status"], answer["title"], index)
            context.set_response_content_type(index, "application/problem+json" if failed else "application/json")
            context.set_response_header(index, "x-batch-rows", str(len(requests)))
        return [json.dumps(answer, ensure_ascii=False).encode() for answer in answers]

    def answer(self, question: dict, encoding, probabilities: np.ndarray) -> dict:
        if not np.isfinite(probabilities).all():
            return problem(500, "internal", "the model answered with a number that is not finite")
        labels = self.manifest["labels"]
        best = int(probabilities.argmax())
        body = {
            "prediction": labels[best]["name"],
            "label": labels[best]["korean"],
            "confidence": round(float(probabilities[best]), 6),
            "truncated": bool(encoding.overflowing),
            "input_tokens": len(encoding.ids),
        }
        if question.get("return_probs"):
            body["probs"] = {
                label["name"]: round(float(share), 6) for label, share in zip(labels, probabilities, strict=True)
            }
        return body | {"model_version": str(self.manifest["version"])}

    def probabilities(self, rows: list[list[int]]) -> np.ndarray:
        """FLOAT [rows, labels] of rows of token ids."""
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.manifest["pad_token_id"], np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        (logits,) = self.session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)


def session_options() -> onnxruntime.SessionOptions:
    """On the cores this process may use; idle threads sleep, as in the backend of Triton."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def read_question(request: dict) -> tuple[dict, dict | None]:
    """The question of one request, and what is wrong with it.

    TorchServe has parsed the body already where it is called JSON and is; bytes are a body that is not, or that is
    called something else.
    """
    body = request.get("body")
    if isinstance(body, bytes | bytearray):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return {}, problem(422, "invalid_request", 'the body is not JSON; send {"text": "…"} as application/json')
    if not isinstance(body, dict):
        return {}, problem(422, "invalid_request", 'the body is no JSON object; send {"text": "…"} as application/json')
    for key, value in body.items():
        if key not in KEYS:
            return {}, problem(422, "invalid_request", f"{key!r:.50} is not known; send {' and '.join(KEYS)} only")
        if not isinstance(value, KEYS[key]):
            return {}, problem(422, "invalid_request", f"{key} is {value!r:.50}; it must be a {KEYS[key].__name__}")
    if "text" not in body:
        return {}, problem(422, "invalid_request", 'text is missing; send {"text": "…"}')
    if len(body["text"]) > LONGEST_TEXT:
        return {}, problem(
            413, "payload_too_large",
            f"text has {len(body['text'])} characters, the limit is {LONGEST_TEXT}; shorten it",
        )  # fmt: skip
    whole = body["text"].encode("utf-8", "replace").decode()  # JSON can spell half a character, which is no text
    return body | {"text": whole}, None


def problem(status: int, code: str, detail: str) -> dict:
    """RFC 9457, as the gateway's errors."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
