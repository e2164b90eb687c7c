"""A run without a search, and the conversation after it."""

import json
import logging
import os
import pty
import random
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification

import training
from training import trainer as trainer_module
from training.config import load_config
from training.errors import CheckpointError, ConfigRefused
from training.search import best_trial, read_search, read_trials
from training.settings import read_settings
from training.trainer import LANGUAGES, SentimentTrainer, Session
from training.vocabulary import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent


WORDS = ["영화", "배우", "연기", "음악", "결말", "대사", "장면", "이야기", "주인공", "자막", "정말", "그냥"]
TELLING = [["별로", "최악"], ["명작", "감동"]]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A folder with reviews in which one word decides, learnable in seconds, and a small encoder that knows nothing."""
    folder = tmp_path_factory.mktemp("material")
    chance = random.Random(1)
    for name, rows in (("train.tsv", 500), ("test.tsv", 120)):
        texts = [[*chance.choices(WORDS, k=3), chance.choice(TELLING[row % 2])] for row in range(rows)]
        lines = [f"{' '.join(text)}\t{row % 2}" for row, text in enumerate(texts)]
        (folder / name).write_text("\n".join(["document\tlabel", *lines]) + "\n", encoding="utf-8")
    tokenizer = train_tokenizer((folder / "train.tsv").read_text(encoding="utf-8").splitlines(), 300)
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.1,
    )
    ElectraForSequenceClassification(config).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A state of its own, with MLflow on SQLite in it, and no served model."""
    home = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("NUNCHI_"):
                patch.delenv(name)
        patch.setenv("NUNCHI_VAR", str(home / "var"))
        patch.setenv("NUNCHI_MODEL_REPOSITORY", str(home / "model_repository"))
        yield home


def values_for(material: Path, *more: str) -> list[str]:
    values = {
        "dataset.kind": "files",
        "dataset.train": material / "train.tsv",
        "dataset.test": material / "test.tsv",
        "dataset.dev_share": 0.2,
        "model.encoder": material / "tiny",
        "model.max_length": 24,
        "train.epochs": 2,
        "train.batch_size": 16,
        "train.word_dropout": 0,
        "train.learning_rate": 5e-3,
        "train.precision": "fp32",
    }
    return [f"--{path}={value}" for path, value in values.items()] + list(more)


def config_for(material: Path, *more: str):
    return load_config(None, values_for(material, *more))


@pytest.fixture(scope="module")
def trained(environment, material):
    trainer = SentimentTrainer(config_for(material))
    return trainer, trainer.train()


