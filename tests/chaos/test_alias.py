"""From the registry to the callers: `python -m export --watch` follows the Champion of a real MLflow, under load."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tokenizers import processors

from loadtest.traffic import Oracle, Traffic
from tests.chaos.processes import fate_of
from tests.stack_process import ROOT, Stack

pytestmark = pytest.mark.full  # MLflow and torch take their time to start

RATE = 50.0
MOVES = 3
ANSWER_SECONDS = 120.0  # for a machine that is busy; the figure is what counts
METRICS = {
    "dataset": "sample test",
    "rows": 1200,
    "accuracy": 0.987,
    "accuracy_interval": [0.98, 0.992],
    "f1": 0.986,
    "confusion": [[593, 7], [9, 591]],
}


@contextmanager
def watching(stack: Stack, reviews: Path) -> Iterator[None]:
    """The command, once it says that it watches."""
    log = stack.var / "watch.txt"
    command = [sys.executable, "-m", "export", "--watch", "--precision", "fp32", "--data", str(reviews)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=stack.environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while "watching the Champion" not in log.read_text(encoding="utf-8"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text(encoding="utf-8")


def checkpoint(folder: Path, marks: int) -> Path:
    """As training leaves one, with weights of its own; its tokenizer ends a text with so many marks."""
    from transformers import ElectraConfig, PreTrainedTokenizerFast

    from tests.export.checkpoints import CONFIGS, make_model, make_tokenizer, save_checkpoint

    model = make_model(ElectraConfig(**CONFIGS["electra, projection"].to_diff_dict()), seed=marks)
    tokenizer = make_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A" + " [SEP]" * marks, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    save_checkpoint(folder, model)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    record = {"encoder": "nano", "labels": ["negative", "positive"], "max_length": 24, "dataset": "sample"}
    (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.fixture
def register(monkeypatch) -> Callable[[Stack, Path], Callable[[], None]]:
    """Logs and registers a checkpoint; what it returns makes it the Champion."""

    def register(stack: Stack, checkpoint: Path) -> Callable[[], None]:
        from training import tracking
        from training.settings import Settings

        monkeypatch.setenv("NUNCHI_VAR", str(stack.var))
        monkeypatch.delenv("NUNCHI_MLFLOW_TRACKING_URI", raising=False)
        settings = Settings()
        client = tracking.connect(settings)
        (experiment,) = (each for each in client.search_experiments() if each.name != "Default")
        run = client.create_run(experiment.experiment_id).info.run_id
        uri = tracking.log_model(run, checkpoint, settings)
        if not client.search_registered_models():
            client.create_registered_model(settings.registered_model)
        tags = {"metrics": json.dumps(METRICS), "labels": '["negative", "positive"]', "stage": "Champion"}
        version = client.create_model_version(settings.registered_model, uri, run, tags=tags).version
        return lambda: client.set_registered_model_alias(settings.registered_model, "champion", version)

    return register


def test_an_alias_that_moves_in_mlflow_is_answered_by_the_new_version_by_itself(
    running_stack, register, tmp_path, figures
):
    from tests.export.checkpoints import labelled_reviews, write_reviews

    reviews = write_reviews(tmp_path / "reviews.tsv", labelled_reviews())
    seconds = []
    with running_stack() as stack:
        first = json.loads((stack.repository / "serving.json").read_text(encoding="utf-8"))["version"]
        oracle = Oracle.of(stack.repository)
        crowns = [register(stack, checkpoint(tmp_path / str(move), 1 + move)) for move in range(MOVES)]
        with watching(stack, reviews), Traffic(stack.url, oracle, RATE, processes=1) as traffic:
            traffic.wait_for(20, time.monotonic(), 20)
            for version, crown in enumerate(crowns, first + 1):
                moved = time.monotonic()
                crown()
                seconds.append(first_answer(stack, traffic, str(version), moved) - moved)
    figures.record(
        "alias moved in MLflow", "to the first answer", sorted(seconds)[MOVES // 2], "s",
        f"export --watch, small model, median of {MOVES}; longest {max(seconds):.1f} s, {len(traffic.outcomes)} "
        f"requests meanwhile, {len(traffic.failures())} failed",
    )  # fmt: skip
    assert not traffic.failures(), fate_of(traffic.failures())
    assert not traffic.refusals(), fate_of(traffic.refusals())
    assert set(traffic.versions()) == {str(first + move) for move in range(MOVES + 1)}


def first_answer(stack: Stack, traffic: Traffic, version: str, after: float) -> float:
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        arrived = [each.done for each in traffic.since(after) if each.right and each.version == version]
        if arrived:
            return min(arrived)
        time.sleep(0.05)
    raise AssertionError(f"version {version} never answered: {(stack.var / 'watch.txt').read_text(encoding='utf-8')}")
