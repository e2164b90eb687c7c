"""What a predictor says, from each place a model can come from: small real checkpoints and bundles made on the spot."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification

from tests.bundles import set_serving, write_bundle
from training import predict
from training.data import SAMPLE
from training.errors import CheckpointError, RegistryError
from training.predict import SentimentPredictor
from training.vocabulary import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = ["좋다", "정말 재미 있고 감동 이 있는 영화 최고", "별로", "돈 지루 최악 ㅠㅠㅠㅠ 다시는 안 본다", "보통"]


@pytest.fixture(autouse=True)
def own_state(monkeypatch, tmp_path):
    """No registry and no served model but those of the test."""
    for name in ("NUNCHI_MLFLOW_TRACKING_URI", "NUNCHI_REGISTERED_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NUNCHI_VAR", str(tmp_path / "var"))
    monkeypatch.setenv("NUNCHI_MODEL_REPOSITORY", str(tmp_path / "model_repository"))
    return tmp_path


def write_checkpoint(folder: Path, labels: list[str], max_length: int = 16) -> Path:
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:400]
    tokenizer = train_tokenizer(lines, 300)
    torch.manual_seed(0)
    model = ElectraForSequenceClassification(
        ElectraConfig(
            vocab_size=len(tokenizer),
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
            initializer_range=0.5,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"labels": labels, "max_length": max_length}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "three", ["negative", "neutral", "positive"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "model_repository")


@pytest.fixture(params=["checkpoint", "bundle"])
def predictor(request) -> SentimentPredictor:
    return SentimentPredictor(request.getfixturevalue(request.param))


def test_one_text_gives_one_dict_and_a_list_gives_a_list_in_its_order(predictor):
    one = predictor.predict("정말 좋다")
    assert set(one) == {"text", "label", "confidence"}
    assert one["label"] in ("긍정", "부정", "중립") and 1 / 3 < one["confidence"] <= 1
    many = predictor.predict(TEXTS, return_probs=True)
    assert [row["text"] for row in many] == TEXTS
    for row in many:
        assert row["probs"].keys() == set(predictor.labels)
        assert sum(row["probs"].values()) == pytest.approx(1, abs=1e-5)
        assert max(row["probs"].values()) == row["confidence"]
    assert predictor.predict([]) == []
    assert predictor.predict(("좋다",))[0]["text"] == "좋다"


def test_a_text_is_read_alike_alone_and_among_others_of_any_length(predictor):
    texts = [" ".join(TEXTS[: 1 + number % 5]) + str(number) for number in range(80)]
    together = predictor.probabilities(texts)
    assert together.shape == (80, len(predictor.labels)) and together.dtype == np.float32
    assert np.ptp(together[:, 0]) > 0.05, "these texts would not tell one row from another"
    alone = np.concatenate([predictor.probabilities([text]) for text in texts[::8]])
    assert np.abs(together[::8] - alone).max() < 1e-4


def test_a_bundle_says_what_its_words_mean(bundle):
    predictor = SentimentPredictor(bundle)
    assert predictor.labels == ("negative", "positive")
    assert [row["label"] for row in predictor.predict(["좋다 최고", "지루 최악"])] == ["긍정", "부정"]
    golden = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["golden"]
    found = predictor.probabilities([row["text"] for row in golden])
    assert np.abs(found - np.array([row["probabilities"] for row in golden])).max() < 1e-5


def test_a_checkpoint_answers_as_transformers_does_and_cuts_where_its_record_says(checkpoint):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    texts = [*TEXTS, "정말 " * 40]
    batch = tokenizer(texts, truncation=True, max_length=16, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.inference_mode():
        expected = model.eval()(**batch).logits.softmax(1).numpy()
    assert batch["input_ids"].shape[1] == 16
    assert np.abs(SentimentPredictor(checkpoint).probabilities(texts) - expected).max() < 1e-5


def test_labels_that_nobody_named_get_the_usual_names(tmp_path):
    folder = write_checkpoint(tmp_path / "unnamed", ["LABEL_0", "LABEL_1"])
    predictor = SentimentPredictor(str(folder))
    assert predictor.labels == ("negative", "positive")
    assert predictor.predict("좋다")["label"] in ("긍정", "부정")


@pytest.mark.parametrize(
    ("texts", "error", "sentence"),
    [
        (["좋다", "", "별로"], ValueError, "text 2 of 3 is empty; leave it out"),
        (["좋다", "별로", " \n\t"], ValueError, "text 3 of 3 is empty; leave it out"),
        ("", ValueError, "text 1 of 1 is empty"),
        (["좋다", float("nan")], TypeError, "text 2 of 2 is nan, a float; a text is a string"),
        (["좋다", None], TypeError, "text 2 of 2 is None, a NoneType"),
        (["좋다", b"bytes"], TypeError, "text 2 of 2 is b'bytes', a bytes"),
        (7, TypeError, "predict takes a text or a list of texts, not int"),
        (["\ud800"], ValueError, "text 1 of 1 is no Unicode text"),
    ],
)
def test_what_is_no_text_is_refused_by_its_number(bundle, texts, error, sentence):
    with pytest.raises(error, match=sentence):
        SentimentPredictor(bundle).predict(texts)


def test_a_text_of_which_cleaning_leaves_nothing_is_empty_to_predict_and_a_row_to_probabilities(checkpoint):
    predictor = SentimentPredictor(checkpoint)
    with pytest.raises(ValueError, match="text 2 of 2 is empty once it is cleaned"):
        predictor.predict(["좋다", "<br>\u200b"])
    assert predictor.probabilities(["좋다", "<br>\u200b"]).shape == (2, 3)


def test_without_a_champion_the_served_bundle_answers(own_state):
    write_bundle(own_state / "model_repository")
    write_bundle(own_state / "model_repository", 2, labels=2)
    set_serving(own_state / "model_repository", 2, previous=1)
    assert SentimentPredictor().source == f"bundle {own_state / 'model_repository' / 'sentiment' / '2'}"


def test_without_a_champion_and_without_a_bundle_the_way_out_is_said(own_state):
    with pytest.raises(CheckpointError, match=r"the registry has no Champion, and .* train and promote a model"):
        SentimentPredictor()


@pytest.mark.parametrize("number", [7, "7"])
def test_a_number_is_a_version_of_the_registry(number):
    with pytest.raises(RegistryError, match="no version 7"):
        SentimentPredictor(number)


def test_a_folder_that_is_neither_or_damaged_is_refused(bundle, checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        SentimentPredictor(tmp_path)

    def copy(source: Path, name: str) -> Path:
        (tmp_path / name).mkdir()
        for file in source.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    edited = copy(bundle, "edited")
    (edited / "tokenizer.json").write_bytes((edited / "tokenizer.json").read_bytes() + b"\n")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not the file its manifest describes"):
        SentimentPredictor(edited)
    torn = copy(bundle, "torn")
    (torn / "model.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model.onnx; a bundle is whole or none"):
        SentimentPredictor(torn)
    (edited / "manifest.json").write_text('{"labels": 7}')
    with pytest.raises(CheckpointError, match="not what the contract says"):
        SentimentPredictor(edited)
    forgetful = copy(checkpoint, "forgetful")
    (forgetful / "training.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"training.json is damaged"):
        SentimentPredictor(forgetful)


def test_the_command_prints_a_line_per_text_or_json(bundle, capsys):
    assert predict.main(["--model", str(bundle), "좋다 최고", "별로"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("긍정  ") and first.endswith("%  좋다 최고") and second.startswith("부정  ")
    assert predict.main(["--model", str(bundle), "--json", "--probs", "좋다 최고"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["label"]) == ("좋다 최고", "긍정") and set(answer["probs"]) == {
        "negative",
        "positive",
    }


class Pipe(io.TextIOWrapper):
    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="ascii")


def test_the_command_reads_lines_and_says_in_one_line_what_is_wrong(bundle, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Pipe("좋다\n별로\r\n".encode()))
    assert predict.main(["--model", str(bundle)]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["좋다", "별로"]
    monkeypatch.setattr(sys, "stdin", Pipe("좋다\n\n별로\n".encode()))
    assert predict.main(["--model", str(bundle)]) == 2
    printed = capsys.readouterr()
    assert printed.err == "error: text 2 is empty; leave it out\n"
    assert [line.split()[-1] for line in printed.out.splitlines()] == ["좋다", "별로"]
    monkeypatch.setattr(sys, "stdin", Pipe("좋다\n".encode("cp949")))
    assert predict.main(["--model", str(bundle)]) == 2
    assert "standard input is not UTF-8" in capsys.readouterr().err
    assert predict.main(["--model", "/nowhere", "좋다"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: /nowhere holds neither") and error.count("\n") == 1


def test_a_reader_that_has_enough_ends_the_command_without_a_word(bundle):
    command = f"yes 좋다 | {sys.executable} -m training.predict --model {bundle} | head -1"
    ran = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout.split()[0] == "긍정"
    assert ran.stderr == ""


@pytest.mark.parametrize("model", [1.5, True, "", ["a"]])
def test_what_names_no_model_is_refused(model):
    with pytest.raises(TypeError, match="give a version number, a folder, or nothing for the Champion"):
        SentimentPredictor(model)


def test_a_bundle_is_read_without_torch(bundle):
    code = (
        "import sys; from training import SentimentPredictor; "
        f"print(SentimentPredictor({str(bundle)!r}).predict('좋다')['label'], 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout.split() == ["긍정", "False"], ran.stderr
