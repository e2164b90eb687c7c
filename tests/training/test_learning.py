"""The road from raw reviews to a classifier, run for real on a small shape and the bundled reviews."""

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from transformers import BertTokenizer as BertTokenizerFast

from training import pretrain
from training.batches import EncodedTexts, LengthGroups, pad_batch
from training.config import POLARITY, STARS, DatasetConfig, TrainingConfig, override
from training.data import SAMPLE, TEST, TRAIN, open_dataset, read_reviews
from training.encoders import load_classifier
from training.errors import CheckpointError, CollapsedModel, ConfigRefused
from training.evaluate import predict_logits
from training.finetune import finetune
from training.record import encoder_name
from training.search import CHECKPOINT, DEV_PREDICTIONS, EPOCHS, append_epoch
from training.vocabulary import SPECIAL_TOKENS, train_tokenizer

TINY = pretrain.Shape(
    vocab_size=2000, embedding_size=64, hidden_size=64, layers=1, heads=2, intermediate_size=64, max_length=48
)
TELLING = [["별로", "최악", "지루함"], ["명작", "감동", "꿀잼"]]


@pytest.fixture(scope="module")
def reviews_folder(tmp_path_factory):
    """Sentences of bundled words in which one of a few telling words decides: learnable in seconds, not by heart."""
    folder = tmp_path_factory.mktemp("generated")
    chance = random.Random(1)
    words = sorted({word for text in read_reviews(SAMPLE).document for word in text.split()})[:400]

    def sentence(label: int) -> str:
        chosen = [*chance.sample(words, chance.randint(2, 8)), chance.choice(TELLING[label])]
        return " ".join(chance.sample(chosen, len(chosen)))

    for name, rows in ((TRAIN, 1000), (TEST, 200)):
        lines = [f"{index}\t{sentence(index % 2)}\t{index % 2}" for index in range(rows)]
        (folder / name).write_text("\n".join(["id\tdocument\tlabel", *lines]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def dataset(reviews_folder):
    return open_dataset(DatasetConfig(name="generated", folder=reviews_folder, dev_share=0.15), cache=reviews_folder)


@pytest.fixture(scope="module")
def pretrained(dataset, tmp_path_factory):
    reviews = dataset.star_reviews()
    return pretrain.pretrain(
        reviews.document.tolist(),
        reviews.label.tolist(),
        tmp_path_factory.mktemp("pretrained") / "tiny",
        start=TINY,
        epochs=2,
        batch_size=32,
        learning_rate=3e-3,
        seed=1,
    )


@pytest.fixture(scope="module")
def config(pretrained) -> TrainingConfig:
    return TrainingConfig(
        model={"encoder": str(pretrained), "max_length": 48},
        train={"epochs": 4, "batch_size": 32, "learning_rate": 1e-3, "word_dropout": 0.05, "precision": "fp32"},
    )


@pytest.fixture(scope="module")
def finetuned(config, dataset, tmp_path_factory):
    return finetune(config, dataset, tmp_path_factory.mktemp("finetuned") / "trial-01")


def read_epochs(folder) -> list[dict]:
    epochs = [json.loads(line) for line in (folder / EPOCHS).read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in epochs]


def test_the_pretrained_folder_is_a_plain_hugging_face_classifier_over_stars(pretrained):
    model = AutoModelForSequenceClassification.from_pretrained(pretrained)
    assert model.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert model.num_parameters() < 200_000


def test_finetuning_finds_the_words_that_tell(finetuned, dataset):
    test = dataset.test()
    texts = EncodedTexts(finetuned.tokenizer, test.document.tolist(), test.label.tolist(), 48)
    assert (predict_logits(finetuned.model, texts).argmax(1) == test.label.to_numpy()).mean() > 0.9


def test_the_checkpoint_repeats_the_recorded_dev_figures(finetuned, dataset):
    checkpoint = finetuned.folder / CHECKPOINT
    record = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
    model, tokenizer = load_classifier(str(checkpoint), record["labels"])
    _, dev = dataset.learning_parts()
    texts = EncodedTexts(tokenizer, dev.document.tolist(), dev.label.tolist(), record["max_length"])
    accuracy = (predict_logits(model, texts).argmax(1) == dev.label.to_numpy()).mean()
    assert accuracy == pytest.approx(record["dev_metrics"]["accuracy"], abs=1e-5)
    assert record["dev_metrics"] == finetuned.dev_metrics
    best = max(read_epochs(finetuned.folder), key=lambda epoch: epoch["dev_f1"])
    assert record["epoch"] == best["epoch"]
    assert record["dataset_fingerprint"] == dataset.fingerprint
    assert record["encoder"] == "tiny"  # the folder's name, as the encoder brought no record of its own
    assert encoder_name(str(checkpoint)) == "tiny"
    assert encoder_name("kcbert-base") == "kcbert-base"


class Killed(BaseException):
    """Ends a run as a signal would: nothing in it may catch this."""


def test_a_run_that_is_cut_off_in_an_epoch_goes_on_to_the_same_end(finetuned, config, dataset, tmp_path):
    def cut(figures):
        if figures["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        finetune(config, dataset, tmp_path, callbacks=[cut])
    # As a kill leaves them: an epoch whose checkpoint was not whole yet, and half a line.
    append_epoch(tmp_path, {**read_epochs(tmp_path)[-1], "epoch": 3})
    with (tmp_path / EPOCHS).open("a", encoding="utf-8") as file:
        file.write('{"epoch": 4, "dev_')
    torn = tmp_path / "work" / "checkpoint-9999"
    torn.mkdir()
    heard = []
    finetune(config, dataset, tmp_path, callbacks=[lambda figures: heard.append(figures["epoch"])], resume=True)
    assert heard == [3, 4]
    for resumed, whole in zip(read_epochs(tmp_path), read_epochs(finetuned.folder), strict=True):
        assert resumed == pytest.approx(whole, rel=1e-4)
    assert not (tmp_path / "work").exists()


def test_the_order_of_the_reviews_follows_from_seed_and_epoch_and_each_epoch_has_its_own(finetuned, dataset):
    train, _ = dataset.learning_parts()
    texts = EncodedTexts(finetuned.tokenizer, train.document.tolist(), train.label.tolist(), 48)

    def order(seed: int, epoch: int) -> list[int]:
        groups = LengthGroups(texts, 32, seed)
        groups.set_epoch(epoch)
        return list(groups)

    assert order(1, 2) == order(1, 2) and sorted(order(1, 2)) == list(range(len(texts)))
    assert len({tuple(order(*drawn)) for drawn in ((1, 0), (1, 1), (1, 2), (2, 0))}) == 4
    lengths = [len(texts.rows[index]) for index in order(1, 0)]
    batches = [lengths[start : start + 32] for start in range(0, len(lengths), 32)]
    assert np.mean([max(batch) - min(batch) for batch in batches]) < (max(lengths) - min(lengths)) / 2


def test_a_run_that_has_ended_is_not_repeated(finetuned, config, dataset):
    before = (finetuned.folder / CHECKPOINT / "model.safetensors").stat().st_mtime_ns
    again = finetune(config, dataset, finetuned.folder, callbacks=[pytest.fail], resume=True)
    assert again.dev_metrics == finetuned.dev_metrics
    assert (finetuned.folder / CHECKPOINT / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_that_gets_no_better_stops_early_and_a_collapsed_one_leaves_no_checkpoint(config, dataset, tmp_path):
    hopeless = override(config, {"train.learning_rate": 1e-9, "train.early_stopping": 1})
    with pytest.raises(CollapsedModel, match="the model answers one class for nearly all dev reviews"):
        finetune(hopeless, dataset, tmp_path)
    assert [epoch["epoch"] for epoch in read_epochs(tmp_path)] == [1, 2]
    assert not (tmp_path / CHECKPOINT).exists()


def test_layer_decay_slows_the_layers_below_the_head(finetuned, config, dataset, tmp_path):
    """Here so much that only the head learns."""
    start = finetuned.folder / CHECKPOINT
    finetune(override(config, {"model.encoder": str(start), "train.layer_decay": 1e-6}), dataset, tmp_path)
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / CHECKPOINT / "model.safetensors")
    moved = {
        name: (after[name] - before[name]).abs().max() for name in before if before[name].shape == after[name].shape
    }
    assert max(distance for name, distance in moved.items() if not name.startswith("classifier.")) < 1e-5
    assert moved["classifier.dense.weight"] > 1e-3


def test_three_labels_are_learned_and_recorded(config, dataset, tmp_path):
    reviews = dataset.train().assign(label=lambda rows: rows.label * 2)
    neutral = reviews[::3].document.replace("|".join(word for words in TELLING for word in words), "보통", regex=True)
    file = tmp_path / "reviews.parquet"
    pd.concat([reviews, pd.DataFrame({"document": neutral, "label": 1})]).to_parquet(file)
    dataset = open_dataset(DatasetConfig(kind="files", train=file, labels=STARS), cache=tmp_path)
    tuned = finetune(override(config, {"train.learning_rate": 2e-3}), dataset, tmp_path / "trial")
    assert tuned.model.config.id2label == dict(enumerate(STARS))
    assert tuned.dev_metrics["f1"] > 0.9 and np.shape(tuned.dev_metrics["confusion"]) == (3, 3)
    record = json.loads((tmp_path / "trial" / CHECKPOINT / "training.json").read_text(encoding="utf-8"))
    assert record["labels"] == STARS
    predictions = pd.read_parquet(tmp_path / "trial" / DEV_PREDICTIONS)
    assert np.stack(predictions.probabilities).shape == (len(predictions), 3)


def test_words_cannot_be_hidden_where_there_is_no_mask(pretrained, config, dataset, tmp_path):
    model, tokenizer = load_classifier(str(pretrained), POLARITY)
    tokenizer.mask_token = None
    model.save_pretrained(tmp_path / "maskless")
    tokenizer.save_pretrained(tmp_path / "maskless")
    maskless = override(config, {"model.encoder": str(tmp_path / "maskless"), "train.word_dropout": 0.1})
    with pytest.raises(ConfigRefused, match=r"train.word_dropout is 0.1, but .*maskless has no \[MASK\].*set it to 0"):
        finetune(maskless, dataset, tmp_path / "trial")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
def test_fp16_without_a_gpu_is_refused_with_the_other_precisions(config, dataset, tmp_path):
    with pytest.raises(ConfigRefused, match=r"train.precision is fp16, which needs a CUDA GPU.*take bf16 or fp32"):
        finetune(override(config, {"train.precision": "fp16"}), dataset, tmp_path)


def test_logits_come_back_in_the_order_of_the_texts(finetuned):
    model, tokenizer = finetuned.model, finetuned.tokenizer
    texts = ["좋다", "정말 재미있고 감동적인 영화였어요 또 보고 싶네요", "별로", "돈 아깝다 시간 아깝다 다시는 안 본다"]
    together = predict_logits(model, EncodedTexts(tokenizer, texts, [0] * 4, 48), batch_size=2)
    for row, text in zip(together, texts, strict=True):
        alone = predict_logits(model, EncodedTexts(tokenizer, [text], [0], 48))[0]
        assert row == pytest.approx(alone, abs=1e-4)


def test_masking_spares_special_tokens_and_padding_and_asks_for_the_hidden_words():
    torch.manual_seed(0)
    items = [{"input_ids": torch.tensor([2, *range(100, 200), 3]), "label": torch.tensor(1)},
             {"input_ids": torch.tensor([2, 50, 3]), "label": torch.tensor(0)}]  # fmt: skip
    batch = pad_batch(items, pad_token_id=0)
    masked, targets = pretrain.mask_words(
        batch["input_ids"], batch["attention_mask"], mask_token_id=4, vocab_size=1000, probability=0.5
    )
    asked = targets != pretrain.IGNORED
    assert 30 < int(asked.sum()) < 70
    assert torch.equal(targets[asked], batch["input_ids"][asked])
    assert torch.equal(masked[~asked], batch["input_ids"][~asked])
    assert not asked[batch["input_ids"] < 5].any()
    assert 0.6 < float((masked[asked] == 4).float().mean()) < 0.95


def test_a_vocabulary_never_outgrows_its_size_and_starts_with_the_special_tokens():
    tokenizer = train_tokenizer(read_reviews(SAMPLE).document.tolist(), 900)
    assert len(tokenizer) <= 900
    assert tokenizer.convert_ids_to_tokens(range(5)) == SPECIAL_TOKENS


def test_words_with_laughter_or_marks_share_their_first_token(finetuned):
    tokenizer = finetuned.tokenizer
    assert (
        tokenizer.tokenize("재밌다ㅋㅋㅋㅋ")[:1]
        == tokenizer.tokenize("재밌다!!")[:1]
        == tokenizer.tokenize("재밌다")[:1]
    )
    assert tokenizer.tokenize("재밌다ㅋㅋㅋㅋ")[-1] == "ㅋㅋ"


def test_a_hub_style_bert_gets_the_cleaning_and_keeps_it_when_saved(tmp_path):
    """KcBERT comes as vocab.txt with a BertTokenizer; transformers rebuilds that class from the vocabulary on load."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "재밌다", "##ㅋㅋ", "굿"]
    BertTokenizerFast({word: index for index, word in enumerate(words)}, do_lower_case=False).save_pretrained(
        tmp_path / "hub"
    )
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "hub")
    model, tokenizer = load_classifier(str(tmp_path / "hub"), ["negative", "neutral", "positive"])
    assert model.config.num_labels == 3
    tokenizer.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    _, reloaded = load_classifier(str(tmp_path / "saved"), ["negative", "neutral", "positive"])
    assert reloaded("<b>재밌다</b>ㅋㅋㅋㅋㅋㅋ👍")["input_ids"] == tokenizer("재밌다 ㅋㅋ 굿")["input_ids"]
    assert reloaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_an_encoder_that_is_nowhere_is_one_sentence_with_the_remedy(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no encoder could be loaded from .*nowhere.* give a local folder"
    ) as info:
        load_classifier(str(tmp_path / "nowhere"), POLARITY)
    assert "\n" not in str(info.value)


def test_pretraining_by_command_leaves_a_record_and_finetuning_takes_its_name(reviews_folder, tmp_path):
    output = tmp_path / "from-command"
    options = ["--epochs", "0.1", "--batch-size", "64", "--limit", "400"]
    assert pretrain.main(["--data", str(reviews_folder), "--output", str(output), *options]) == 0
    record = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert (record["encoder"], record["labels"]) == ("nano", ["negative", "neutral", "positive"])
    assert encoder_name(str(output)) == "nano"
