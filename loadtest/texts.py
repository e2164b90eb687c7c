"""The texts that are asked: reviews of natural length, from a file the user names or the bundled ones."""

import csv
import random
from pathlib import Path

from loadtest.settings import ROOT

BUNDLED = ROOT / "training" / "sample_reviews.tsv"  # a file like any other: nothing of that room is imported
COLUMNS = ("document", "text")  # NSMC's name for it, and everyone else's


class NoTexts(Exception):
    """The file holds nothing to ask; the message says why and what would do."""


def read_texts(file: Path | None = None, seed: int = 1) -> list[str]:
    """The texts of ``file`` in random order, always the same: a TSV with a ``document`` or ``text`` column, or plain
    lines.

    Raises:
        NoTexts: it cannot be read, or has no text.
    """
    file = file or BUNDLED
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise NoTexts(f"{file} cannot be read ({exc}); name a UTF-8 file of reviews") from None
    head = lines[0].split("\t") if lines else []
    column = next((name for name in COLUMNS if name in head), None)
    if column:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        lines = [row[column] or "" for row in rows]
    texts = [text.strip() for text in lines if text.strip()]
    if not texts:
        raise NoTexts(f"{file} has no text; write one per line, or a TSV with a column {' or '.join(COLUMNS)}")
    random.Random(seed).shuffle(texts)
    return texts
