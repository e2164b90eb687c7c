"""One file of reviews, checked row by row: TSV, CSV or Parquet, packed with gzip or not.

What is wrong with a file as a whole, or would teach the wrong thing, is refused with its line: a missing column, a
label that is none, bytes of another encoding, a cut-off gzip, a file that is written to while it is read. A row that
cannot be used by itself is dropped and counted: no text, a NUL byte, more or fewer fields than the header. More than
``MAX_DAMAGED`` of such damage, and the file is not what it says.
"""

import codecs
import csv
import gzip
import io
import logging
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.config import KOREAN, POLARITY, STARS
from training.errors import DatasetError

log = logging.getLogger(__name__)

FORMATS = (".tsv", ".txt", ".csv", ".parquet")
MAX_DAMAGED = 0.05
GZIP_MAGIC = b"\x1f\x8b"
BLOCK = 1 << 20  # bytes read at one time
NAMED = 5  # places that a message names

WRONG, LEFT_OUT = -1, -2  # instead of a label's index

NO_TEXT, NUL, BETWEEN = "no text", "a NUL byte in the text", "5 to 8 stars, neither negative nor positive"


@dataclass(frozen=True)
class Finding:
    """``rows`` of ``source`` for one ``reason``; ``first``: the lines of the first of them (Parquet: row numbers)."""

    source: str
    reason: str
    rows: int
    dropped: bool
    first: tuple[str, ...]

    def __str__(self) -> str:
        rows = "1 row" if self.rows == 1 else f"{self.rows:,} rows"
        return (
            f"{self.source}: {rows} {'dropped' if self.dropped else 'kept'}: {self.reason} (at {', '.join(self.first)})"
        )


@dataclass(frozen=True)
class DataReport:
    """How many rows each source held, and what was found in them."""

    read: dict[str, int]
    findings: tuple[Finding, ...] = ()

    def __add__(self, other: "DataReport") -> "DataReport":
        return DataReport({**self.read, **other.read}, self.findings + other.findings)

    @property
    def dropped(self) -> int:
        return sum(finding.rows for finding in self.findings if finding.dropped)

    def table(self) -> str:
        """For a terminal: one line per source and finding."""
        lines = [f"{'source':24} {'rows':>9}  {'done':8} {'what':44} first lines"]
        for source, rows in self.read.items():
            lines.append(f"{source:24} {rows:9,}  read")
            for found in self.findings:
                if found.source == source:
                    done = "dropped" if found.dropped else "kept"
                    lines.append(f"{'':24} {found.rows:9,}  {done:8} {found.reason:44} {', '.join(found.first)}")
        return "\n".join(lines)

    def write_log(self) -> None:
        for finding in self.findings:
            log.log(logging.WARNING if finding.dropped else logging.INFO, "%s", finding)


@dataclass(frozen=True)
class Source:
    """How a file is read. Where it has ``star_column`` (1 to 10), the labels are cut from that one."""

    labels: list[str]
    text_column: str = "document"
    label_column: str = "label"
    star_column: str | None = None
    encoding: str = "utf-8"
    max_megabytes: int = 2048


@dataclass(frozen=True)
class Table:
    """The two columns of a file as text, ``document`` and ``value``; the index is the line (Parquet: the row) from 1.

    ``empty`` and ``ragged`` are the lines without fields, and with more or fewer than the header.
    """

    rows: pd.DataFrame
    label_column: str
    empty: list[int]
    ragged: list[int]


def read_reviews(
    path: Path,
    labels: list[str] = POLARITY,
    text_column: str = "document",
    label_column: str = "label",
    encoding: str = "utf-8",
) -> pd.DataFrame:
    """The reviews of one file: ``document`` (str), ``label`` (index into ``labels``). What is dropped is logged.

    A label is written as its index, its name or its Korean name.

    Raises:
        DatasetError: the file is missing, damaged, without the columns, or holds a label that is none.
    """
    rows, report = check_reviews(path, Source(labels, text_column, label_column, encoding=encoding))
    report.write_log()
    return rows.reset_index(drop=True)


