"""What was collected, seen and is still to be fetched: one SQLite file, changed by one transaction per page.

A page's reviews, its being done, and the page that comes after it are written together, so after a ``kill -9`` at
any moment the pages that are not done are exactly those whose reviews are missing. Parquet is written from here: a
day whose reviews changed is marked in the same transaction and unmarked once its file is in place.

A crawl that reached its end without a gap is whole. Only what whole crawls without ``--since`` brought in lets a
later one stop early, for only there it is certain that everything older is here as well.
"""

import fcntl
import json
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from training.cleaning import words
from training.collection.near import bands, likeness
from training.collection.review import Review, Verdict, utc_now
from training.collection.site import Site
from training.errors import CollectionError

SCHEMA = """
CREATE TABLE IF NOT EXISTS crawls (
    id INTEGER PRIMARY KEY, site TEXT NOT NULL, since TEXT NOT NULL, until TEXT NOT NULL, described TEXT NOT NULL,
    began TEXT NOT NULL, ended TEXT, state TEXT NOT NULL,  -- running, whole, cut
    counts TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS pages (
    crawl INTEGER NOT NULL, url TEXT NOT NULL, start_url TEXT NOT NULL, number INTEGER NOT NULL, parent TEXT,
    known INTEGER NOT NULL, repeated INTEGER NOT NULL, broken INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (crawl, url)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reviews (
    id INTEGER PRIMARY KEY, site TEXT NOT NULL, review_id TEXT NOT NULL, digest TEXT NOT NULL, crawl INTEGER NOT NULL,
    seen INTEGER NOT NULL, day TEXT, reason TEXT, twin INTEGER,  -- the review it is nearly identical with
    document TEXT, rating INTEGER, label TEXT, stars REAL, language TEXT, hangul_share REAL, url TEXT, written_at TEXT,
    collected_at TEXT, author TEXT, provenance TEXT,
    UNIQUE (site, review_id)
);
CREATE INDEX IF NOT EXISTS reviews_by_day ON reviews (site, day);
CREATE TABLE IF NOT EXISTS bands (
    band INTEGER NOT NULL, review INTEGER NOT NULL, PRIMARY KEY (band, review)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS bands_by_review ON bands (review);
CREATE TABLE IF NOT EXISTS changed (site TEXT NOT NULL, day TEXT NOT NULL, PRIMARY KEY (site, day)) WITHOUT ROWID;
"""

NEAR_DUPLICATE = "nearly identical with another"
KEPT = [*(name for name in Review.model_fields if name != "review_id"), "provenance"]


@dataclass(frozen=True)
class Interval:
    """Days on which reviews were written, ``since`` included and ``until`` not; None is open."""

    since: date | None = None
    until: date | None = None

    def holds(self, day: str | None) -> bool:
        """A review without a day is in every interval, so that it is counted somewhere."""
        if day is None:
            return True
        return (self.since is None or day >= self.since.isoformat()) and not self.is_after(day)

    def is_after(self, day: str) -> bool:
        return self.until is not None and day >= self.until.isoformat()

    def is_before(self, day: str) -> bool:
        return self.since is not None and day < self.since.isoformat()


@dataclass(frozen=True)
class Waiting:
    """A page that is still to be fetched. ``known``, ``repeated``, ``broken``: such pages in a row right before it."""

    url: str
    start_url: str
    number: int
    known: int = 0
    repeated: int = 0
    broken: int = 0


@dataclass
class Taken:
    """What became of the reviews of a page; ``unseen`` were met for the first time in this crawl."""

    new: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    edited: int = 0
    outside: int = 0
    unseen: int = 0
    all_known: bool = False
    all_before: bool = False
    rejected: Counter = field(default_factory=Counter)


