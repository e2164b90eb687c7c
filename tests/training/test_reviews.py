"""One file of reviews: what is read, what is dropped and counted, what is refused and with which words."""

import codecs
import gzip
import os
import zlib

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import reviews
from training.config import POLARITY, STARS
from training.data import SAMPLE, read_reviews
from training.errors import DatasetError
from training.reviews import Source, check_reviews, read_bytes

HEADER = "id\tdocument\tlabel\n"


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def numbered(count, *, start=1):
    return "".join(f"{index}\t리뷰 {index}\t{index % 2}\n" for index in range(start, start + count))


def findings(path, **options):
    rows, report = check_reviews(path, Source(POLARITY, **options))
    return rows, {finding.reason: (finding.rows, finding.first) for finding in report.findings}


def test_quotes_and_nan_are_text_and_empty_documents_are_dropped_with_their_lines(tmp_path):
    path = write(tmp_path / "a.tsv", f'{HEADER}1\t"명작\t1\n2\tnan\t0\n3\t  \t1\n4\tNA\t0\n\n5\t최고\t1\n')
    rows, found = findings(path)
    assert rows.document.tolist() == ['"명작', "nan", "NA", "최고"]
    assert found == {"no text": (2, ("4", "6"))}


def test_labels_are_written_by_index_by_name_or_in_korean(tmp_path):
    path = write(tmp_path / "a.tsv", "document\tlabel\na\t0\nb\tNeutral\nc\t긍정\nd\t 2 \ne\t부정\n")
    assert read_reviews(path, labels=STARS).label.tolist() == [0, 1, 2, 2, 0]
    own = write(tmp_path / "b.csv", "text,mood\na,Sad\nb,1\n")
    assert read_reviews(own, labels=["sad", "glad"], text_column="text", label_column="mood").label.tolist() == [0, 1]


def test_wrong_labels_are_named_with_their_lines_whatever_stands_before(tmp_path):
    path = write(tmp_path / "a.tsv", f"{HEADER}\n1\t\t1\n{numbered(3)}9\t별로\t2\n{numbered(3)}9\t그냥\tx\n")
    with pytest.raises(
        DatasetError, match=r"a.tsv line 7: label is '2'; it must be 0 or .*부정 or 1 .*; 2 rows are .* lines 7, 11$"
    ):
        read_reviews(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\tlabel\n좋다\t1\n", "has no column document; it has text, label"),
        ("id\ttext\n1\t좋다\n", "has no column document and no label; it has id, text"),
        ("document,label\n좋다,1\n", "has no column document and no label; it has document,label"),
        ("document\tdocument\tlabel\na\tb\t1\n", "has 2 columns called document"),
        ("", "is empty; its first line must name the columns"),
    ],
)
def test_a_file_without_the_columns_says_what_it_has(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        read_reviews(write(tmp_path / "x.txt", text))


def test_damaged_rows_are_dropped_and_counted_and_no_good_row_with_them(tmp_path, caplog):
    path = write(tmp_path / "a.tsv", f"{HEADER}{numbered(40)}41\t끊긴 줄\n42\t좋\0다\t1\n{numbered(40)}")
    rows, found = findings(path)
    assert len(rows) == 80
    assert found == {"more or fewer fields than the header": (1, ("42",)), "a NUL byte in the text": (1, ("43",))}
    assert len(read_reviews(path)) == 80
    assert "a.tsv: 1 row dropped: a NUL byte in the text (at 43)" in caplog.text


def test_a_file_with_much_damage_is_refused(tmp_path):
    path = write(tmp_path / "a.tsv", f"{HEADER}{numbered(20)}41\t끊긴 줄\n42\t좋\0다\t1\n")
    with pytest.raises(DatasetError, match=r"2 of 22 rows have a NUL byte or not as many .* lines 22, 23, and 5% may"):
        read_reviews(path)


def test_a_truncated_gzip_says_where_it_ends(tmp_path):
    whole = gzip.compress((HEADER + numbered(20_000)).encode())
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(whole)
    assert len(read_reviews(path)) == 20_000
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"a.tsv.gz is cut off after line \d+: its gzip has no end; copy it again"):
        read_reviews(path)
    path.write_bytes(whole[:-8] + bytes(8))  # another checksum
    with pytest.raises(DatasetError, match=r"is no whole gzip, damaged after line \d+ \(CRC check failed"):
        read_reviews(path)
    path.write_bytes(whole[:5000] + bytes(500) + whole[5500:])
    with pytest.raises(DatasetError, match="is no whole gzip, damaged after line"):
        read_reviews(path)


