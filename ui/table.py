"""Tables of texts: read from what people have (lines, TXT, CSV, XLSX), written as what they can open (CSV, XLSX).

A row keeps the number it has in its file, counted from 1 with the row of titles.  Rows that cannot be read are set
aside under that number; the others are read all the same.  Reasons are keys, which ui/batch.py puts into words.
"""

import csv
import io
import logging
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from openpyxl import Workbook, load_workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.utils import get_column_letter

from ui.gateway import whole

MAX_BYTES = 50_000_000
MAX_ROWS = 100_000
MAX_COLUMNS = 100
MAX_UNPACKED_BYTES = 500_000_000  # of an XLSX, which is a zip file and may be a bomb
LINES_OF_A_RECORD = 100  # a quote that is still open after so many was never closed
UNREADABLE_SHARE = 0.2  # of the characters beyond ASCII; more, and it is another encoding
SUFFIXES = (".txt", ".csv", ".xlsx")
DELIMITERS = ",\t;|"
TEXT_TITLES = ("text", "texts", "document", "review", "comment", "content", "sentence", "리뷰", "후기", "댓글", "내용")
TEXT_TITLES += ("문장", "본문", "텍스트", "의견", "글")
SAMPLE_ROWS = 200  # looked at to guess which column holds what
DATE = r"^\s*((?:19|20)\d{2})\D{0,3}(\d{1,2})\D{0,3}(\d{1,2})"
BROKEN_BYTES = re.compile("[\udc80-\udcff]")  # as "surrogateescape" leaves them
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠\t\r\n|]")

log = logging.getLogger(__name__)


class TableRefused(Exception):
    """A whole file that is not read: `reason` is a key, `values` belong into its sentence."""

    def __init__(self, reason: str, **values: object) -> None:
        super().__init__(f"{reason}: {values}")
        self.reason = reason
        self.values = values


@dataclass(frozen=True)
class Table:
    """``rows`` by number, the row of titles included; ``broken`` are reasons by number; ``titled`` may be changed."""

    rows: dict[int, list[str]]
    broken: dict[int, str] = field(default_factory=dict)
    encoding: str = "UTF-8"
    titled: bool = False

    @property
    def width(self) -> int:
        return max(map(len, self.rows.values()), default=0)

    @property
    def columns(self) -> list[str]:
        """Titles, or the letters a spreadsheet shows; never two alike."""
        letters = [get_column_letter(place + 1) for place in range(self.width)]
        if not self.titled:
            return letters
        titles = next(iter(self.rows.values()), [])
        names: list[str] = []
        for place, letter in enumerate(letters):
            title = titles[place].strip() if place < len(titles) else ""
            names.append(title if title and title not in names else f"{title} {letter}".strip())
        return names

    @property
    def records(self) -> dict[int, list[str]]:
        """The rows below the titles, by number."""
        numbers = list(self.rows)[1:] if self.titled else list(self.rows)
        return {number: self.rows[number] for number in numbers}

    def column(self, name: str) -> dict[int, str]:
        """Cells by row number; "" where a row is too short."""
        place = self.columns.index(name)
        return {number: cells[place] if place < len(cells) else "" for number, cells in self.records.items()}

    def text_column(self) -> str:
        """The column that seems to hold the texts: by its title, else the one with the longest cells."""
        columns = self.columns
        for name in columns:
            if name.strip().lower() in TEXT_TITLES:
                return name
        return max(columns, key=lambda name: sum(map(len, self._sample(name))))

    def date_column(self) -> str | None:
        """The first column in which nearly every cell begins with a date."""
        for name in self.columns:
            cells = [cell for cell in self._sample(name) if cell.strip()]
            if cells and sum(re.match(DATE, cell) is not None for cell in cells) >= 0.8 * len(cells):
                return name
        return None

    def _sample(self, name: str) -> list[str]:
        return list(self.column(name).values())[:SAMPLE_ROWS]


def read_lines(text: str) -> Table:
    """One text a line; empty lines are no rows.  Half characters, which a browser can send, become question marks."""
    return _checked(_read_txt(whole(text), "UTF-8"))


