"""`python -m export.latency`: what a checkpoint would take when served, in turns with a rival, nothing published."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from export import convert as convert_module
from export import timing
from export.latency import main
from export.timing import BATCH_SIZES, TEXTS, TURNS, Contender, milliseconds_per_text, texts_of_natural_length
from tests.bundles import VOCABULARY, write_bundle
from tests.export.checkpoints import VOCABULARY as WORDS_OF_THE_CHECKPOINT

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A rival with another vocabulary and another max_length than the checkpoint."""
    return write_bundle(tmp_path_factory.mktemp("rival") / "model_repository", max_length=32)


def test_the_command_prints_one_line_of_json_and_publishes_nothing(trained, bundle):
    assert VOCABULARY != WORDS_OF_THE_CHECKPOINT
    before = sorted(bundle.parent.parent.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "export.latency", "--checkpoint", trained, "--against", bundle, "--threads", "1"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert set(answer) == {"milliseconds_per_text", "bytes", "precision", "parity", "against"}
    for figures in (answer, answer["against"]):
        assert set(figures["milliseconds_per_text"]) == {"1", "8", "32"}
        assert all(milliseconds > 0 for milliseconds in figures["milliseconds_per_text"].values())
    assert answer["against"]["bytes"] == (bundle / "model.onnx").stat().st_size
    assert answer["precision"] == "int8"
    assert answer["parity"]["attempts"][-1]["accepted"]
    assert "labels agree on" in done.stderr, "progress"
    assert sorted(bundle.parent.parent.rglob("*")) == before


def test_without_a_rival_there_is_nothing_against(trained, capsys):
    assert main(["--checkpoint", str(trained), "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["against"] is None


def refusal(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("error: ")
    return printed.err.splitlines()[-1]


def test_a_closed_gate_is_one_error_line(trained, capsys, monkeypatch):
    monkeypatch.setattr(convert_module.parity, "complaint", lambda *_: "labels agree on 12 %")
    assert "does not answer like torch" in refusal(capsys, "--checkpoint", trained)


def test_a_broken_rival_is_refused_before_any_work(trained, capsys, tmp_path):
    assert "manifest.json cannot be read" in refusal(capsys, "--checkpoint", "/nowhere", "--against", tmp_path)
    assert "/nowhere holds no config.json" in refusal(capsys, "--checkpoint", "/nowhere")


def test_each_contender_reads_its_own_tokens_of_the_same_texts(bundle, trained):
    first = Contender.of_bundle(bundle)
    texts = texts_of_natural_length()
    assert len(texts) == max(TEXTS.values())
    for size in BATCH_SIZES:
        batches = first.batches(texts, size)
        assert [ids.shape for ids, _ in batches] == [(size, 32)] * (TEXTS[size] // size)
        ids, mask = batches[0]
        assert ids[0][mask[0] == 1].tolist() == first.tokenizer.encode(texts[0]).ids


def test_contenders_answer_in_turns(bundle, monkeypatch):
    asked = []
    answer = timing.OnnxModel.logits

    def noting(model, ids, mask):
        asked.append(ids.shape[1])
        return answer(model, ids, mask)

    first = Contender.of_bundle(bundle)
    second = dataclasses.replace(first, max_length=40)
    monkeypatch.setattr(timing.OnnxModel, "logits", noting)
    figures = milliseconds_per_text([first, second], texts_of_natural_length(), 1)
    assert [set(figure) for figure in figures] == [set(BATCH_SIZES)] * 2
    rounds = TURNS * sum(TEXTS[size] // size for size in BATCH_SIZES)
    assert asked == [32, 40] * rounds