@pytest.mark.parametrize("encoding", ["cp949", "utf-16"])
def test_another_encoding_is_named_with_the_line_and_the_remedy(tmp_path, encoding):
    path = write(tmp_path / "a.tsv", f"{HEADER}1\tgood\t1\n2\t똠방각하 재밌다\t1\n", encoding)
    line = 3 if encoding == "cp949" else 1
    with pytest.raises(DatasetError, match=rf"a.tsv line {line} is not utf-8 .* set dataset.encoding to {encoding}$"):
        read_reviews(path)
    assert read_reviews(path, encoding=encoding).document.tolist() == ["good", "똠방각하 재밌다"]


def test_utf8_read_as_cp949_and_bytes_of_no_encoding_are_refused(tmp_path):
    path = write(tmp_path / "a.tsv", HEADER + numbered(10))
    with pytest.raises(DatasetError, match=r"a.tsv reads well as utf-8, .* set dataset.encoding to utf-8"):
        read_reviews(path, encoding="cp949")  # these bytes do decode as CP949, to nonsense
    path.write_bytes((HEADER + numbered(10)).encode() + b"11\t\xff\xff\xfe\t1\n")
    with pytest.raises(DatasetError, match=r"line 12 is not utf-8 \(byte \d+\); mend or remove that line"):
        read_reviews(path)


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(codecs.BOM_UTF8 + "document\tlabel\r\n좋다\t1\r\n별로\t0\r\n".encode())
    assert read_reviews(path).to_dict("list") == {"document": ["좋다", "별로"], "label": [1, 0]}


def test_a_csv_may_hold_separators_and_lines_in_quotes_and_its_lines_are_still_right(tmp_path):
    good = 'document,label\n"첫 줄\n둘째, ""줄""",1\nplain "text",0\n'
    rows = read_reviews(write(tmp_path / "a.csv", good))
    assert rows.document.tolist() == ['첫 줄\n둘째, "줄"', 'plain "text"']
    with pytest.raises(DatasetError, match=r"a.csv line 5: label is '7'"):
        read_reviews(write(tmp_path / "a.csv", good + "나쁨,7\n"))
    with pytest.raises(DatasetError, match=r"a.csv line 5: unexpected end of data; a quote or a separator is wrong"):
        read_reviews(write(tmp_path / "a.csv", good + '"안 닫힌,0\n또 한 줄,1\n'))


def test_a_larger_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.tsv"
    path.touch()
    os.truncate(path, 10 << 30)  # takes no room on the disk
    with pytest.raises(DatasetError, match=r"is 10,240 MB, and 2,048 MB \(dataset.max_megabytes\) may be read"):
        read_reviews(path)


