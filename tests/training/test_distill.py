"""A student learns from a teacher: what it is given, and what it makes of it. Reviews are generated, models tiny."""

import gzip
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification

from training.batches import EncodedTexts, pad_batch
from training.config import POLARITY, DatasetConfig, TrainingConfig
from training.data import REST, TEST, TRAIN, Dataset, open_dataset
from training.distill import mix, taught
from training.encoders import load_classifier
from training.errors import CheckpointError
from training.evaluate import predict_logits
from training.finetune import GroupedTrainer
from training.search import read_trial
from training.trainer import SentimentTrainer
from training.vocabulary import train_tokenizer

KNOWN = (["별로", "최악"], ["명작", "감동"])
UNSEEN = (["하품", "수면제"], ["꿀잼", "띵작"])  # no labelled review of the student's holds one of these
OTHERS = [f"낱말{index}" for index in range(40)]


def reviews(telling: tuple[list[str], list[str]], rows: int, chance: random.Random) -> list[tuple[str, int]]:
    """In each, one word among six tells its label."""
    labels = [row % 2 for row in range(rows)]
    return [
        (" ".join(chance.sample([*chance.sample(OTHERS, 5), chance.choice(telling[label])], 6)), label)
        for label in labels
    ]


def write_nsmc(folder: Path, train: list, test: list, rest: list) -> Path:
    folder.mkdir()
    for name, rows in ((TRAIN, train), (TEST, test)):
        lines = [f"{number}\t{text}\t{label}" for number, (text, label) in enumerate(rows)]
        (folder / name).write_text("\n".join(["id\tdocument\tlabel", *lines]) + "\n", encoding="utf-8")
    with gzip.open(folder / REST, "wt", encoding="utf-8") as file:
        file.write("\n".join(["document\trating", *(f"{text}\t{rating}" for text, rating in rest)]) + "\n")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """NSMC as the teacher has it, all words in its train part; and as the student, who meets half of them in the rest.

    The student's rest also holds what must not be learned from: texts of test and of dev.
    """
    home, chance = tmp_path_factory.mktemp("nsmc"), random.Random(1)
    every = tuple(known + unseen for known, unseen in zip(KNOWN, UNSEEN, strict=True))
    test = reviews(every, 200, chance)
    train = reviews(KNOWN, 400, chance)
    rest = [(text, (2 + 7 * label, 6)[row % 3 == 0]) for row, (text, label) in enumerate(reviews(every, 900, chance))]
    held = [(text, 2 + 7 * label) for text, label in [*test[:30], *train]]
    return (
        write_nsmc(home / "teacher", reviews(every, 900, chance), test, []),
        write_nsmc(home / "student", train, test, [*rest, *held]),
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    words = [*OTHERS, *(word for words in (*KNOWN, *UNSEEN) for word in words)]
    tokenizer = train_tokenizer(words * 5, 400, max_length=32)
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=len(tokenizer), hidden_size=32, embedding_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    config.id2label, config.label2id = dict(enumerate(POLARITY)), {name: index for index, name in enumerate(POLARITY)}
    ElectraForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trainer(folders, encoder, tmp_path_factory):
    """Makes a SentimentTrainer that reads the NSMC of that name."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NUNCHI_VAR", str(tmp_path_factory.mktemp("var")))
        environment.delenv("NUNCHI_MLFLOW_TRACKING_URI", raising=False)

        def make(name: str, teachers=()) -> SentimentTrainer:
            config = TrainingConfig(
                dataset={"folder": next(folder for folder in folders if folder.name == name), "dev_share": 0.15},
                model={"encoder": str(encoder), "max_length": 32},
                train={
                    "epochs": 5, "batch_size": 32, "learning_rate": 1e-2, "precision": "fp32", "word_dropout": 0.0,
                    "label_smoothing": 0.0, "teachers": list(teachers),
                },
            )  # fmt: skip
            return SentimentTrainer(config)

        yield make


@pytest.fixture(scope="module")
def teacher(trainer) -> SentimentTrainer:
    trained = trainer("teacher")
    trained.train()
    return trained


@pytest.fixture(scope="module")
def dataset(trainer) -> Dataset:
    return open_dataset(trainer("student").config.dataset, cache=Path("unused"))


def test_targets_mix_the_true_label_with_the_teachers_where_there_is_one():
    soft = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    targets = mix(soft, np.array([0, 0, -1]), hard_share=0.3)
    assert targets == pytest.approx(np.array([[0.93, 0.07], [0.44, 0.56], [0.6, 0.4]]))
    assert soft[0] == pytest.approx([0.9, 0.1])  # what the teachers said stays


def test_all_that_may_be_learned_from_is_taught_and_nothing_else(teacher, dataset):
    lessons = taught(dataset, [teacher.checkpoint], 32)
    labelled, dev = dataset.learning_parts()
    texts = lessons.document.tolist()
    assert texts[: len(labelled)] == labelled.document.tolist() and len(texts) == len(set(texts))
    assert not set(texts) & {*dev.document, *dataset.test().document}
    others = len(texts) - len(labelled)
    assert others == pytest.approx(900 * 0.95 * 0.85, rel=0.1)  # those of the rest, less the stars' own test and dev
    assert labelled.label.isin([0, 1]).all()  # the dataset's own part stays as it was


def test_without_further_reviews_the_labelled_ones_are_taught(teacher, folders, tmp_path):
    labelled_only = tmp_path / "labelled"
    shutil.copytree(folders[1], labelled_only, ignore=lambda *_: [REST])
    files = {"kind": "files", "train": folders[1] / TRAIN, "test": folders[1] / TEST}
    for config in (DatasetConfig(folder=labelled_only), DatasetConfig(**files)):
        dataset = open_dataset(config, cache=Path("unused"))
        texts = taught(dataset, [teacher.checkpoint], 32).document
        assert texts.tolist() == dataset.learning_parts()[0].document.tolist()


def test_targets_are_the_mean_of_the_teachers_and_0_3_of_the_true_label(teacher, encoder, dataset):
    """Also where they read the beginnings of the reviews only."""
    folders, max_length = [teacher.checkpoint, encoder], 6
    lessons = taught(dataset, folders, max_length)
    said = []
    for folder in folders:
        torch.manual_seed(0)
        model, tokenizer = load_classifier(str(folder), POLARITY)
        texts = EncodedTexts(tokenizer, lessons.document.tolist(), [0] * len(lessons), max_length)
        said.append(torch.from_numpy(predict_logits(model, texts)).softmax(1).numpy())
    mean = np.mean(said, axis=0)
    labelled, _ = dataset.learning_parts()
    expected = mean.copy()
    expected[: len(labelled)] = 0.7 * mean[: len(labelled)] + 0.3 * np.eye(2)[labelled.label]
    targets = np.stack(lessons.label)
    assert targets.dtype == np.float32 and targets.sum(1) == pytest.approx(1, abs=1e-5)
    assert targets == pytest.approx(expected, abs=0.02)  # the teachers read in bfloat16


def test_the_loss_against_distributions_is_their_cross_entropy(encoder):
    model, tokenizer = load_classifier(str(encoder), POLARITY)
    model.eval()
    targets = np.array([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5]], np.float32)
    texts = EncodedTexts(tokenizer, ["별로", "명작 감동", "낱말1"], list(targets), 32)
    batch = pad_batch([texts[index] for index in range(3)], pad_token_id=0)
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (3, 2)
    loss, outputs = GroupedTrainer.compute_loss(None, model, batch, return_outputs=True)
    logits = outputs.logits.detach().numpy().astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert loss.item() == pytest.approx(-(targets * log_probabilities).sum(1).mean(), rel=1e-5)


def test_a_student_learns_from_its_teacher_what_its_own_labels_do_not_say(trainer, teacher, dataset):
    test = dataset.test()

    def accuracy(trained: SentimentTrainer) -> float:
        model, tokenizer = load_classifier(str(trained.checkpoint), POLARITY)
        texts = EncodedTexts(tokenizer, test.document.tolist(), test.label.tolist(), 32)
        return (predict_logits(model, texts).argmax(1) == test.label).mean()

    alone, student = trainer("student"), trainer("student", [teacher.checkpoint])
    alone.train()
    learned = student.train()
    assert accuracy(teacher) > 0.95 and accuracy(alone) < 0.85
    assert accuracy(student) >= accuracy(teacher) - 0.03
    assert read_trial(student.checkpoint.parent).state == "finished"
    record = json.loads((student.checkpoint / "training.json").read_text(encoding="utf-8"))
    assert record["config"]["train"]["teachers"] == [str(teacher.checkpoint)]
    assert learned["metrics"]["dataset"] == "student dev"


def test_a_teacher_of_other_labels_is_refused_and_one_in_another_order_is_read_right(teacher, dataset, tmp_path):
    """A fresh head in place of the teacher's own would teach noise."""
    swapped, other = tmp_path / "swapped", tmp_path / "other"
    for folder, names in ((swapped, ["positive", "negative"]), (other, ["bad", "good"])):
        shutil.copytree(teacher.checkpoint, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="answers bad, good, and the dataset is labelled negative, positive"):
        taught(dataset, [other], 32)
    plain = np.stack(taught(dataset, [teacher.checkpoint], 32).label)
    turned = np.stack(taught(dataset, [swapped], 32).label)
    unlabelled = slice(len(dataset.learning_parts()[0]), None)
    assert turned[unlabelled] == pytest.approx(plain[unlabelled][:, ::-1], abs=1e-6)