@pytest.fixture(scope="module")
def trained_alone(environment, material):
    """While MLflow was away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUNCHI_MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # discard: nobody listens
        trainer = SentimentTrainer(config_for(material, "--train.seed=2"))
        return trainer, trainer.train()


def test_importing_the_package_is_light_and_its_two_names_are_found():
    code = "import sys, training; print('torch' in sys.modules, 'mlflow' in sys.modules, sorted(training.__all__))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False False ['SentimentPredictor', 'SentimentTrainer']"
    from training import SentimentTrainer as found

    assert found is SentimentTrainer
    assert {"SentimentTrainer", "SentimentPredictor"} <= set(dir(training))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = training.Nonsense


def test_training_returns_what_the_seed_returned(trained):
    trainer, result = trained
    assert set(result) == {"run_id", "metrics", "run_name", "model", "tokenizer", "data_module"}
    assert result["run_name"] == trainer.folder.name
    data = result["data_module"]
    assert data.tokenizer is result["tokenizer"]
    assert result["metrics"]["rows"] == len(data.dev) > 80 and result["metrics"]["f1"] > 0.9
    assert not set(data.dev.document) & set(data.train.document)
    assert len(data.test) == 120
    assert result["model"].config.id2label == {0: "negative", 1: "positive"}


def test_the_run_lies_on_disk_as_a_search_with_one_trial(trained):
    trainer, result = trained
    search = read_search(trainer.folder)
    (trial,) = read_trials(trainer.folder)
    assert (search.best, trial.state, len(trial.epochs)) == (trial.name, "finished", 2)
    assert search.finished and trial.ended and best_trial(trainer.folder) == trial
    record = json.loads((trainer.checkpoint / "training.json").read_text(encoding="utf-8"))
    assert record["dev_metrics"] == result["metrics"]


def test_mlflow_has_the_run(trained):
    trainer, result = trained
    from training.tracking import connect

    run = connect(trainer.settings).get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["nunchi.search"] == trainer.folder.name


def test_with_mlflow_away_the_run_goes_on_and_has_no_id(trained_alone):
    trainer, result = trained_alone
    assert result["run_id"] is None and result["metrics"]["f1"] > 0.9
    assert read_search(trainer.folder).best == best_trial(trainer.folder).name


def test_a_run_that_fails_says_so_on_disk(environment, material):
    trainer = SentimentTrainer(config_for(material, "--model.encoder=/nowhere/at/all"))
    with pytest.raises(CheckpointError):
        trainer.train()
    (trial,) = read_trials(trainer.folder)
    assert trial.state == "failed" and "no encoder could be loaded" in trial.error
    assert read_search(trainer.folder).finished and read_search(trainer.folder).best is None


def test_a_yaml_can_be_named(environment, tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {epochs: 7}\n")
    assert SentimentTrainer(tmp_path / "mine.yaml").config.train.epochs == 7
    with pytest.raises(ConfigRefused, match="no value"):
        (tmp_path / "mine.yaml").write_text("train: {epoch: 7}\n")
        SentimentTrainer(tmp_path / "mine.yaml")


def test_the_command_says_in_one_line_what_is_wrong(environment, material, capsys):
    assert trainer_module.main(values_for(material, "--model.encoder=/nowhere/at/all")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: no encoder could be loaded from '/nowhere/at/all'")


def answer(monkeypatch, *answers: str) -> None:
    """What the person types; then the input ends."""
    typed = iter(answers)

    def read(prompt: str) -> str:
        print(prompt, end="")
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def talk(trained, capsys, monkeypatch, *answers: str, language: str = "ko") -> str:
    answer(monkeypatch, *answers)
    Session(trained[0], LANGUAGES[language]).run()
    return capsys.readouterr().out


def test_a_model_that_is_not_registered_can_still_be_tried(trained, capsys, monkeypatch):
    said = talk(trained, capsys, monkeypatch, "뭐", "n", "정말 감동 명작", "<br>", "")
    assert said.count("등록할까요") == 2 and "y 또는 n으로 답해 주세요." in said
    assert re.search(r"(부정|긍정)  +[\d.]+%  부정 +[\d.]+%  긍정 +[\d.]+%  정말 감동 명작\n", said)
    assert "안 되었습니다. 이유(영어): text 1 of 1 is empty once it is cleaned" in said
    assert said.endswith("끝.\n")


def test_the_end_of_the_input_ends_it_at_any_question(trained, capsys, monkeypatch):
    assert talk(trained, capsys, monkeypatch).endswith("끝.\n")
    said = talk(trained, capsys, monkeypatch, "n", "좋다", language="en")
    assert said.endswith("Done.\n")
    assert re.search(r"(negative|positive)  +[\d.]+%  negative +[\d.]+%  positive +[\d.]+%  좋다\n", said)
    assert "긍정" not in said and "부정" not in said


def test_registered_it_is_a_candidate_and_can_be_archived_by_number(trained, capsys, monkeypatch):
    from training.registry import Registry

    said = talk(trained, capsys, monkeypatch, "y", "4", "Champion", "3", "")
    assert "버전 1(으)로 등록했습니다: 시험(test) 정확도 " in said
    assert said.count("1, 2, 3 가운데 하나를") == 2
    assert "버전 1의 단계: Archived" in said
    (version,) = Registry(trained[0].settings).versions()
    assert (version.number, version.stage) == (1, "Archived")
    again = talk(trained, capsys, monkeypatch, "y", "", language="en")
    assert "That did not work: " in again and "Done." in again


def test_what_the_gates_refuse_stays_a_candidate(trained_alone, capsys, monkeypatch, caplog):
    """The gates speak English, so a Korean sentence comes before."""
    trainer, _ = trained_alone
    trainer.settings = read_settings()  # MLflow is back
    sentences = logging.StreamHandler(sys.stdout)
    monkeypatch.setattr(logging.getLogger("training.promote"), "handlers", [sentences])
    caplog.set_level("INFO", "training")
    said = talk(trained_alone, capsys, monkeypatch, "y", "2", "")
    introduced, behaviour, reason = (
        said.index(words)
        for words in ("세 관문을 확인합니다: better(", "  behaviour failed: ", "안 되었습니다. 이유(영어): version")
    )
    assert introduced < behaviour < reason < said.index(" is not promoted: behaviour failed")
    assert "의 단계: Candidate" in said


def test_in_a_real_terminal_from_the_command_to_the_last_sentence(environment, material):
    """A pty: what is typed, what is shown, in Korean, and Ctrl-D at the end."""
    command = [sys.executable, "-m", "training.trainer", "--interactive", *values_for(material, "--train.epochs=1")]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=subprocess.STDOUT) as process:
        os.close(theirs)
        terminal = Terminal(ours)
        terminal.wait_for("등록할까요? (y/n): ")
        terminal.type("n\n")
        terminal.wait_for("문장 (빈 줄이면 끝): ")
        terminal.type("정말 감동 명작\n")
        terminal.wait_for("%  정말 감동 명작")
        terminal.wait_for("문장 (빈 줄이면 끝): ")
        terminal.type("\x04")
        terminal.wait_for("끝.")
        assert process.wait(timeout=60) == 0
    os.close(ours)


class Terminal:
    """The other end of a pty: waits for a text, not for a time."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.shown = b""

    def wait_for(self, text: str, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while text.encode() not in self.shown:
            ready, _, _ = select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))
            try:
                read = os.read(self.descriptor, 4096) if ready else b""
            except OSError:  # the other end is closed
                read = b""
            assert read, f"{text!r} was never shown; what was: {self.shown.decode(errors='replace')}"
            self.shown += read
        self.shown = self.shown.partition(text.encode())[2]

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())