def check_reviews(path: Path, source: Source) -> tuple[pd.DataFrame, DataReport]:
    """``document`` and ``label`` of every good row, indexed by line, and what became of the others.

    Raises:
        DatasetError: as `read_reviews`.
    """
    content = read_bytes(path, source.max_megabytes)
    parquet = path.name.removesuffix(".gz").endswith(".parquet")
    table = _parquet_table(path, content, source) if parquet else _text_table(path, content, source)
    rows = table.rows
    read = len(rows) + len(table.empty) + len(table.ragged)
    empty = rows.document.str.strip() == ""
    nul = rows.document.str.contains("\0", regex=False)
    dropped = {
        NO_TEXT: sorted([*table.empty, *rows.index[empty]]),
        NUL: rows.index[nul].tolist(),
        "more or fewer fields than the header": table.ragged,
    }
    _refuse_damage(path, sorted(dropped[NUL] + table.ragged), read)

    rows = rows[~(empty | nul)]
    by_stars = table.label_column == source.star_column
    label = stars_to_labels(rows.value, source.labels) if by_stars else _names_to_labels(rows.value, source.labels)
    known = "1 to 10" if by_stars else " or ".join(_spellings(source.labels))
    _refuse_wrong(path, table.label_column, rows.value[label == WRONG], known)
    dropped[BETWEEN] = rows.index[label == LEFT_OUT].tolist()
    findings = [Finding(path.name, why, len(lines), True, places(lines)) for why, lines in dropped.items() if lines]
    rows = pd.DataFrame({"document": rows.document, "label": label})[label >= 0]
    return rows, DataReport({path.name: read}, tuple(findings))


def places(index: Iterable) -> tuple[str, ...]:
    """The first few entries of an index of lines, or of (file, line)."""
    entries = list(index[: NAMED + 1])
    shown = [" ".join(map(str, entry)) if isinstance(entry, tuple) else str(entry) for entry in entries[:NAMED]]
    return (*shown, "…") if len(entries) > NAMED else tuple(shown)


def read_bytes(path: Path, max_megabytes: int) -> bytearray:
    """The whole file, unpacked if it is called ``.gz``.

    Raises:
        DatasetError: it is missing, larger than ``max_megabytes`` packed or unpacked, damaged, or changes meanwhile.
    """
    limit = max_megabytes << 20
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; name a file in it")
    if not path.name.removesuffix(".gz").endswith(FORMATS):
        raise DatasetError(
            f"{path.name} is called neither {', '.join(FORMATS)} nor one of these with .gz; save it as one of these"
        )
    content = bytearray()
    try:
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):
            raise DatasetError(f"{path} is no file; name a file of reviews")
        if before.st_size > limit:
            raise DatasetError(_too_large(path, f"is {before.st_size / 2**20:,.0f} MB", max_megabytes))
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(BLOCK):
                content += block
                if len(content) > limit:
                    raise DatasetError(_too_large(path, "is larger unpacked", max_megabytes))
        after = path.stat()
    except FileNotFoundError as exc:
        raise DatasetError(f"{path} does not exist") from exc
    except EOFError as exc:
        lines = content.count(b"\n")
        raise DatasetError(f"{path.name} is cut off after line {lines}: its gzip has no end; copy it again") from exc
    except (gzip.BadGzipFile, zlib.error) as exc:
        with path.open("rb") as file:
            if file.read(2) != GZIP_MAGIC:
                raise DatasetError(f"{path.name} is no gzip file; if it is plain text, rename it without .gz") from exc
        lines = content.count(b"\n")
        raise DatasetError(f"{path.name} is no whole gzip, damaged after line {lines} ({exc}); copy it again") from exc
    except OSError as exc:
        raise DatasetError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if _state(before) != _state(after):
        raise DatasetError(
            f"{path.name} changed while it was read ({before.st_size:,} bytes before, {after.st_size:,} after); "
            f"wait until it is written, then start again"
        )
    return content


def _state(status) -> tuple:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _too_large(path: Path, what: str, max_megabytes: int) -> str:
    return (
        f"{path.name} {what}, and {max_megabytes:,} MB (dataset.max_megabytes) may be read, as reviews are held in "
        f"memory; raise the limit or cut the file"
    )


def _text_table(path: Path, content: bytearray, source: Source) -> Table:
    text = _decoded(path, content, source.encoding)
    quoted = path.name.removesuffix(".gz").endswith(".csv")
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="," if quoted else "\t",
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    documents, values, lines = [], [], []
    empty, ragged = [], []
    line = 1
    try:
        names = [name.strip() for name in next(reader, [])]
        text_column, label_column = _columns(path, names, source)
        first, second = names.index(text_column), names.index(label_column)
        line = reader.line_num + 1  # a quoted text may hold line breaks: the line on which the row starts
        for fields in reader:
            if len(fields) == len(names):
                documents.append(fields[first])
                values.append(fields[second])
                lines.append(line)
            else:
                (ragged if fields else empty).append(line)
            line = reader.line_num + 1
    except csv.Error as exc:
        raise DatasetError(f"{path.name} line {line}: {exc}; a quote or a separator is wrong there") from exc
    rows = pd.DataFrame({"document": documents, "value": values}, index=lines, dtype="str")
    return Table(rows.assign(value=rows.value.str.strip()), label_column, empty, ragged)