def test_a_gzip_is_measured_while_it_is_unpacked(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(DatasetError, match="larger unpacked, and 1 MB"):
        read_bytes(path, 1)


@pytest.mark.parametrize("kind", ["grown", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, kind):
    path = write(tmp_path / "a.tsv.gz", "")
    path.write_bytes(gzip.compress((HEADER + numbered(10)).encode()))

    def change_then_read(file):
        if kind == "grown":
            file.write_bytes(file.read_bytes() + gzip.compress(numbered(1).encode()))
        else:
            os.rename(file, f"{file}.old")
            if kind == "replaced":
                file.write_bytes((tmp_path / "a.tsv.gz.old").read_bytes())
        return gzip.GzipFile(file if kind == "grown" else f"{file}.old")

    monkeypatch.setattr(reviews.gzip, "open", change_then_read)
    message = (
        "does not exist" if kind == "removed" else r"a.tsv.gz changed while it was read .*; wait until it is written"
    )
    with pytest.raises(DatasetError, match=message):
        read_bytes(path, 1)


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.zip"])
def test_a_file_of_another_format_is_refused_by_its_name(tmp_path, name):
    with pytest.raises(DatasetError, match=r"is called neither .tsv, .txt, .csv, .parquet"):
        read_reviews(write(tmp_path / name, ""))


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "a.tsv").mkdir()
    with pytest.raises(DatasetError, match=r"a.tsv is a folder; name a file in it"):
        read_reviews(tmp_path / "a.tsv")
    with pytest.raises(DatasetError, match=r"b.tsv does not exist"):
        read_reviews(tmp_path / "b.tsv")


@pytest.mark.parametrize("labels", [[1, 0, 1], [1.0, 0.0, 1.0], ["긍정", "negative", "1"]])
def test_parquet_is_read_with_labels_of_any_type(tmp_path, labels):
    texts = pa.array(["좋다", None, "최고"])
    for column in (texts, texts.cast(pa.large_string()), texts.dictionary_encode()):
        pq.write_table(pa.table({"x": [1, 2, 3], "label": labels, "document": column}), tmp_path / "a.parquet")
        rows, found = findings(tmp_path / "a.parquet")
        assert rows.to_dict("list") == {"document": ["좋다", "최고"], "label": [1, 1]}
        assert found == {"no text": (1, ("2",))}


def test_a_parquet_that_is_none_and_one_without_texts_are_refused(tmp_path):
    path = write(tmp_path / "a.parquet", HEADER + numbered(3))
    with pytest.raises(DatasetError, match=r"a.parquet is no whole Parquet file"):
        read_reviews(path)
    pq.write_table(pa.table({"document": [f"리뷰 {index}" for index in range(9999)], "label": [0] * 9999}), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="is no whole Parquet file"):
        read_reviews(path)
    pq.write_table(pa.table({"document": [1, 2], "label": [0, 1]}), path)
    with pytest.raises(DatasetError, match="column document holds int64, not text"):
        read_reviews(path)
    not_utf8 = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xb0\xa1"))
    pq.write_table(pa.table({"document": not_utf8, "label": [0]}), path)
    with pytest.raises(DatasetError, match=r"is no whole Parquet file \(Invalid UTF8"):
        read_reviews(path)
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), path)
    with pytest.raises(DatasetError, match="has no column document; it has text, label"):
        read_reviews(path)


def test_a_parquet_is_measured_unpacked(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"document": ["같은 글 " * 100] * 10_000, "label": [1] * 10_000}), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DatasetError, match=r"a.parquet is larger unpacked, and 1 MB"):
        check_reviews(path, Source(POLARITY, max_megabytes=1))


line_free = st.text(st.characters(exclude_characters="\t\r\n\0", exclude_categories=["Cs"]), min_size=1).filter(
    str.strip
)


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(line_free, min_size=1, max_size=20))
def test_any_text_without_tabs_and_lines_comes_back_as_it_was(tmp_path_factory, texts):
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    write(path, "document\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    assert read_reviews(path).document.tolist() == texts


@settings(deadline=None, max_examples=50)
@given(
    texts=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1)
)
def test_any_quoted_text_comes_back_from_a_csv(tmp_path_factory, texts):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    pd.DataFrame({"document": texts, "label": 1}).to_csv(path, index=False, quoting=1, lineterminator="\n")
    assert read_reviews(path).document.tolist() == [text for text in texts if text.strip()]


@settings(deadline=None, max_examples=50)
@given(content=st.binary(max_size=300), name=st.sampled_from(["b.tsv", "b.csv", "b.parquet", "b.tsv.gz"]))
def test_no_bytes_end_in_another_error_than_ours(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content if not name.endswith(".gz") or len(content) % 2 else zlib.compress(content, wbits=31))
    with pytest.raises(DatasetError):
        read_reviews(path)


def test_the_bundled_reviews_are_many_balanced_and_distinct():
    rows = read_reviews(SAMPLE)
    assert len(rows) >= 1200
    assert rows.document.is_unique
    assert abs(rows.label.mean() - 0.5) < 0.01


def test_plain_text_called_gz_is_told_from_a_damaged_gzip(tmp_path):
    (tmp_path / "a.tsv.gz").write_text("document\tlabel\n좋다\t1\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"a.tsv.gz is no gzip file; if it is plain text, rename it without .gz"):
        read_reviews(tmp_path / "a.tsv.gz")


def test_utf_16_is_known_by_its_mark(tmp_path):
    (tmp_path / "a.csv").write_bytes("document,label\n좋다,1\n".encode("utf-16"))
    with pytest.raises(DatasetError, match=r"it reads well as utf-16: set dataset.encoding to utf-16"):
        read_reviews(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes("document,label\n좋다,1\n".encode("utf-16")[:-1])
    with pytest.raises(DatasetError, match="mend or remove that line"):
        read_reviews(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"document,label\n\xff\xff\xff,1\n ")  # without a mark nearly anything would do
    with pytest.raises(DatasetError, match="mend or remove that line"):
        read_reviews(tmp_path / "a.csv")
