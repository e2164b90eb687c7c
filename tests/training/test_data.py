"""Datasets of each kind, and the honest cut between train, dev and test."""

import functools
import gzip
import http.server
import threading
from contextlib import contextmanager

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training import data
from training.cleaning import words
from training.config import STARS, DatasetConfig
from training.data import TEST, TRAIN, cut_dev, open_dataset
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


class BreakingOff(http.server.SimpleHTTPRequestHandler):
    """Promises each file whole and ends ``missing_bytes`` before."""

    missing_bytes = 0

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) - self.missing_bytes])

    def log_message(self, *_):
        pass


@contextmanager
def http_server(folder, missing_bytes=0):
    """A real web server over ``folder``; gives its address."""
    site = type("Site", (BreakingOff,), {"missing_bytes": missing_bytes})
    handler = functools.partial(site, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def texts(rows):
    return set(rows.document)


def star_folder(folder, *, train=400, rest=1200):
    """NSMC with rest: texts of all three bands, some of the official test's among them."""
    test = [(f"시험 {index}", index % 2) for index in range(50)]
    return write_nsmc(
        folder,
        [(f"훈련 {index}", index % 2) for index in range(train)],
        test,
        [(f"나머지 {index}", 1 + index % 10) for index in range(rest)] + [(text, 7) for text, _ in test],
    )


def write_collected(folder, rows, **columns):
    """``rows``: (document, value) pairs, as the collection writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (name,) = columns.get("names", ["rating"])
    table = pa.table({"document": [row[0] for row in rows], name: [row[1] for row in rows], "site": ["s"] * len(rows)})
    pq.write_table(table, folder / columns.get("file", "part-0.parquet"))


def test_a_folder_without_nsmcs_files_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no ratings_train.txt and no ratings_test.txt"):
        open_dataset(DatasetConfig(folder=tmp_path), cache=tmp_path)


def test_without_a_folder_the_official_files_are_downloaded_once(tmp_path, monkeypatch):
    site = write_nsmc(tmp_path / "site", [("좋다", 1)], [("별로", 0)])
    with http_server(site) as url:
        monkeypatch.setattr(data, "NSMC_URL", url)
        dataset = open_dataset(DatasetConfig(), cache=tmp_path / "cache")
    assert (dataset.name, dataset.train().document.tolist()) == ("NSMC", ["좋다"])
    # The site is gone: what was downloaded is enough, and nothing else can be.
    assert open_dataset(DatasetConfig(), cache=tmp_path / "cache").fingerprint == dataset.fingerprint
    with pytest.raises(DatasetError, match=r"could not be downloaded .* name its folder with --dataset.folder"):
        open_dataset(DatasetConfig(), cache=tmp_path / "other")


def test_half_a_download_is_no_download(tmp_path, monkeypatch):
    site = write_nsmc(tmp_path / "site", [(f"좋다 {index}", 1) for index in range(100)], [("별로", 0)])
    with http_server(site, missing_bytes=50) as url:
        monkeypatch.setattr(data, "NSMC_URL", url)
        with pytest.raises(DatasetError, match=r"could not be downloaded \(.* of .* bytes came\)"):
            open_dataset(DatasetConfig(), cache=tmp_path / "cache")
    assert not [*(tmp_path / "cache" / "nsmc").iterdir()]


def test_dev_is_stratified_and_shares_no_text_with_train():
    rows = [(f"리뷰 {index % 700}", index % 700 % 2) for index in range(1000)]  # 300 texts stand twice
    train, dev = cut_dev(pd.DataFrame(rows, columns=["document", "label"]), share=0.1)
    assert not texts(train) & texts(dev)
    assert len(train) + len(dev) == 1000
    assert dev.drop_duplicates("document").label.value_counts().to_dict() == {0: 35, 1: 35}


def test_a_text_with_other_spaces_stands_on_the_same_side():
    spaces = [f"리\u00a0뷰  {index}" if index % 2 else f"리뷰{index} " for index in range(300)]
    rows = pd.DataFrame({"document": [f"리뷰 {index}" for index in range(300)] + spaces, "label": 0})
    train, dev = cut_dev(rows, share=0.1)
    assert len(dev) == 60
    assert not {"".join(text.split()) for text in train.document} & {"".join(text.split()) for text in dev.document}


def test_the_cut_depends_on_the_texts_and_not_on_their_order():
    rows = pd.DataFrame({"document": [f"리뷰 {index}" for index in range(500)], "label": [0, 1] * 250})
    shuffled = rows.sample(frac=1, random_state=3)
    assert texts(cut_dev(rows)[1]) == texts(cut_dev(shuffled)[1])


def test_a_sample_of_train_is_stratified_grows_with_its_rate_and_leaves_dev_alone(tmp_path):
    folder = write_nsmc(tmp_path / "nsmc", [(f"훈련 {i}", int(i < 500)) for i in range(2000)], [("시험", 1)])
    parts = {
        rate: open_dataset(DatasetConfig(folder=folder, dataset_sampling_rate=rate), cache=folder).learning_parts()
        for rate in (0.1, 0.5, 1.0)
    }
    assert [len(train) for train, _ in parts.values()] == [190, 950, 1900]
    assert parts[0.1][0].label.value_counts().to_dict() == {0: 142, 1: 48}
    assert texts(parts[0.1][0]) < texts(parts[0.5][0]) < texts(parts[1.0][0])
    assert texts(parts[0.1][1]) == texts(parts[1.0][1]) and len(parts[0.1][1]) == 100


def test_a_label_that_is_left_without_reviews_is_named(tmp_path):
    folder = write_nsmc(tmp_path / "nsmc", [(f"훈련 {i}", int(i < 9)) for i in range(200)], [("시험", 1)])
    dataset = open_dataset(DatasetConfig(folder=folder), cache=folder)
    with pytest.raises(
        DatasetError, match=r"dev of nsmc \(10 reviews\) holds none that is positive; raise dataset.dev_s"
    ):
        dataset.learning_parts()


def test_three_labels_are_cut_by_stars_and_no_text_is_on_two_sides(tmp_path):
    dataset = open_dataset(DatasetConfig(folder=star_folder(tmp_path / "nsmc"), labels=STARS), cache=tmp_path)
    train, dev = dataset.learning_parts()
    sides = [texts(train), texts(dev), texts(dataset.test())]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    every = set().union(*sides)
    assert every == {f"훈련 {i}" for i in range(400)} | {
        f"나머지 {i}" for i in range(1200)
    }  # none of the official test
    labels = dict(zip(*(pd.concat([train, dev, dataset.test()])[name] for name in ("document", "label")), strict=True))
    assert [labels[f"나머지 {stars - 1}"] for stars in range(1, 11)] == [0] * 4 + [1] * 4 + [2] * 2
    assert (labels["훈련 0"], labels["훈련 1"]) == (0, 2)
    assert 0.03 < len(sides[2]) / 1600 < 0.07
    found = {finding.reason: finding.rows for finding in dataset.report.findings if finding.dropped}
    assert found == {"a text of the official test": 50}


def test_three_labels_without_the_rest_and_wrong_stars_are_refused(tmp_path):
    folder = write_nsmc(tmp_path / "nsmc", [("좋다", 1)], [("별로", 0)])
    with pytest.raises(DatasetError, match=r"holds no reviews_rest.tsv.gz, and neutral reviews stand there only"):
        open_dataset(DatasetConfig(folder=folder, labels=STARS), cache=tmp_path)
    write_nsmc(folder, [("좋다", 1)], [("별로", 0)], [("글", 5), ("글", 11), ("글", 0)])
    with pytest.raises(DatasetError, match=r"line 3: rating is '11'; it must be 1 to 10; 2 rows .* lines 3, 4"):
        open_dataset(DatasetConfig(folder=folder, labels=STARS), cache=tmp_path)


def test_pretraining_sees_no_text_of_any_dev_or_test(tmp_path):
    folder = star_folder(tmp_path / "nsmc")
    two = open_dataset(DatasetConfig(folder=folder), cache=tmp_path)
    three = open_dataset(DatasetConfig(folder=folder, labels=STARS), cache=tmp_path)
    held = [part for dataset in (two, three) for part in (dataset.learning_parts()[1], dataset.test())]
    assert all(len(part) for part in held)
    reviews = two.star_reviews()
    assert not set().union(*map(texts, held)) & texts(reviews)
    assert texts(reviews) | set().union(*map(texts, held)) == texts(two.train()) | texts(three.train()) | set().union(
        *map(texts, held)
    )
    assert texts(three.star_reviews()) == texts(reviews)
    assert set(reviews.label) == {0, 1, 2}


def test_pretraining_without_the_rest_reads_train_alone(tmp_path):
    folder = write_nsmc(tmp_path / "nsmc", [(f"훈련 {i}", i % 2) for i in range(100)], [("시험", 1)])
    dataset = open_dataset(DatasetConfig(folder=folder), cache=tmp_path)
    reviews = dataset.star_reviews()
    assert texts(reviews) == texts(dataset.learning_parts()[0]) and set(reviews.label) == {0, 2}
    with pytest.raises(DatasetError, match=r"sample is of kind sample; pretraining reads kind nsmc"):
        open_dataset(DatasetConfig(kind="sample"), cache=tmp_path).star_reviews()


def test_a_collection_is_read_over_all_its_partitions(tmp_path):
    write_collected(tmp_path / "site=a" / "day=2026-11-22", [(f"가 {i}", 1 + i % 10) for i in range(300)])
    write_collected(tmp_path / "site=b" / "day=2026-11-23", [(f"나 {i}", i % 2) for i in range(100)], names=["label"])
    write_collected(tmp_path / "site=b" / "_writing", [("반쯤 쓴 글", 1)])
    (tmp_path / "site=b" / ".part.parquet").write_bytes(b"half")
    dataset = open_dataset(DatasetConfig(kind="collected", folder=tmp_path), cache=tmp_path)
    every = pd.concat([dataset.train(), dataset.test()])
    assert len(every) == 180 + 100  # 1 to 4 and 9 to 10 stars of the one, all of the other
    assert not texts(dataset.train()) & texts(dataset.test())
    assert sum(dataset.report.read.values()) == 400 and dataset.report.dropped == 120
    assert "site=a/day=2026-11-22/part-0.parquet 5" in dataset.report.findings[0].first
    three = open_dataset(DatasetConfig(kind="collected", folder=tmp_path / "site=a", labels=STARS), cache=tmp_path)
    assert len(three.train()) + len(three.test()) == 300


def test_a_text_never_moves_from_train_to_test_while_the_collection_grows(tmp_path):
    config = DatasetConfig(kind="collected", folder=tmp_path)
    write_collected(tmp_path / "day=1", [(f"글 {i}", 1 + 9 * (i % 2)) for i in range(500)])
    before = open_dataset(config, cache=tmp_path)
    write_collected(tmp_path / "day=2", [(f"새 글 {i}", 1 + 9 * (i % 3 == 0)) for i in range(700)])
    after = open_dataset(config, cache=tmp_path)
    assert texts(before.train()) < texts(after.train()) and texts(before.test()) < texts(after.test())
    assert 0.15 < len(after.test()) / 1200 < 0.25


def test_the_words_alone_decide_on_which_side_of_a_cut_a_collected_text_stands(tmp_path):
    """Posted again with another ending, spaced otherwise, edited in its marks: it is the same for the cut."""
    written = ["{}", "{}!!", "{} ㅋㅋㅋ", "{} ㅠㅠ", "{}~ 👍", "<b>{}</b>"]
    rows = [(how.format(f"정말 {i}번 볼 영화"), 1 + 9 * (i % 2)) for i in range(500) for how in written]
    write_collected(tmp_path, rows)
    dataset = open_dataset(DatasetConfig(kind="collected", folder=tmp_path), cache=tmp_path)
    train, dev = dataset.learning_parts()
    parts = [{words(text) for text in part.document} for part in (train, dev, dataset.test())]
    assert [len(part) > 10 for part in parts] == [True] * 3
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_what_stands_in_earlier_data_is_left_out_of_a_collection(tmp_path):
    nsmc = write_nsmc(tmp_path / "nsmc", [("글 1!", 1), ("글 2", 0)], [("글 3ㅋㅋ", 1)])
    (tmp_path / "earlier.tsv").write_text("document\tlabel\n글 4\t긍정\n글 5\t1\n", encoding="utf-8")
    write_collected(tmp_path / "out", [(f"글 {i}", 1 + 9 * (i % 2)) for i in range(500)])
    config = DatasetConfig(kind="collected", folder=tmp_path / "out", earlier=[nsmc, tmp_path / "earlier.tsv"])
    dataset = open_dataset(config, cache=tmp_path)
    left = texts(dataset.train()) | texts(dataset.test())
    assert left == {f"글 {i}" for i in range(500) if i not in (1, 2, 3, 4, 5)}
    found = {finding.reason: finding.rows for finding in dataset.report.findings}
    assert found == {"its words stand in nsmc already": 3, "its words stand in earlier.tsv already": 2}


def test_a_wrong_row_of_a_collection_is_named_with_its_file(tmp_path):
    write_collected(tmp_path / "day=1", [("글", 1), ("둘째 글", 12)])
    with pytest.raises(DatasetError, match=r"day=1/part-0.parquet: part-0.parquet line 2: rating is '12'"):
        open_dataset(DatasetConfig(kind="collected", folder=tmp_path), cache=tmp_path)


def test_an_empty_and_an_oversized_collection_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no .parquet file; collect reviews first"):
        open_dataset(DatasetConfig(kind="collected", folder=tmp_path), cache=tmp_path)
    for day in range(3):
        folder = tmp_path / f"day={day}"
        folder.mkdir()
        (folder / "a.parquet").write_bytes(bytes(600_000))
    with pytest.raises(DatasetError, match=r"holds 2 MB, and 1 \(dataset.max_megabytes\) may be read"):
        open_dataset(DatasetConfig(kind="collected", folder=tmp_path, max_megabytes=1), cache=tmp_path)
    for day in range(3):
        write_collected(tmp_path / f"day={day}", [("같은 글 " * 50, 1)] * 5000, file="a.parquet")
    with pytest.raises(DatasetError, match=r"unpacks to more than 5 MB, and 3 \(dataset.max_megabytes\) may be read"):
        open_dataset(DatasetConfig(kind="collected", folder=tmp_path, max_megabytes=3), cache=tmp_path)


def test_files_of_the_users_own_bring_their_test_or_have_it_cut(tmp_path):
    rows = pd.DataFrame({"text": [f"글 {i}" for i in range(400)], "mood": ["부정", "긍정"] * 200})
    rows.to_csv(tmp_path / "train.csv", index=False)
    new = pd.DataFrame({"text": [f"새 글 {i}" for i in range(6)], "mood": ["부정", "긍정"] * 3})
    pd.concat([rows.tail(4), new]).to_csv(tmp_path / "test.tsv.gz", index=False, sep="\t")
    options = {"kind": "files", "train": tmp_path / "train.csv", "text_column": "text", "label_column": "mood"}
    cut = open_dataset(DatasetConfig(**options), cache=tmp_path)
    assert (cut.name, len(cut.train()) + len(cut.test())) == ("train", 400)
    assert not texts(cut.train()) & texts(cut.test()) and len(cut.test()) > 40
    named = open_dataset(DatasetConfig(**options, test=tmp_path / "test.tsv.gz", name="mine"), cache=tmp_path)
    assert (named.name, len(named.train()), len(named.test())) == ("mine", 400, 10)
    shared = [(found.reason, found.rows, found.dropped) for found in named.report.findings]
    assert shared == [("a text of test that train has too", 4, False)]


def test_a_test_file_that_train_has_learnt_by_heart_is_refused(tmp_path):
    rows = pd.DataFrame({"document": [f"글 {i}" for i in range(100)], "label": [0, 1] * 50})
    rows.to_csv(tmp_path / "train.tsv", index=False, sep="\t")
    config = DatasetConfig(kind="files", train=tmp_path / "train.tsv", test=tmp_path / "train.tsv")
    with pytest.raises(DatasetError, match="100 of 100 texts of test stand in train too, and 50% may"):
        open_dataset(config, cache=tmp_path)


def test_pretraining_leaves_out_the_texts_of_test_where_there_are_no_further_reviews(tmp_path):
    train = [f"{i}\t글 {i}\t{i % 2}" for i in range(200)]
    test = [f"{i}\t글 {i}\t{i % 2}" for i in range(190, 230)]  # ten of them stand in train
    for name, rows in ((TRAIN, train), (TEST, test)):
        (tmp_path / name).write_text("\n".join(["id\tdocument\tlabel", *rows]) + "\n", encoding="utf-8")
    dataset = open_dataset(DatasetConfig(folder=tmp_path), cache=tmp_path)
    learned = texts(dataset.star_reviews())
    assert len(learned) > 150
    assert not learned & texts(dataset.test())
    assert not learned & texts(dataset.learning_parts()[1])


def test_the_fingerprint_names_the_rows_and_not_their_files(tmp_path):
    rows = pd.DataFrame({"document": [f"글 {i}" for i in range(200)], "label": [0, 1] * 100})
    rows.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    rows.assign(more=1).to_csv(tmp_path / "b.csv.gz", index=False)
    rows.to_parquet(tmp_path / "c.parquet")

    def fingerprint(file, **options):
        config = DatasetConfig(kind="files", train=tmp_path / file, **options)
        return open_dataset(config, cache=tmp_path).fingerprint

    first = fingerprint("a.tsv")
    assert first == fingerprint("b.csv.gz") == fingerprint("c.parquet") == "93e890e85098"
    assert len({first, fingerprint("a.tsv", test_share=0.3), fingerprint("a.tsv", labels=["a", "b"])}) == 3
    rows.label = 1 - rows.label
    rows.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    assert fingerprint("a.tsv") != first


def test_repeated_and_contradictory_texts_are_kept_and_reported(tmp_path, caplog):
    rows = [("최고", 1), ("최고", 1), ("최 고", 1), ("ㅋㅋ", 0), ("ㅋㅋ", 1), ("그냥", 0)]
    folder = write_nsmc(tmp_path / "nsmc", rows, [("시험", 1)])
    with caplog.at_level("INFO"):
        dataset = open_dataset(DatasetConfig(folder=folder), cache=tmp_path)
    assert len(dataset.train()) == 6
    assert {found.reason: (found.rows, found.first) for found in dataset.report.findings} == {
        "the same text and label stood before": (2, ("3", "4")),
        "the same text has another label too": (2, ("5", "6")),
    }
    assert "ratings_train.txt: 2 rows kept: the same text has another label too (at 5, 6)" in caplog.text


def test_the_command_prints_the_parts_and_what_was_found(tmp_path, capsys):
    folder = write_nsmc(tmp_path / "nsmc", [(f"훈련 {i}", i % 2) for i in range(200)] + [(" ", 1)], [("시험", 1)])
    assert data.main(["--dataset.folder", str(folder), "--dataset.dev_share", "0.1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "180", "90", "90"] in lines and ["dev", "20", "10", "10"] in lines
    assert ["1", "dropped", "no", "text", "202"] in lines
    assert data.main(["--dataset.folder", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_file_that_leaves_a_part_empty_is_refused(tmp_path):
    (tmp_path / "one.tsv").write_text("document\tlabel\n좋다\t1\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"(train|test) of one holds no review with a label of negative, positive"):
        open_dataset(DatasetConfig(kind="files", train=tmp_path / "one.tsv"), cache=tmp_path)
