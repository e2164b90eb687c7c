"""Reading reviews, and the honest cut between train, dev and test."""

import functools
import gzip
import http.server
import threading
from contextlib import contextmanager

import pandas as pd
import pytest

from training import data
from training.data import SAMPLE, cut_dev, open_dataset, read_reviews
from training.errors import DatasetError


def write_nsmc(folder, train, test, rest=()):
    folder.mkdir(exist_ok=True)
    for name, rows in ((data.TRAIN, train), (data.TEST, test)):
        lines = [f"{index}\t{text}\t{label}" for index, (text, label) in enumerate(rows)]
        (folder / name).write_text("\n".join(["id\tdocument\tlabel", *lines]) + "\n", encoding="utf-8")
    if rest:
        lines = [f"{index}\t{text}\t{stars}\t2015-01-01\t1" for index, (text, stars) in enumerate(rest)]
        with gzip.open(folder / data.REST, "wt", encoding="utf-8") as file:
            file.write("\n".join(["id\tdocument\trating\tdate\tmovie_id", *lines]) + "\n")
    return folder


@contextmanager
def http_server(folder):
    """A real web server over ``folder``; gives its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_quotes_and_nan_are_text_and_empty_documents_are_dropped(tmp_path):
    folder = write_nsmc(tmp_path / "nsmc", [('"명작', 1), ("nan", 0), ("  ", 1), ("NA", 0)], [("좋다", 1)])
    assert read_reviews(folder / data.TRAIN).document.tolist() == ['"명작', "nan", "NA"]


def test_a_wrong_label_is_named_with_its_line(tmp_path):
    folder = write_nsmc(tmp_path / "nsmc", [("좋다", 1), ("별로", 2)], [("좋다", 1)])
    with pytest.raises(DatasetError, match=r"ratings_train.txt line 3: label is '2'; it must be 0 or 1"):
        read_reviews(folder / data.TRAIN)


def test_a_file_without_the_columns_says_what_it_has(tmp_path):
    (tmp_path / "x.txt").write_text("text\tlabel\n좋다\t1\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="no column document; it has text, label"):
        read_reviews(tmp_path / "x.txt")


def test_a_folder_without_nsmcs_files_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no ratings_train.txt and no ratings_test.txt"):
        open_dataset(tmp_path, cache=tmp_path)


def test_without_a_folder_the_official_files_are_downloaded_once(tmp_path, monkeypatch):
    site = write_nsmc(tmp_path / "site", [("좋다", 1)], [("별로", 0)])
    with http_server(site) as url:
        monkeypatch.setattr(data, "NSMC_URL", url)
        dataset = open_dataset(None, cache=tmp_path / "cache")
    assert (dataset.name, dataset.train().document.tolist()) == ("NSMC", ["좋다"])
    # The site is gone: what was downloaded is enough, and nothing else can be.
    assert open_dataset(None, cache=tmp_path / "cache").fingerprint == dataset.fingerprint
    with pytest.raises(DatasetError, match=r"could not be downloaded .* name its folder with --data"):
        open_dataset(None, cache=tmp_path / "other")


def test_dev_is_stratified_and_shares_no_text_with_train():
    rows = [(f"리뷰 {index % 700}", index % 700 % 2) for index in range(1000)]  # 300 texts stand twice
    train, dev = cut_dev(pd.DataFrame(rows, columns=["document", "label"]), share=0.1)
    assert not set(train.document) & set(dev.document)
    assert len(train) + len(dev) == 1000
    texts = dev.drop_duplicates("document")
    assert texts.label.value_counts().to_dict() == {0: 35, 1: 35}


def test_the_cut_depends_on_the_texts_and_not_on_their_order():
    rows = pd.DataFrame({"document": [f"리뷰 {index}" for index in range(500)], "label": [0, 1] * 250})
    shuffled = rows.sample(frac=1, random_state=3)
    assert set(cut_dev(rows)[1].document) == set(cut_dev(shuffled)[1].document)


def test_pretraining_sees_no_text_of_dev_or_test(tmp_path):
    train = [(f"훈련 {index}", index % 2) for index in range(100)]
    rest = [(f"훈련 {index}", 5) for index in range(100)] + [("시험 글", 9), ("새 글", 8), ("나쁜 글", 4)]
    folder = write_nsmc(tmp_path / "nsmc", train, [("시험 글", 1)], rest)
    dataset = open_dataset(folder, cache=tmp_path)
    _, dev = cut_dev(dataset.train())
    reviews = dataset.star_reviews()
    assert len(dev) > 0
    assert not {*dev.document, "시험 글"} & set(reviews.document)
    labels = dict(zip(reviews.document, reviews.label, strict=True))
    assert (labels["새 글"], labels["나쁜 글"]) == (1, 0)


def test_the_bundled_reviews_are_many_balanced_and_distinct():
    reviews = read_reviews(SAMPLE)
    assert len(reviews) >= 1200
    assert reviews.document.is_unique
    assert abs(reviews.label.mean() - 0.5) < 0.01