class Store:
    """The collection in ``folder``. Used by one crawl of a site at a time (`lock`), and by any number of sites."""

    def __init__(self, folder: Path):
        self.folder = folder
        # Readers of the Parquet files skip what begins with _.
        self.state, self.card = folder / "_state", folder / "_card.html"
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.state / "collection.sqlite3", timeout=60, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            with (self.state / "lock").open("a") as file:  # SQLite does not wait while another turns WAL on
                fcntl.flock(file, fcntl.LOCK_EX)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as exc:
            raise CollectionError(f"{folder} cannot hold a collection: {exc}; name another folder") from exc

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def lock(self, site: str) -> Iterator[None]:
        """One crawl of a site at a time; the lock goes with its process, however that ends."""
        with (self.state / f"{site}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CollectionError(
                    f"another crawl of {site} into {self.folder} is running; wait until it has ended"
                ) from None
            yield

    def salt(self) -> bytes:
        """Of the authors' hashes: made once, readable by the owner only."""
        file = self.state / "salt"
        try:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(secrets.token_bytes(32))
        except FileExistsError:
            pass
        return file.read_bytes()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # --- crawls ------------------------------------------------------------------------------------------------------

    def begin(self, site: Site, interval: Interval) -> tuple[int, bool]:
        """(the crawl, whether it goes on): the unfinished one of this interval, else a new one from the start.

        One that goes on fetches the pages before the missing ones again: where reviews were removed meanwhile, others
        have moved up onto them.
        """
        since, until = (str(day or "") for day in (interval.since, interval.until))
        with self._transaction():
            running = self._db.execute(
                "SELECT id FROM crawls "
                "WHERE site = ? AND since = ? AND until = ? AND described = ? AND state = 'running'",
                (site.name, since, until, site.digest),
            ).fetchone()
            if running:
                crawl = running["id"]
                self._db.execute(
                    "UPDATE pages SET done = 0 WHERE crawl = ? AND url IN "
                    "(SELECT parent FROM pages WHERE crawl = ? AND NOT done)",
                    (crawl, crawl),
                )
                return crawl, True
            self._db.execute(  # of another description: it cannot go on
                "UPDATE crawls SET state = 'cut' WHERE site = ? AND since = ? AND until = ? AND state = 'running'",
                (site.name, since, until),
            )
            crawl = self._db.execute(
                "INSERT INTO crawls (site, since, until, described, began, state) VALUES (?, ?, ?, ?, ?, 'running')",
                (site.name, since, until, site.digest, utc_now().isoformat()),
            ).lastrowid
            for start_url, url in zip(site.start_urls, site.first_pages, strict=True):
                self._add(crawl, Waiting(url, start_url, site.paging.first), parent=None)
            return crawl, False

    def may_stop(self, site: Site, interval: Interval) -> bool:
        """Whether a crawl may stop where all is known: not before the site was walked whole as it is described now."""
        return (
            site.paging.newest_first
            and interval.since is None
            and bool(
                self._db.execute(
                    "SELECT 1 FROM crawls WHERE site = ? AND since = '' AND described = ? AND state = 'whole'",
                    (site.name, site.digest),
                ).fetchone()
            )
        )

    def counts(self, crawl: int) -> dict:
        """What the runs of a crawl have counted so far."""
        return json.loads(self._db.execute("SELECT counts FROM crawls WHERE id = ?", (crawl,)).fetchone()[0])

    def end(self, crawl: int, state: str) -> None:
        """``whole`` or ``cut``; its pages are forgotten."""
        with self._transaction():
            self._db.execute(
                "UPDATE crawls SET state = ?, ended = ? WHERE id = ?", (state, utc_now().isoformat(), crawl)
            )
            self._db.execute("DELETE FROM pages WHERE crawl = ?", (crawl,))

    def waiting(self, crawl: int) -> list[Waiting]:
        rows = self._db.execute(
            "SELECT url, start_url, number, known, repeated, broken FROM pages WHERE crawl = ? AND NOT done "
            "ORDER BY number, url",
            (crawl,),
        )
        return [Waiting(*row) for row in rows]

    def _add(self, crawl: int, page: Waiting, parent: str | None) -> bool:
        added = self._db.execute(
            "INSERT OR IGNORE INTO pages (crawl, url, start_url, number, parent, known, repeated, broken) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (crawl, page.url, page.start_url, page.number, parent, page.known, page.repeated, page.broken),
        )
        return added.rowcount == 1

    # --- pages and reviews -------------------------------------------------------------------------------------------

    @contextmanager
    def page(self, crawl: int, page: Waiting) -> Iterator["PageWriter"]:
        """All that a page brings, written when the block ends, or nothing of it."""
        with self._transaction():
            yield PageWriter(self, crawl, page)
            self._db.execute("UPDATE pages SET done = 1 WHERE crawl = ? AND url = ?", (crawl, page.url))

    # --- what was collected ------------------------------------------------------------------------------------------

    def changed_days(self, site: str) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT day FROM changed WHERE site = ? ORDER BY day", (site,))]

    def kept(self, site: str, day: str) -> list[dict]:
        """The reviews of a day, in the order of their ids."""
        rows = self._db.execute(
            f"SELECT review_id, site, {', '.join(KEPT)} FROM reviews WHERE site = ? AND day = ? AND reason IS NULL "
            "ORDER BY review_id",
            (site, day),
        )
        return [dict(row) for row in rows]

    def written(self, site: str, day: str) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM changed WHERE site = ? AND day = ?", (site, day))

    def every_kept(self) -> list[tuple]:
        """(site, day, label, rating, language, hangul_share, characters) of every review that is kept."""
        return [
            tuple(row)
            for row in self._db.execute(
                "SELECT site, day, label, rating, language, hangul_share, length(document) FROM reviews "
                "WHERE reason IS NULL ORDER BY site, day"
            )
        ]

    def rejected(self) -> dict[str, dict[str, int]]:
        """Site → reason → reviews."""
        found: dict[str, dict[str, int]] = {}
        for site, reason, count in self._db.execute(
            "SELECT site, reason, count(*) FROM reviews WHERE reason IS NOT NULL GROUP BY site, reason"
        ):
            found.setdefault(site, {})[reason] = count
        return found

    def crawls(self) -> list[dict]:
        return [dict(row) for row in self._db.execute("SELECT * FROM crawls ORDER BY id")]


