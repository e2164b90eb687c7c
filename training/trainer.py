"""One training run without a search, and what one may want to do with its model.

    python -m training.trainer [--config FILE] [--section.key value …]
    python -m training.trainer --interactive [--language en]      … then: register it? as what? what does it say to …?

It leaves the same folder as a search with one trial, so tracking and registry take it as they take any other.
"""

import argparse
import functools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerFast

from training import tracking
from training.config import TrainingConfig, add_config_arguments, load_config, parse_config
from training.data import Dataset, open_dataset
from training.errors import TrackingError, TrainingError
from training.finetune import Finetuned, finetune
from training.predict import SentimentPredictor, as_line
from training.registry import Registry
from training.search import (
    CHECKPOINT,
    Trial,
    begin_search,
    now,
    read_search,
    read_trial,
    trial_folder,
    write_search,
    write_trial,
)
from training.settings import Settings, read_settings

log = logging.getLogger(__name__)

ONLY_TRIAL = "1"
INTERRUPTED = 130


@dataclass(frozen=True, eq=False)
class DataModule:
    """What a model learned from and was chosen by: ``document`` (text) and ``label`` (index), and its tokenizer."""

    train: pd.DataFrame
    dev: pd.DataFrame
    tokenizer: PreTrainedTokenizerFast
    dataset: Dataset

    @functools.cached_property
    def test(self) -> pd.DataFrame:
        """Read when it is asked for; choosing by it would make its figures worthless."""
        return self.dataset.test()


class SentimentTrainer:
    """Trains one model as ``config`` says: a TrainingConfig, a YAML file, or the default (configs/nano.yaml).

    After `train`, ``folder`` is its folder under var/searches.
    """

    def __init__(self, config: TrainingConfig | Path | None = None):
        self.config = config if isinstance(config, TrainingConfig) else load_config(config and Path(config), [])
        self.settings: Settings = read_settings()
        self.folder: Path | None = None

    @property
    def checkpoint(self) -> Path:
        return trial_folder(self.folder, ONLY_TRIAL) / CHECKPOINT

    def train(self) -> dict[str, Any]:
        """Train and choose the best epoch on dev; test is not read.

        Returns:
            run_id (MLflow's; None while it is away), metrics (on dev), run_name, model, tokenizer, data_module.

        Raises:
            TrainingError: data, encoder or a value cannot be used, or the model collapsed.
        """
        dataset = open_dataset(self.config.dataset, cache=self.settings.var / "data")
        self.folder = self._begin(dataset)
        tuned = self._learn(dataset)
        train, dev = dataset.learning_parts()
        return {
            "run_id": self._run_id(),
            "metrics": tuned.dev_metrics,
            "run_name": self.folder.name,
            "model": tuned.model,
            "tokenizer": tuned.tokenizer,
            "data_module": DataModule(train, dev, tuned.tokenizer, dataset),
        }

    def _begin(self, dataset: Dataset) -> Path:
        name = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        folder = begin_search(self.settings.searches, name, self.config, dataset, single=True)
        write_trial(trial_folder(folder, ONLY_TRIAL), Trial(name=ONLY_TRIAL, params={}, started=now()))
        return folder

    def _learn(self, dataset: Dataset) -> Finetuned:
        """Whatever happens is on record when this ends."""
        folder = trial_folder(self.folder, ONLY_TRIAL)
        try:
            tuned = finetune(self.config, dataset, folder, callbacks=[lambda _: self._project()])
        except BaseException as exc:
            why = str(exc) or type(exc).__name__
            write_trial(folder, replace(read_trial(folder), state="failed", ended=now(), error=why))
            self._end(best=None)
            raise
        trial = read_trial(folder)
        state = "finished" if len(trial.epochs) >= self.config.train.epochs else "stopped"
        write_trial(folder, replace(trial, state=state, ended=now()))
        self._end(best=ONLY_TRIAL)
        return tuned

    def _end(self, best: str | None) -> None:
        write_search(self.folder, replace(read_search(self.folder), finished=now(), best=best))
        self._project()

    def _project(self) -> str | None:
        return tracking.project(self.folder, self.settings)

    def _run_id(self) -> str | None:
        if self._project() is None:
            return None
        try:
            return tracking.run_id_of(self.folder, ONLY_TRIAL, self.settings)
        except TrackingError as exc:
            log.warning("%s", exc)
            return None


@dataclass(frozen=True)
class Wording:
    """What the interactive session says, in one language; the sentences of the gates and of refusals are English."""

    language: str
    trained: str
    register: str
    yes_or_no: str
    registered: str
    stage: str
    one_to_three: str
    judging: str
    now_in: str
    failed: str
    sentence: str
    done: str


