"""Files as people have them: encodings, delimiters, broken rows, limits; and what is written opens without harm."""

import csv
import io
import zipfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from openpyxl import Workbook, load_workbook

from ui import table
from ui.table import Table, TableRefused, read_file, read_lines, write_csv, write_xlsx

REVIEWS = ["다시 보고 싶은 영화", "시간이 아까워요, 정말", "ㅋㅋㅋ 최고 👍"]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def csv_of(rows: list[list[str]], delimiter: str = ",") -> str:
    lines = io.StringIO()
    csv.writer(lines, delimiter=delimiter).writerows(rows)
    return lines.getvalue()


def xlsx_of(folder: Path, rows: list[list[object]]) -> Path:
    workbook = Workbook()
    for row in rows:
        workbook.active.append(row)
    workbook.save(folder / "reviews.xlsx")
    return folder / "reviews.xlsx"


@pytest.mark.parametrize(
    ("codec", "name"), [("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8"), ("cp949", "CP949")], ids=lambda each: each
)
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_korean_is_read_in_the_encodings_korean_files_have(tmp_path: Path, codec: str, name: str, suffix: str) -> None:
    texts = [*REVIEWS[:2], "ㅋㅋㅋ 최고"]  # CP949 has no thumbs
    content = "\r\n".join(texts) if suffix == ".txt" else csv_of([["리뷰"], *([text] for text in texts)])
    read = read_file(written(tmp_path, f"reviews{suffix}", content.encode(codec)))
    assert list(read.column(read.text_column()).values()) == texts
    assert read.encoding == name
    assert not read.broken


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_cells_with_delimiters_quotes_and_line_ends_stay_whole(tmp_path: Path, delimiter: str) -> None:
    cell = f'그는 "좋다"{delimiter} 했다\n그리고 나갔다'
    content = csv_of([["번호", "리뷰"], ["1", cell], ["2", "별로"]], delimiter)
    read = read_file(written(tmp_path, "reviews.csv", content))
    assert read.column("리뷰") == {2: cell, 3: "별로"}


def test_a_workbook_is_read_with_dates_numbers_and_gaps(tmp_path: Path) -> None:
    rows = [["날짜", "별점", "리뷰"], [datetime(2026, 1, 3), 5.0, "좋다"], [], [datetime(2026, 1, 4, 9), 1, "싫다"]]
    read = read_file(xlsx_of(tmp_path, rows))
    assert read.records == {2: ["2026-01-03", "5", "좋다"], 4: ["2026-01-04 09:00:00", "1", "싫다"]}
    assert (read.text_column(), read.date_column()) == ("리뷰", "날짜")


def test_a_broken_row_is_set_aside_by_its_number_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = ["번호,리뷰", "1,좋다", '2,"열고 닫지 않았다', "3,싫다", "4,너,무,많다", "5", "6,재미"]
    content = "\n".join(lines).encode() + "\n7,깨진 ".encode() + b"\xff\xfe" + " 글자\n8,최고\n".encode()
    read = read_file(written(tmp_path, "reviews.csv", content))
    assert read.broken == {3: "open_quote", 5: "too_many_cells", 8: "broken_bytes"}
    assert read.column("리뷰") == {2: "좋다", 4: "싫다", 6: "", 7: "재미", 9: "최고"}


def test_many_open_quotes_take_no_more_than_moments(tmp_path: Path) -> None:
    content = "리뷰\n" + '"'.join(["", *["끝나지 않는 말\n"] * 20_000])
    read = read_file(written(tmp_path, "reviews.csv", content + "좋다\n"))
    assert list(read.rows.values())[-1] == ["좋다"]


def test_the_user_may_say_that_the_first_row_is_no_title(tmp_path: Path) -> None:
    read = replace(read_file(written(tmp_path, "reviews.csv", "좋다,1\n싫다,2\n")), titled=False)
    assert read.columns == ["A", "B"]
    assert read.column("A") == {1: "좋다", 2: "싫다"}


def test_titles_that_are_missing_or_alike_are_told_apart(tmp_path: Path) -> None:
    read = read_file(written(tmp_path, "reviews.csv", "리뷰,,리뷰\n1,2,3\n"))
    assert read.columns == ["리뷰", "B", "리뷰 C"]
    assert read.column("리뷰 C") == {2: "3"}


