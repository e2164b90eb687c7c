"""What people say in the page becomes a dataset: one judge one voice, the majority decides, agreement is measured."""

import sqlite3

import numpy as np
import pandas as pd
import pytest

from training import data
from training.config import DatasetConfig
from training.data import open_dataset
from training.errors import DatasetError
from training.feedback import measure_agreement, settle, write_dataset
from ui.opinions import Opinion, Opinions

LABELS = ["negative", "positive"]


def said(file, *opinions):
    """Each (text, label, name, visit), as the page writes them."""
    for text, label, name, visit in opinions:
        Opinions(file).add(Opinion(text, "negative", 0.6, "3", label, name, "ko", visit, "2026-11-22T12:00:00+00:00"))
    return file


def opinions(*rows):
    return pd.DataFrame(rows, columns=["text", "label", "name", "visit"], dtype="str")


def test_the_majority_of_judges_decides_and_a_tie_is_left_out_and_counted():
    feedback = settle(
        opinions(
            ("좋다", "positive", "민지", "a"),
            ("좋다", "positive", "", "b"),
            ("좋다", "negative", "", "c"),
            ("그저 그래", "positive", "", "a"),
            ("그저 그래", "negative", "", "b"),
            ("별로", "negative", "", "b"),
        ),
        LABELS,
    )
    assert feedback.rows.to_dict("records") == [
        {"document": "좋다", "label": "positive", "judges": 3},
        {"document": "별로", "label": "negative", "judges": 1},
    ]
    assert (feedback.opinions, feedback.conflicts, feedback.ties, feedback.repeated) == (6, 2, 1, 0)


def test_of_what_a_judge_says_about_a_text_the_last_counts_whatever_the_white_space():
    feedback = settle(
        opinions(
            ("안 좋다", "positive", "Minji", "a"),
            ("안좋다", "negative", "minji", "b"),
            ("안 좋다", "positive", "", "a"),
            ("안 좋다", "negative", "", "a"),
        ),
        LABELS,
    )
    assert feedback.rows.to_dict("records") == [{"document": "안 좋다", "label": "negative", "judges": 2}]
    assert feedback.repeated == 2


def test_opinions_with_a_label_that_is_not_asked_for_are_left_out_and_counted():
    rows = opinions(("그저 그래", "neutral", "", "a"), ("좋다", "positive", "", "a"))
    feedback = settle(rows, LABELS)
    assert (feedback.other_labels, list(feedback.rows.document)) == (1, ["좋다"])
    assert list(settle(rows, ["negative", "neutral", "positive"]).rows.label) == ["neutral", "positive"]


def test_agreement_is_that_of_fleiss_own_example():
    """Fleiss 1971 as Wikipedia gives it: 14 judges, 10 texts, 5 labels, kappa 0.210."""
    votes = np.array(
        [
            [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
        ]
    )  # fmt: skip
    agreement = measure_agreement(votes)
    assert agreement.texts == 10
    assert agreement.share == pytest.approx(0.378, abs=5e-4)
    assert agreement.kappa == pytest.approx(0.210, abs=5e-4)


def test_agreement_counts_only_texts_with_two_judges_and_says_when_it_shows_nothing():
    assert measure_agreement(np.array([[1, 0], [0, 1]])) is None
    alike = measure_agreement(np.array([[2, 0], [3, 0], [0, 1]]))
    assert (alike.texts, alike.share, alike.kappa) == (2, 1.0, None)
    apart = measure_agreement(np.array([[1, 1], [1, 1]]))
    assert (apart.share, apart.kappa) == (0.0, -1.0)


def test_the_toolkit_trains_on_what_the_command_makes(tmp_path, capsys):
    file = tmp_path / "feedback.sqlite3"
    said(
        file,
        *((f"장면 {row}\t그리고\n줄 {row}", LABELS[row % 2], "", "a") for row in range(60)),
        ("장면 0\t그리고\n줄 0", "negative", "민지", "b"),
        ("장면 1\t그리고\n줄 1", "negative", "민지", "b"),
    )
    output = tmp_path / "made" / "opinions.parquet"
    assert data.main(["feedback", "--opinions", str(file), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "62 opinions, 59 reviews: 30 negative, 29 positive" in printed
    assert "agreement on 2 texts judged by two or more: 0.500 of the pairs, Fleiss' kappa -0.333" in printed
    judges = {" ".join(words[:-5]): words[-5:] for words in map(str.split, printed.splitlines()) if len(words) > 5}
    assert judges["민지"] == ["2", "2", "0.500", "2", "0"]
    assert judges["visit a"] == ["60", "2", "0.500", "30", "30"]

    dataset = open_dataset(DatasetConfig(kind="files", train=output), cache=tmp_path)
    rows = pd.concat([dataset.train(), dataset.test()])
    assert len(rows) == 59
    assert rows.set_index("document").label["장면 3\t그리고\n줄 3"] == 1
    assert [path.name for path in output.parent.iterdir()] == ["opinions.parquet"]


def test_the_command_names_its_files_by_the_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUNCHI_VAR", str(tmp_path))
    said(tmp_path / "feedback.sqlite3", ("좋다", "positive", "", "a"))
    assert data.main(["feedback"]) == 0
    assert f"--dataset.kind files --dataset.train {tmp_path / 'feedback.parquet'}" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["missing", "no database", "another table", "nothing settled"])
def test_a_file_without_opinions_is_refused_with_a_remedy(tmp_path, capsys, what):
    file = tmp_path / "feedback.sqlite3"
    expected = {
        "missing": "does not exist; it does once somebody has pressed",
        "no database": "cannot be read as the page's opinions: file is not a database",
        "another table": "cannot be read as the page's opinions: no such table: opinions",
        "nothing settled": "no opinion with a label of negative, positive is settled; nothing is written",
    }[what]
    if what == "no database":
        file.write_text("무언가 다른 것" * 100, encoding="utf-8")
    elif what == "another table":
        connection = sqlite3.connect(file)
        connection.execute("CREATE TABLE other (id INTEGER)")
        connection.close()
    elif what == "nothing settled":
        said(file, ("좋다", "positive", "", "a"), ("좋다", "negative", "", "b"))
    output = tmp_path / "out.parquet"
    assert data.main(["feedback", "--opinions", str(file), "--output", str(output)]) == 2
    assert expected in capsys.readouterr().err
    assert not output.exists()


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    rows = pd.DataFrame({"document": ["좋다"], "label": ["positive"], "judges": [1]})
    with pytest.raises(DatasetError, match=r"is not called \.parquet"):
        write_dataset(rows, tmp_path / "out.tsv")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="cannot be written"):
        write_dataset(rows, tmp_path / "file" / "out.parquet")


def test_labels_that_are_named_twice_are_refused(capsys):
    with pytest.raises(SystemExit):
        data.main(["feedback", "--labels", "positive", "positive"])
    assert "name two or more, each once" in capsys.readouterr().err