KOREAN = Wording(
    language="ko",
    trained="학습이 끝났습니다: 검증(dev) 정확도 {accuracy:.4f}, F1 {f1:.4f} ({folder})",
    register="이 모델을 등록할까요? (y/n): ",
    yes_or_no="y 또는 n으로 답해 주세요.",
    registered="버전 {number}(으)로 등록했습니다: 시험(test) 정확도 {accuracy:.4f}, F1 {f1:.4f}",
    stage=(
        "단계를 번호로 고르세요.\n"
        "  1) Candidate  후보로 그대로 둡니다\n"
        "  2) Champion   관문을 통과하면 승격합니다\n"
        "  3) Archived   보관합니다\n"
        "번호: "
    ),
    one_to_three="1, 2, 3 가운데 하나를 입력해 주세요.",
    judging=(
        "세 관문을 확인합니다: better(지금 Champion보다 나은지), behaviour(점검 문장을 맞히는지), latency(빠른지).\n"
        "관문마다 통과(passed) 또는 실패(failed)와 그 근거가 영어로 나옵니다."
    ),
    now_in="버전 {number}의 단계: {stage}",
    failed="안 되었습니다. 이유(영어): {reason}",
    sentence="문장 (빈 줄이면 끝): ",
    done="끝.",
)
ENGLISH = Wording(
    language="en",
    trained="Trained: dev accuracy {accuracy:.4f}, F1 {f1:.4f} ({folder})",
    register="Register this model? (y/n): ",
    yes_or_no="Please answer y or n.",
    registered="Registered as version {number}: test accuracy {accuracy:.4f}, F1 {f1:.4f}",
    stage=(
        "Choose its stage by number.\n"
        "  1) Candidate  leave it as it is\n"
        "  2) Champion   promote it, if it passes the gates\n"
        "  3) Archived   put it away\n"
        "Number: "
    ),
    one_to_three="Please enter 1, 2 or 3.",
    judging="Three gates: better than the Champion now, behaviour on the suite's sentences, latency of the export.",
    now_in="Version {number} is now: {stage}",
    failed="That did not work: {reason}",
    sentence="Sentence (empty line to end): ",
    done="Done.",
)
LANGUAGES = {words.language: words for words in (KOREAN, ENGLISH)}

YES, NO = (
    {"y", "yes", "ㅛ", "네", "예"},
    {"n", "no", "ㅜ", "아니요", "아니오"},
)  # ㅛ, ㅜ: the keys y and n, Hangul left on


class Session:
    """The questions after a training run, asked in the terminal. The end of the input ends it at any question."""

    def __init__(self, trainer: SentimentTrainer, words: Wording):
        self.trainer = trainer
        self.words = words

    def run(self) -> None:
        try:
            if self._ask(self.words.register, _yes_or_no, self.words.yes_or_no):
                self._register()
            self._try_sentences()
        except EOFError:
            print()
        print(self.words.done)

    def _register(self) -> None:
        registry = Registry(self.trainer.settings)
        try:
            version = registry.register(self.trainer.folder, ONLY_TRIAL)
        except TrainingError as exc:
            print(self.words.failed.format(reason=exc))
            return
        print(self.words.registered.format(number=version.number, **version.metrics))
        stage = self._ask(self.words.stage, {"1": 1, "2": 2, "3": 3}.get, self.words.one_to_three)
        try:
            if stage == 2:
                print(self.words.judging, flush=True)
                registry.promote(version.number)
            elif stage == 3:
                registry.archive(version.number)
        except TrainingError as exc:
            print(self.words.failed.format(reason=exc))
        print(self.words.now_in.format(number=version.number, stage=registry.version(version.number).stage))

    def _try_sentences(self) -> None:
        predictor = SentimentPredictor(self.trainer.checkpoint)
        while sentence := input(self.words.sentence).strip():
            try:
                print(as_line(predictor.predict(sentence, return_probs=True), self.words.language))
            except ValueError as exc:
                print(self.words.failed.format(reason=exc))

    def _ask(self, question: str, meaning: Callable[[str], Any], again: str) -> Any:
        """Ask until the answer means something; ``meaning`` gives None for one that does not."""
        while (answer := meaning(input(question).strip())) is None:
            print(again)
        return answer


def _yes_or_no(answer: str) -> bool | None:
    return True if answer.lower() in YES else False if answer.lower() in NO else None


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m training.trainer", description="Train one model.")
    parser.add_argument("--interactive", action="store_true", help="then ask what to do with it, in the terminal")
    parser.add_argument("--language", choices=list(LANGUAGES), default="ko", help="of those questions (default: ko)")
    add_config_arguments(parser)
    try:
        options, config = parse_config(parser, argv)
        words = LANGUAGES[options.language] if options.interactive else ENGLISH
        trainer = SentimentTrainer(config)
        metrics = trainer.train()["metrics"]
        print(words.trained.format(folder=trainer.folder, **metrics))
        if options.interactive:
            Session(trainer, words).run()
        else:
            print(f"next: python -m training.registry register {trainer.folder.name}")
    except TrainingError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