def read_file(file: Path) -> Table:
    """A TXT, CSV or XLSX file (by its suffix) of at most MAX_BYTES and MAX_ROWS.  TableRefused otherwise."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise TableRefused("wrong_type", suffix=suffix or file.name)
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise TableRefused("too_large", megabytes=size / 1e6, limit=MAX_BYTES / 1e6)
    if suffix == ".xlsx":
        return _checked(_read_xlsx(file))
    text, encoding = _decoded(file.read_bytes())
    return _checked(_read_txt(text, encoding) if suffix == ".txt" else _read_csv(text, encoding))


def _checked(table: Table) -> Table:
    if not table.records:
        raise TableRefused("no_rows")
    if len(table.records) > MAX_ROWS:
        raise TableRefused("too_many_rows", rows=len(table.records), limit=MAX_ROWS)
    if table.width > MAX_COLUMNS:
        raise TableRefused("too_many_columns", columns=table.width, limit=MAX_COLUMNS)
    return table


def _decoded(data: bytes) -> tuple[str, str]:
    """The text and the name of its encoding.  Bytes that do not belong are kept as BROKEN_BYTES."""
    if b"\0" in data:  # UTF-16, or no text at all
        raise TableRefused("unknown_encoding")
    for codec, name in (("utf-8-sig", "UTF-8"), ("cp949", "CP949")):
        text = data.decode(codec, errors="surrogateescape")
        beyond_ascii = sum(character > "\x7f" for character in text) if not text.isascii() else 0
        if len(BROKEN_BYTES.findall(text)) <= UNREADABLE_SHARE * beyond_ascii:
            return text, name
    raise TableRefused("unknown_encoding")


def _read_txt(text: str, encoding: str) -> Table:
    lines = enumerate(io.StringIO(text, newline=None), 1)
    return _sorted_out(((number, [line.rstrip("\n")]) for number, line in lines), encoding, titled=False)


def _read_csv(text: str, encoding: str) -> Table:
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    return _sorted_out(_csv_records(text, delimiter), encoding, titled=True)


def _sorted_out(records: Iterable[tuple[int, list[str] | None]], encoding: str, *, titled: bool) -> Table:
    """The records that can be read, and why the others cannot.  Records of nothing but blanks are no rows."""
    rows: dict[int, list[str]] = {}
    broken: dict[int, str] = {}
    width = 0
    for number, cells in records:
        if cells is None:
            broken[number] = "open_quote"
        elif any(map(BROKEN_BYTES.search, cells)):
            broken[number] = "broken_bytes"
        elif not any(cell.strip() for cell in cells):
            continue
        elif width and len(cells) > width:
            broken[number] = "too_many_cells"
        else:
            width = width or len(cells)
            rows[number] = cells
    return Table(rows, broken, encoding, titled)


def _csv_records(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """Records with their numbers; None for a line whose quote is never closed, and reading goes on in the next line."""
    lines = _Lines(io.StringIO(text, newline="").readlines())
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    while lines.place < len(lines.lines):
        number += 1
        begin = lines.place
        lines.end = min(begin + LINES_OF_A_RECORD, len(lines.lines))
        try:
            cells = next(reader)
        except csv.Error:
            lines.place = begin + 1
            cells = None
        yield number, cells


class _Lines:
    """Feeds a csv.reader up to `end`, and again from any `place`."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.place = self.end = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.place >= self.end:
            raise StopIteration
        self.place += 1
        return self.lines[self.place - 1]


def _read_xlsx(file: Path) -> Table:
    """The first sheet, formulas by the values they had when the file was saved."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise TableRefused("too_large", megabytes=unpacked / 1e6, limit=MAX_UNPACKED_BYTES / 1e6)
        with warnings.catch_warnings(action="ignore"):  # about styles and rules, which are not read
            workbook = load_workbook(file, read_only=True, data_only=True)
            try:
                return _read_sheet(workbook.worksheets[0])
            finally:
                workbook.close()
    except TableRefused:
        raise
    except Exception as exc:  # whatever zipfile, XML parser and openpyxl make of bytes that are no workbook
        log.warning("an XLSX file could not be read: %s", type(exc).__name__)
        raise TableRefused("broken_xlsx") from exc


def _read_sheet(sheet) -> Table:
    sheet.reset_dimensions()  # what a file says about its size may be wrong
    rows: dict[int, list[str]] = {}
    for number, values in enumerate(sheet.iter_rows(max_col=MAX_COLUMNS + 1, values_only=True), 1):
        cells = [_shown(value) for value in values]
        while cells and not cells[-1].strip():
            cells.pop()
        if cells:
            rows[number] = cells
        if len(rows) > MAX_ROWS + 1:
            raise TableRefused("too_many_rows", rows=number, limit=MAX_ROWS)
    return Table(rows, encoding="XLSX", titled=True)


def _shown(value: object) -> str:
    """A cell as text: dates in ISO 8601, whole numbers without a point."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds").removesuffix(" 00:00:00")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """UTF-8 with a byte order mark, for Excel.  A text that a spreadsheet would take for a formula gets a ' in front
    (OWASP, CSV injection): it is shown, not computed.
    """
    with file.open("w", encoding="utf-8-sig", newline="") as lines:
        writer = csv.writer(lines, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(map(_harmless, columns))
        writer.writerows(map(_harmless, row) for row in rows)


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def write_xlsx(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Texts are written as texts, so nothing in them is computed and nothing of them changes, but for control
    characters, which XLSX cannot hold and which are left out.
    """
    workbook = Workbook(write_only=True)
    sheet = workbook.create_sheet("Nunchi")
    sheet.freeze_panes = "A2"

    def cell(value: object) -> object:
        if not isinstance(value, str):
            return value
        text = ILLEGAL_CHARACTERS_RE.sub("", value)
        if not text.startswith(("=", "#")):  # openpyxl takes all others for text
            return text
        kept = WriteOnlyCell(sheet, text)
        kept.data_type = "s"
        return kept

    sheet.append([cell(name) for name in columns])
    for row in rows:
        sheet.append([cell(value) for value in row])
    workbook.save(file)
