"""What a crawl counted, and the watch over the layout: a rebuilt site must not look like a site without news."""

from collections import Counter
from dataclasses import dataclass, field

from training.collection.page import Page
from training.collection.review import MISSING, Verdict
from training.collection.site import Site
from training.collection.store import Taken

ENOUGH_REVIEWS = 10
"""Before fewer, a field that is missing is a review's own fault."""

MOST_MISSING = 0.5
"""Share of the reviews without one field, beyond which its selector is to blame."""

BROKEN_IN_A_ROW = 3
MOST_BROKEN = 0.2
"""Share of the pages, once there are BROKEN_IN_A_ROW broken ones."""

COUNTED = ("pages", "broken_pages", "new", "duplicates", "near_duplicates", "edited", "rejected", "gap")


@dataclass
class Tally:
    """Of one crawl, over all the runs that it took; ``gap``: something that it should have read is missing.

    ``alarm`` is the sentence on what looks like another layout, ``refused`` that on why this run cannot go on.
    """

    site: Site
    pages: int = 0
    broken_pages: int = 0
    new: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    edited: int = 0
    rejected: Counter = field(default_factory=Counter)
    gap: bool = False
    alarm: str | None = None
    refused: str | None = None
    _found: int = 0
    _missing: Counter = field(default_factory=Counter)

    @classmethod
    def of(cls, site: Site, counts: dict) -> "Tally":
        """Going on from what `counts` said."""
        return cls(site, **{**counts, "rejected": Counter(counts.get("rejected", {}))})

    def counts(self) -> dict:
        return {name: getattr(self, name) for name in COUNTED}

    def add(self, taken: Taken) -> None:
        self.new += taken.new
        self.duplicates += taken.duplicates
        self.near_duplicates += taken.near_duplicates
        self.edited += taken.edited
        self.rejected.update(taken.rejected)

    def watch(self, page: Page, verdicts: list[Verdict], url: str, *, first: bool, status: int) -> bool:
        """Count a page; whether it is broken. Sets ``alarm`` when pages look unlike what the YAML describes."""
        self.pages += 1
        look = self.site.selectors
        missing = Counter(verdict.reason for verdict in verdicts if verdict.reason in MISSING)
        self._found += len(verdicts)
        self._missing.update(missing)
        # Half-broken: most of its reviews lack something that every review has.
        broken = not page.whole or (len(verdicts) > 0 and missing.total() > MOST_MISSING * len(verdicts))
        self.broken_pages += broken
        if first and not page.whole and not page.says_empty:
            self.alarm = (
                f"{url} (HTTP {status}) has no {look.list!r} (selectors.list): the layout has changed, or it is gone"
            )
        elif first and not verdicts and not page.says_empty:
            self.alarm = (
                f"{url} has a list without any {look.review!r} (selectors.review): the layout has changed, or "
                "there is no review, which selectors.empty would tell"
            )
        elif self.broken_pages >= BROKEN_IN_A_ROW and self.broken_pages > MOST_BROKEN * self.pages:
            self.alarm = (
                f"{self.broken_pages} of {self.pages} pages are broken: the layout has changed, or the site ails"
            )
        elif self._found >= ENOUGH_REVIEWS:
            for reason, count in self._missing.items():
                if count > MOST_MISSING * self._found:
                    wanted = getattr(look, MISSING[reason]).css
                    self.alarm = (
                        f"{count} of {self._found} reviews have {reason}: selectors.{MISSING[reason]} ({wanted!r}) "
                        "does not find it any more"
                    )
        return broken

    def as_json(self, folder: str) -> dict:
        return {
            "site": self.site.name,
            "new": self.new,
            "duplicates": self.duplicates,
            "near_duplicates": self.near_duplicates,
            "edited": self.edited,
            "rejected": dict(sorted(self.rejected.items())),
            "broken_pages": self.broken_pages,
            "pages": self.pages,
            "alarm": self.alarm,
            "folder": folder,
        }
