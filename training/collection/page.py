"""One page, read: its reviews as they stand there, and where the next page is.

Nothing is judged here. A page without ``selectors.list`` is broken; a page with it and without reviews is an end.
"""

import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

from parsel import Selector

from training.collection.site import Site, Value

KEPT_PAGES = 20
"""Broken pages of one site that are kept; older ones go."""

TEXT = ".//text()[not(parent::script or parent::style)]"
TAG = re.compile(r"(<[^<>]*>)")
SHOWN = r"class\b|id\b|type\b|rel\b|itemprop\b"
ATTRIBUTE = re.compile(rf"""((?<![\w-])(?!{SHOWN})[\w:-]+\s*=\s*)("[^"]*"|'[^']*'|[^\s"'>]+)""", re.IGNORECASE)
HANGUL, LETTER, DIGIT = re.compile("[가-힣]"), re.compile(r"[^\W\d_가]"), re.compile(r"\d")


@dataclass(frozen=True)
class RawReview:
    """As the page says it, stripped; None is what is not there, or empty."""

    review_id: str | None
    text: str | None
    stars: str | None
    written_at: str | None
    author: str | None


@dataclass(frozen=True)
class Page:
    """``whole``: the list of reviews is there. ``next_url``: absolute, on a host of the site, or None."""

    reviews: tuple[RawReview, ...]
    whole: bool
    says_empty: bool
    next_url: str | None


def read_page(page: Selector, url: str, number: int, site: Site, start_url: str) -> Page:
    """``number`` counts from ``paging.first``; ``start_url`` is the one of the site's that led here."""
    look = site.selectors
    return Page(
        reviews=tuple(_read_review(review, site) for review in page.css(look.review)),
        whole=bool(page.css(look.list)),
        says_empty=look.empty is not None and bool(page.css(look.empty)),
        next_url=_next_url(page, url, number, site, start_url),
    )


def _read_review(review: Selector, site: Site) -> RawReview:
    look = site.selectors
    return RawReview(
        review_id=_read(review, look.id),
        text=_read(review, look.text),
        stars=_read(review, look.rating),
        written_at=_read(review, look.written_at),
        author=_read(review, look.author) if look.author else None,
    )


def _read(review: Selector, wanted: Value) -> str | None:
    found = review.css(wanted.css)
    if not found:
        return None
    text = " ".join((found if "::" in wanted.css else found.xpath(TEXT)).getall())
    if wanted.pattern:
        match = re.search(wanted.pattern, text)
        text = match[1] if match and match[1] is not None else ""
    return text.strip() or None


def _next_url(page: Selector, url: str, number: int, site: Site, start_url: str) -> str | None:
    if site.paging.kind == "number":
        return site.numbered(start_url, number + 1)
    if site.paging.kind == "none":
        return None
    link = page.css(site.paging.next).xpath("@href").get()
    if not link or not link.strip():
        return None
    try:
        there = urldefrag(urljoin(url, link.strip())).url
        return there if urlsplit(there).hostname in site.hosts else None
    except ValueError:  # "http://[" and its like
        return None


def keep_broken(body: bytes, encoding: str, name: str, folder: Path) -> Path:
    """Keep a page's skeleton for a look, gzipped; only the newest `KEPT_PAGES` stay."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{hashlib.sha256(body).hexdigest()[:8]}.html.gz"
    file.write_bytes(gzip.compress(skeleton(body.decode(encoding, "replace")).encode("utf-8", "replace")))
    kept = sorted(folder.glob("*.html.gz"), key=lambda path: path.stat().st_mtime_ns)
    for old in kept[:-KEPT_PAGES]:
        old.unlink(missing_ok=True)
    return file


def skeleton(text: str) -> str:
    """A page with its markup, classes and title, and every other letter and digit masked.

    Where a layout is not what was expected, nothing says where its people's names stand; what has to be seen to mend a
    selector is there.
    """
    parts = TAG.split(text)  # text, tag, text, …
    shown = []
    for place, part in enumerate(parts):
        if place % 2:
            shown.append(ATTRIBUTE.sub(lambda found: found[1] + _masked(found[2]), part))
        else:
            in_title = place > 0 and parts[place - 1].lower().startswith("<title")
            shown.append(part if in_title else _masked(part))
    return "".join(shown)


def _masked(text: str) -> str:
    return DIGIT.sub("0", LETTER.sub("x", HANGUL.sub("가", text)))
