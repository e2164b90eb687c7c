"""What people said about answers: one row of SQLite per click, which `python -m training.data feedback` reads.

    opinions(id, text, answer, confidence, version, label, name, language, visit, at)

`answer` is the model's label and `label` the person's, both by the label's own name (positive, not 긍정). `name` is
what the person called himself, or empty; `visit` is one loading of the page, so that people without a name are told
apart. The file does not exist before the first click, and only its owner may read it.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

BUSY_SECONDS = 5.0  # for another writer; one row takes a millisecond
MAX_NAME = 40  # characters
LISTED = 200  # rows

TABLE = """
CREATE TABLE IF NOT EXISTS opinions (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    answer TEXT NOT NULL,
    confidence REAL NOT NULL,
    version TEXT NOT NULL,
    label TEXT NOT NULL,
    name TEXT NOT NULL,
    language TEXT NOT NULL,
    visit TEXT NOT NULL,
    at TEXT NOT NULL
)
"""


class StoreFailed(Exception):
    """The file cannot be read or written: disk full, no permission, no database, or locked for BUSY_SECONDS."""


@dataclass(frozen=True)
class Opinion:
    """``confidence`` is the model's, 0 to 1; ``at`` is ISO 8601 in UTC."""

    text: str
    answer: str
    confidence: float
    version: str
    label: str
    name: str
    language: str
    visit: str
    at: str


COLUMNS = ", ".join(field.name for field in fields(Opinion))


class Opinions:
    """The file of all opinions; safe to share between threads and between processes.

    Raises, in every method: StoreFailed.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, opinion: Opinion) -> None:
        with self._opened() as connection, connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(TABLE)
            marks = ", ".join("?" for _ in fields(Opinion))
            connection.execute(f"INSERT INTO opinions ({COLUMNS}) VALUES ({marks})", astuple(opinion))

    def of_visit(self, visit: str) -> list[Opinion]:
        """The latest LISTED opinions of one visit, newest first."""
        if not self.file.exists():
            return []
        with self._opened() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM opinions WHERE visit = ? ORDER BY id DESC LIMIT ?", (visit, LISTED)
            )
            return [Opinion(*row) for row in rows]

    def withdraw(self, visit: str) -> int:
        """Delete what one visit has said; how many rows that were."""
        if not self.file.exists():
            return 0
        with self._opened() as connection, connection:
            connection.execute("PRAGMA secure_delete = ON")  # the text is overwritten, not only unlinked
            return connection.execute("DELETE FROM opinions WHERE visit = ?", (visit,)).rowcount

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its side files the same rights
            with closing(sqlite3.connect(self.file, timeout=BUSY_SECONDS)) as connection:
                yield connection
        except (OSError, sqlite3.Error) as exc:
            raise StoreFailed(f"{self.file}: {exc}") from exc


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain_name(name: str) -> str:
    """What a person typed as a name, on one line, without anything that cannot be seen, and not too long."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in name).split())[:MAX_NAME]