class PageWriter:
    """One page of a crawl, inside its transaction."""

    def __init__(self, store: Store, crawl: int, page: Waiting):
        self._store, self._db, self._crawl, self._page = store, store._db, crawl, page

    def follow(self, page: Waiting) -> bool:
        """Whether the page is a new one for this crawl."""
        return self._store._add(self._crawl, page, self._page.url)

    def count(self, counts: dict) -> None:
        """Keep what the crawl has counted, this page included."""
        self._db.execute("UPDATE crawls SET counts = ? WHERE id = ?", (json.dumps(counts), self._crawl))

    def take(self, verdicts: list[Verdict], site: Site, interval: Interval, *, may_stop: bool) -> Taken:
        taken = Taken()
        known = 0
        for verdict in verdicts:
            if not interval.holds(verdict.day):
                taken.outside += 1
                continue
            before = self._db.execute(
                "SELECT r.id, r.digest, r.day, r.reason, r.seen, c.state = 'whole' AND c.since = '' AS whole "
                "FROM reviews r JOIN crawls c ON c.id = r.crawl WHERE r.site = ? AND r.review_id = ?",
                (site.name, verdict.review_id),
            ).fetchone()
            taken.unseen += before is None or before["seen"] != self._crawl
            known += self._take(verdict, before, site, taken)
        days = [verdict.day for verdict in verdicts if verdict.day]
        taken.all_before = bool(days) and all(interval.is_before(day) for day in days)
        taken.all_known = may_stop and bool(verdicts) and known == len(verdicts)
        return taken

    def _take(self, verdict: Verdict, before: sqlite3.Row | None, site: Site, taken: Taken) -> bool:
        """Whether it was known from a whole crawl, and is as it was."""
        if before is not None and before["digest"] == verdict.digest and not self._judged_anew(verdict, before):
            self._db.execute("UPDATE reviews SET seen = ? WHERE id = ?", (self._crawl, before["id"]))
            taken.duplicates += 1
            return bool(before["whole"])

        reason, twin = verdict.reason, None
        if verdict.review is not None:
            plain = words(verdict.review.document)
            numbers = bands(plain)
            twin = self._twin(plain, numbers, before["id"] if before else None, site)
            reason = NEAR_DUPLICATE if twin else None
        number = self._write(verdict, before, site, reason, twin)
        self._db.execute("DELETE FROM bands WHERE review = ?", (number,))
        if verdict.review is not None and reason is None and len(plain) >= site.filters.near_duplicate_letters:
            self._db.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, number) for band in numbers])
        was_kept = before is not None and before["reason"] is None
        for day, kept in ((before["day"] if before else None, was_kept), (verdict.day, reason is None)):
            if day and kept:
                self._db.execute("INSERT OR IGNORE INTO changed VALUES (?, ?)", (site.name, day))

        if before is not None and before["digest"] != verdict.digest:
            taken.edited += 1
        elif reason is None:
            taken.new += 1
        if reason == NEAR_DUPLICATE:
            taken.near_duplicates += 1
        elif reason is not None:
            taken.rejected[reason] += 1
        return False

    @staticmethod
    def _judged_anew(verdict: Verdict, before: sqlite3.Row) -> bool:
        """The same review by other filters of the site's YAML."""
        if before["reason"] == NEAR_DUPLICATE:
            return verdict.review is None
        return verdict.reason != before["reason"]

    def _twin(self, plain: str, numbers: list[int], own: int | None, site: Site) -> int | None:
        """The kept review, of whatever site, with which a text is nearly identical."""
        if len(plain) < site.filters.near_duplicate_letters:
            return None
        marks = ", ".join("?" * len(numbers))
        candidates = self._db.execute(
            f"SELECT DISTINCT r.id, r.document FROM bands b JOIN reviews r ON r.id = b.review "
            f"WHERE b.band IN ({marks}) AND r.reason IS NULL ORDER BY r.id",
            numbers,
        )
        for number, document in candidates:
            if number != own and likeness(plain, words(document)) >= site.filters.near_duplicate:
                return number
        return None

    def _write(
        self, verdict: Verdict, before: sqlite3.Row | None, site: Site, reason: str | None, twin: int | None
    ) -> int:
        """The number of the row. Of a review that is not kept, no text and no author stays."""
        values = {
            "site": site.name,
            "review_id": verdict.review_id,
            "digest": verdict.digest,
            "crawl": self._crawl,
            "seen": self._crawl,
            "day": verdict.day,
            "reason": reason,
            "twin": twin,
            **dict.fromkeys(KEPT),
        }
        if verdict.review is not None and reason is None:
            kept = verdict.review.model_dump(exclude={"review_id"})
            values |= {name: value.isoformat() if name.endswith("_at") else value for name, value in kept.items()}
            values["provenance"] = json.dumps(
                {
                    "crawl": self._crawl,
                    "described_by": site.digest,
                    "page": self._page.number,
                    "rendered": site.javascript,
                    "scale": [site.rating.lowest, site.rating.highest],
                    "edited": before is not None and before["digest"] != verdict.digest,
                }
            )
        names = list(values)
        if before is not None:
            changes = ", ".join(f"{name} = :{name}" for name in names if name not in ("crawl", "site", "review_id"))
            self._db.execute(f"UPDATE reviews SET {changes} WHERE id = :number", {**values, "number": before["id"]})
            return before["id"]
        places = ", ".join(f":{name}" for name in names)
        return self._db.execute(f"INSERT INTO reviews ({', '.join(names)}) VALUES ({places})", values).lastrowid