def _decoded(path: Path, content: bytearray, encoding: str) -> str:
    codec = codecs.lookup(encoding).name
    if codec != "utf-8" and not content.isascii() and _fits(content, "utf-8"):
        # Much Korean in UTF-8 is also valid CP949, of other syllables; the reverse does not happen to a whole file.
        raise DatasetError(f"{path.name} reads well as utf-8, which is not {encoding}; set dataset.encoding to utf-8")
    try:
        return content.decode("utf-8-sig" if codec == "utf-8" else encoding)
    except UnicodeDecodeError as exc:
        line = content[: exc.start].count(b"\n") + 1
        other = next((name for name in ("utf-16", "cp949") if _fits(content, name)), None)
        remedy = f"it reads well as {other}: set dataset.encoding to {other}" if other else "mend or remove that line"
        raise DatasetError(f"{path.name} line {line} is not {encoding} (byte {exc.start}); {remedy}") from None


def _fits(content: bytearray, encoding: str) -> bool:
    if encoding == "utf-16" and not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False  # nearly any bytes decode as UTF-16
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _parquet_table(path: Path, content: bytearray, source: Source) -> Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        text_column, label_column = _columns(path, file.schema_arrow.names, source)
        kind = file.schema_arrow.field(text_column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DatasetError(f"{path.name}: column {text_column} holds {kind}, not text; write it as string")
        rows = _parquet_rows(path, file, [text_column, label_column], source.max_megabytes)
    except (pa.ArrowException, OSError) as exc:
        raise DatasetError(f"{path.name} is no whole Parquet file ({str(exc).splitlines()[0]}); write it anew") from exc
    rows.index = range(1, len(rows) + 1)
    return Table(rows.assign(value=rows.value.str.strip()), label_column, [], [])


def _parquet_rows(path: Path, file: pq.ParquetFile, columns: list[str], max_megabytes: int) -> pd.DataFrame:
    size, chunks = 0, [[], []]
    for batch in file.iter_batches(columns=columns):
        for chunk, name in zip(chunks, columns, strict=True):
            column = pc.fill_null(pc.cast(batch[name], pa.large_string()), "")
            column.validate(full=True)  # that it is UTF-8
            chunk.append(column)
            size += column.nbytes
        if size > max_megabytes << 20:
            raise DatasetError(_too_large(path, "is larger unpacked", max_megabytes))
    texts, values = (pa.chunked_array(chunk, pa.large_string()).to_pandas() for chunk in chunks)
    return pd.DataFrame({"document": texts, "value": values}, dtype="str")


def _columns(path: Path, names: list[str], source: Source) -> tuple[str, str]:
    """The text's column, and that of the stars or else of the label."""
    if not names:
        raise DatasetError(f"{path.name} is empty; its first line must name the columns")
    wanted = source.text_column, source.star_column if source.star_column in names else source.label_column
    missing = [name for name in wanted if name not in names]
    if missing:
        shown = ", ".join(names)
        raise DatasetError(f"{path.name} has no column {' and no '.join(missing)}; it has {shown[:300]}")
    for name in wanted:
        if names.count(name) > 1:
            raise DatasetError(f"{path.name} has {names.count(name)} columns called {name}; rename all but one")
    return wanted


def _names_to_labels(values: pd.Series, labels: list[str]) -> np.ndarray:
    """INT64 [rows]: indexes into ``labels``, or WRONG."""
    return values.str.lower().map(_spellings(labels)).fillna(WRONG).to_numpy(np.int64)


def _spellings(labels: list[str]) -> dict[str, int]:
    """Each label's index by that index, its name and its Korean name."""
    spellings = {}
    for index, label in enumerate(labels):
        spellings |= dict.fromkeys([str(index), label.strip().lower(), KOREAN.get(label, str(index))], index)
    return spellings


def stars_to_labels(values: pd.Series, labels: list[str]) -> np.ndarray:
    """INT64 [rows] of stars 1-4, 5-8 and 9-10: indexes into ``labels``; WRONG for others, LEFT_OUT for 5-8 of two."""
    known = {str(stars): STARS[(stars > 4) + (stars > 8)] for stars in range(1, 11)}
    index = {stars: labels.index(name) if name in labels else LEFT_OUT for stars, name in known.items()}
    return values.map(index).fillna(WRONG).to_numpy(np.int64)


def _refuse_wrong(path: Path, column: str, wrong: pd.Series, known: str) -> None:
    if wrong.empty:
        return
    more = f"; {len(wrong):,} rows are wrong, on lines {', '.join(places(wrong.index))}" if len(wrong) > 1 else ""
    raise DatasetError(
        f"{path.name} line {wrong.index[0]}: {column} is {wrong.iloc[0][:80]!r}; it must be {known}{more}"
    )


def _refuse_damage(path: Path, lines: list[int], read: int) -> None:
    if len(lines) > MAX_DAMAGED * read:
        raise DatasetError(
            f"{path.name}: {len(lines):,} of {read:,} rows have a NUL byte or not as many fields as the header, on "
            f"lines {', '.join(places(lines))}, and {MAX_DAMAGED:.0%} may; mend them, or name the file after its format"
        )
