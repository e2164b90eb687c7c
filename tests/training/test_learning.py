"""The road from raw reviews to a classifier, run for real on a small shape and the bundled reviews."""

import json
import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from transformers import BertTokenizer as BertTokenizerFast

from training import finetune, pretrain
from training.batches import EncodedTexts, pad_batch
from training.data import SAMPLE, TEST, TRAIN, open_dataset, read_reviews
from training.encoders import load_classifier
from training.errors import CheckpointError
from training.evaluate import predict_logits
from training.record import encoder_name
from training.vocabulary import SPECIAL_TOKENS, train_tokenizer

TINY = pretrain.Shape(
    vocab_size=2000, embedding_size=64, hidden_size=64, layers=1, heads=2, intermediate_size=64, max_length=48
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Sentences of bundled words in which one of a few telling words decides: learnable in seconds, not by heart."""
    folder = tmp_path_factory.mktemp("generated")
    chance = random.Random(1)
    words = sorted({word for text in read_reviews(SAMPLE).document for word in text.split()})[:400]
    telling = [["별로", "최악", "지루함"], ["명작", "감동", "꿀잼"]]

    def sentence(label: int) -> str:
        chosen = [*chance.sample(words, chance.randint(2, 8)), chance.choice(telling[label])]
        return " ".join(chance.sample(chosen, len(chosen)))

    for name, rows in ((TRAIN, 1000), (TEST, 200)):
        lines = [f"{index}\t{sentence(index % 2)}\t{index % 2}" for index in range(rows)]
        (folder / name).write_text("\n".join(["id\tdocument\tlabel", *lines]) + "\n", encoding="utf-8")
    return open_dataset(folder, name="generated", cache=folder)


@pytest.fixture(scope="module")
def pretrained(dataset, tmp_path_factory):
    reviews = dataset.star_reviews()
    return pretrain.pretrain(
        reviews.document.tolist(),
        reviews.label.tolist(),
        tmp_path_factory.mktemp("pretrained") / "tiny",
        shape=TINY,
        epochs=2,
        batch_size=32,
        learning_rate=3e-3,
        seed=1,
    )


@pytest.fixture(scope="module")
def finetuned(dataset, pretrained, tmp_path_factory):
    output = tmp_path_factory.mktemp("finetuned") / "tiny"
    recipe = finetune.Recipe(
        epochs=6, batch_size=32, learning_rate=1e-3, word_dropout=0.05, max_length=48, dev_share=0.15
    )
    return output, finetune.finetune(str(pretrained), dataset, output, recipe)


def test_the_pretrained_folder_is_a_plain_hugging_face_classifier_over_stars(pretrained):
    model = AutoModelForSequenceClassification.from_pretrained(pretrained)
    assert model.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert model.num_parameters() < 200_000


def test_finetuning_finds_the_words_that_tell(finetuned):
    _, metrics = finetuned
    assert metrics.rows == 200
    assert metrics.accuracy > 0.9


def test_the_saved_model_repeats_the_recorded_figures(finetuned, dataset):
    output, metrics = finetuned
    record = json.loads((output / "training.json").read_text(encoding="utf-8"))
    model, tokenizer = load_classifier(str(output), record["labels"])
    test = dataset.test()
    texts = EncodedTexts(tokenizer, test.document.tolist(), test.label.tolist(), record["max_length"])
    accuracy = (predict_logits(model, texts).argmax(1) == test.label.to_numpy()).mean()
    assert accuracy == pytest.approx(record["metrics"]["accuracy"]) == pytest.approx(metrics.accuracy)
    assert record["dataset_fingerprint"] == dataset.fingerprint
    assert record["encoder"] == "tiny"  # the folder's name, as the encoder brought no record of its own
    assert encoder_name(str(output)) == "tiny"
    assert encoder_name("kcbert-base") == "kcbert-base"


def test_logits_come_back_in_the_order_of_the_texts(finetuned):
    output, _ = finetuned
    model, tokenizer = load_classifier(str(output), finetune.LABELS)
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
    tokenizer = load_classifier(str(finetuned[0]), finetune.LABELS)[1]
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
        load_classifier(str(tmp_path / "nowhere"), finetune.LABELS)
    assert "\n" not in str(info.value)


def test_pretraining_by_command_leaves_a_record_and_finetuning_takes_its_name(dataset, tmp_path):
    output = tmp_path / "from-command"
    options = ["--epochs", "0.1", "--batch-size", "64", "--limit", "400"]
    assert pretrain.main(["--data", str(dataset.folder), "--output", str(output), *options]) == 0
    record = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert (record["encoder"], record["labels"]) == ("nano", ["negative", "neutral", "positive"])
    assert encoder_name(str(output)) == "nano"


def test_a_missing_dataset_ends_the_command_with_status_2_and_one_line(tmp_path, capsys):
    assert finetune.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
