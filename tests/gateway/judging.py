"""Golden rows as the judge of answers: right only if tokens and probabilities are those of the version they name."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.bundles import MODEL
from tests.gateway.served_app import ServedApp

CLOSE = 1e-3  # versions differ by more than the golden tolerance, 0.02


class Judge:
    """Knows the golden rows of every version of a repository."""

    def __init__(self, repository: Path) -> None:
        manifests = [json.loads(file.read_text()) for file in (repository / MODEL).glob("*/manifest.json")]
        self.rows = {str(each["version"]): {row["text"]: row for row in each["golden"]} for each in manifests}
        self.names = {str(each["version"]): [label["name"] for label in each["labels"]] for each in manifests}
        self.texts = [row["text"] for row in manifests[0]["golden"]]

    def fault(self, text: str, answer: httpx.Response) -> str | None:
        """What is wrong with an answer to POST /v1/predict with `return_probs`, or None."""
        if answer.status_code != 200:
            return answer.text
        body = answer.json()
        version = answer.headers["x-model-version"]
        row = self.rows[version][text]
        if body["model_version"] != version:
            return f"header {version}, body {body['model_version']}"
        if body["input_tokens"] != len(row["input_ids"]):
            return f"{body['input_tokens']} tokens, version {version} makes {len(row['input_ids'])}"
        expected = dict(zip(self.names[version], row["probabilities"], strict=True))
        if body["probs"] != pytest.approx(expected, abs=CLOSE):
            return f"{body['probs']}, version {version} says {expected}"
        return None

    def label(self, version: int, text: str) -> str:
        probabilities = self.rows[str(version)][text]["probabilities"]
        return self.names[str(version)][probabilities.index(max(probabilities))]


@dataclass
class Heard:
    """What callers heard: the versions, in order, and whatever was wrong."""

    versions: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@contextmanager
def callers(app: ServedApp, judge: Judge, *, count: int = 3) -> Iterator[Heard]:
    """Golden texts asked without a pause by `count` clients while the block runs, every answer judged."""
    heard, stop = Heard(), threading.Event()

    def ask(first: int) -> None:
        with httpx.Client(base_url=app.url, timeout=30) as client:
            turn = first
            while not stop.is_set():
                text = judge.texts[turn % len(judge.texts)]
                answer = client.post("/v1/predict", json={"text": text, "return_probs": True})
                if fault := judge.fault(text, answer):
                    heard.faults.append(fault)
                heard.versions.append(answer.headers["x-model-version"])
                turn += 1

    threads = [threading.Thread(target=ask, args=[7 * number]) for number in range(count)]
    for each in threads:
        each.start()
    try:
        yield heard
    finally:
        stop.set()
        for each in threads:
            each.join()
