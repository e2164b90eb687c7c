"""The collection as Parquet: ``site=NAME/day=YYYY-MM-DD/reviews.parquet``, each file replaced whole.

The day is the one on which a review was written, in the site's time zone. Columns: ``review_id``, ``document``
(cleaned), ``rating`` 1-10, ``label``, ``stars`` (the site's own), ``language``, ``hangul_share``, ``site``,
``url``, ``written_at``, ``collected_at``, ``author`` (null, or a salted hash), ``provenance`` (JSON: crawl,
description of the site, page, scale).
"""

import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from training.collection.store import Store
from training.errors import CollectionError

FILE = "reviews.parquet"


def schema(timezone: str) -> pa.Schema:
    return pa.schema(
        [
            ("review_id", pa.string()),
            ("document", pa.string()),
            ("rating", pa.int8()),
            ("label", pa.string()),
            ("stars", pa.float64()),
            ("language", pa.string()),
            ("hangul_share", pa.float32()),
            ("site", pa.dictionary(pa.int32(), pa.string())),  # as readers take it from the folder's name
            ("url", pa.string()),
            ("written_at", pa.timestamp("s", timezone)),
            ("collected_at", pa.timestamp("s", "UTC")),
            ("author", pa.string()),
            ("provenance", pa.string()),
        ]
    )


def write_changed(store: Store, site: str, timezone: str) -> int:
    """Bring the files of every changed day up to date; how many there were. After a kill the next run goes on."""
    days = store.changed_days(site)
    for day in days:
        folder = store.folder / f"site={site}" / f"day={day}"
        try:
            _write(folder / FILE, store.kept(site, day), schema(timezone))
        except OSError as exc:
            raise CollectionError(f"{folder} cannot be written: {exc.strerror or exc}; the reviews are kept") from exc
        store.written(site, day)
    return len(days)


def _write(file: Path, rows: list[dict], columns: pa.Schema) -> None:
    if not rows:  # the last review of that day was edited away
        file.unlink(missing_ok=True)
        return
    for row in rows:
        for name in ("written_at", "collected_at"):
            row[name] = datetime.fromisoformat(row[name]).astimezone(UTC)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as out:
            pq.write_table(pa.Table.from_pylist(rows, schema=columns), out, compression="zstd")
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