@pytest.mark.parametrize(
    ("dates", "found"),
    [
        (["2026-01-03", "2026-01-04 10:00"], True),
        (["2026. 1. 3.", "2026. 12. 24."], True),
        (["2026년 1월 3일", "2026년 1월 4일"], True),
        (["20260103", ""], True),
        (["12345", "67890"], False),
        (["5", "4"], False),
    ],
)
def test_a_column_of_dates_is_recognised(tmp_path: Path, dates: list[str], found: bool) -> None:
    content = csv_of([["리뷰", "때"], *(["좋다", date] for date in dates)])
    assert (read_file(written(tmp_path, "reviews.csv", content)).date_column() == "때") is found


def test_pasted_lines_are_rows_and_empty_ones_are_not() -> None:
    assert read_lines("좋다\n\n  \r\n싫다").rows == {1: ["좋다"], 4: ["싫다"]}
    assert read_lines("좋다 \ud83d").rows == {1: ["좋다 ?"]}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("reviews.pdf", b"%PDF", "wrong_type"),
        ("reviews.csv", "좋다\n싫다".encode("utf-16"), "unknown_encoding"),
        ("reviews.txt", "très bon, un café. ".encode("latin-1") * 20, "unknown_encoding"),
        ("reviews.xlsx", b"PK but no workbook", "broken_xlsx"),
        ("reviews.txt", b"\n \n", "no_rows"),
        ("reviews.csv", "리뷰\n".encode(), "no_rows"),
        ("reviews.txt", b"a\n" * (table.MAX_ROWS + 1), "too_many_rows"),
        ("reviews.csv", b"a," * table.MAX_COLUMNS + b"\n1\n", "too_many_columns"),
        ("reviews.txt", b"a" * (table.MAX_BYTES + 1), "too_large"),
    ],
)
def test_a_file_that_is_not_read_says_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(TableRefused) as refused:
        read_file(written(tmp_path, name, content))
    assert refused.value.reason == reason


def test_a_hundred_thousand_rows_are_allowed(tmp_path: Path) -> None:
    read = read_file(written(tmp_path, "reviews.csv", "리뷰\n" + "좋다\n" * table.MAX_ROWS))
    assert len(read.records) == table.MAX_ROWS


def test_a_workbook_that_unpacks_to_a_flood_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.xlsx"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(table.MAX_UNPACKED_BYTES + 1))
    with pytest.raises(TableRefused) as refused:
        read_file(file)
    assert refused.value.reason == "too_large"


FORMULAS = ["=1+1", "+82 10", "-최고", "@SUM(A1)", "\t=1", " =1", "＝1", "\r=1", "|cmd"]


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "out.csv", ["=title", "n"], [[text, -0.5] for text in [*FORMULAS, "좋다 = 최고"]])
    content = (tmp_path / "out.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert [row[0] for row in rows] == ["'=title", *("'" + text for text in FORMULAS), "좋다 = 최고"]
    assert rows[1][1] == "-0.5"  # a number stays one


def test_a_workbook_keeps_texts_as_they_are_and_computes_nothing(tmp_path: Path) -> None:
    texts = [*(text for text in FORMULAS if text != "\r=1"), "#REF!", "종 \x07 소리", 'a"b,c\nd']
    write_xlsx(tmp_path / "out.xlsx", ["=title"], [[text] for text in texts])
    sheet = load_workbook(tmp_path / "out.xlsx").active
    assert [row[0].value for row in sheet.rows] == ["=title", *(text.replace("\x07", "") for text in texts)]
    assert {row[0].data_type for row in sheet.rows} <= {"s", "inlineStr"}


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    write_csv(tmp_path / "out.csv", ["리뷰"], [[text] for text in REVIEWS])
    write_xlsx(tmp_path / "out.xlsx", ["리뷰"], [[text] for text in REVIEWS])
    for name in ("out.csv", "out.xlsx"):
        assert list(read_file(tmp_path / name).column("리뷰").values()) == REVIEWS


def test_a_short_row_has_empty_cells() -> None:
    assert Table({1: ["a", "b"], 2: ["c"]}).column("B") == {1: "b", 2: ""}
