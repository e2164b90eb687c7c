"""One review, judged: cleaned, measured, labelled by its stars; or rejected, with the reason.

The cleaning is training's own normalizer (training.cleaning), with emoji left for the encoder that will read them.
Which language a text is in is told by its letters: Hangul writes Korean and nothing else, so the share of it among
the letters is what a classifier of languages would find, without one. Nobody is named: an author is dropped or
hashed with a salt that stays with the collection, and e-mail addresses, telephone and resident numbers in a text
are blanked.
"""

import hashlib
import hmac
import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers.normalizers import Normalizer

from training.collection.site import Site

NO_ID, NO_TEXT, NO_RATING, NO_DATE = "no id", "no text", "no rating", "no date in the site's format"
MISSING = {NO_ID: "id", NO_TEXT: "text", NO_RATING: "rating", NO_DATE: "written_at"}
"""Reasons that may as well be the selector's fault as the review's, and that selector."""

OUT_OF_SCALE, IN_FUTURE = "stars outside the site's scale", "written in the future"
TOO_SHORT, TOO_LONG, LITTLE_HANGUL, OTHER_LANGUAGE = "too short", "too long", "too little Hangul", "another language"

CONTACT = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"  # e-mail
    r"|(?<!\d)\d{6}\s?-\s?[1-8]\d{6}(?!\d)"  # resident registration number
    r"|(?<!\d)(?:\+?82[\s.-]?)?0?1[016789][\s.-]?\d{3,4}[\s.-]?\d{4}(?!\d)"  # mobile
    r"|(?<!\d)0(?:2|[3-6][1-5]|70)[\s.)-]{1,2}\d{3,4}[\s.-]\d{4}(?!\d)"  # landline
)

SCRIPTS = {"HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "LATIN": "latin"}


class Review(BaseModel):
    """A review that is kept; ``written_at`` in the site's time zone, ``collected_at`` in UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    review_id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s\x00]+$")]
    document: Annotated[str, Field(min_length=1)]
    rating: Annotated[int, Field(ge=1, le=10)]
    label: str
    stars: float
    language: str
    hangul_share: Annotated[float, Field(ge=0, le=1)]
    url: str
    written_at: datetime
    collected_at: datetime
    author: str | None

    @property
    def day(self) -> str:
        return self.written_at.date().isoformat()


@dataclass(frozen=True)
class Verdict:
    """``review`` or ``reason``. ``digest`` changes when text, stars or date do; ``day`` is None when unknown."""

    review_id: str
    digest: str
    day: str | None
    review: Review | None = None
    reason: str | None = None


def judge(raw, url: str, site: Site, clean: Normalizer, salt: bytes, now: datetime) -> Verdict:
    """What becomes of a `page.RawReview` found on ``url`` at ``now``."""
    text = " ".join(hide_contacts(clean.normalize_str(raw.text)).split()) if raw.text else ""
    digest = hashlib.blake2b(
        "\0".join([text, raw.stars or "", raw.written_at or ""]).encode("utf-8", "replace"), digest_size=12
    ).hexdigest()
    written_at = site.dates.read(raw.written_at) if raw.written_at else None
    # A review without an id is known again by what it says, so that it is counted once.
    review_id = raw.review_id or f"? {digest}"
    verdict = Verdict(review_id, digest, written_at.date().isoformat() if written_at else None)

    language, share = measure_language(text)
    stars = _number(raw.stars)
    rejected = {
        NO_ID: raw.review_id is None,
        NO_TEXT: not text,
        NO_RATING: stars is None,
        NO_DATE: written_at is None,
        OUT_OF_SCALE: stars is not None and not site.rating.lowest <= stars <= site.rating.highest,
        IN_FUTURE: written_at is not None and written_at > now + timedelta(days=1),
        TOO_SHORT: len(text) < site.filters.min_characters,
        TOO_LONG: len(text) > site.filters.max_characters,
        OTHER_LANGUAGE: language not in site.filters.languages,
        LITTLE_HANGUL: share < site.filters.min_hangul_share,
    }
    for reason, is_so in rejected.items():
        if is_so:
            return _with(verdict, reason=reason)
    try:
        review = Review(
            review_id=review_id,
            document=text,
            rating=site.rating.on_ten(stars),
            label=site.rating.label(stars),
            stars=stars,
            language=language,
            hangul_share=share,
            url=url,
            written_at=written_at,
            collected_at=now,
            author=hash_author(raw.author, site.name, salt) if site.authors == "hash" and raw.author else None,
        )
    except ValidationError as error:
        return _with(verdict, reason=f"{error.errors()[0]['loc'][0]} is not valid")
    return _with(verdict, review=review)


def _with(verdict: Verdict, **what) -> Verdict:
    return Verdict(verdict.review_id, verdict.digest, verdict.day, **what)


def _number(text: str | None) -> float | None:
    """The first number in a text: "4.5점", "별점 4/5", "4,5"."""
    found = re.search(r"-?\d+(?:[.,]\d+)?", text or "")
    number = float(found[0].replace(",", ".")) if found else None
    return number if number is not None and math.isfinite(number) else None


def measure_language(text: str) -> tuple[str, float]:
    """ko, ja, zh, latin or other, and the share of Hangul among the letters (0 where there is no letter).

    Any Japanese kana beyond a tenth makes it Japanese, since Chinese characters belong to three languages.
    """
    letters = Counter(_script(character) for character in text if character.isalpha())
    count = sum(letters.values())
    if not count:
        return "other", 0.0
    most = "ja" if letters["ja"] > count / 10 and letters["ko"] < count / 2 else letters.most_common(1)[0][0]
    return most, letters["ko"] / count


def _script(letter: str) -> str:
    return SCRIPTS.get(unicodedata.name(letter, "").split(" ", 1)[0].split("-")[0], "other")


def hide_contacts(text: str) -> str:
    return CONTACT.sub(" ", text)


def hash_author(name: str, site: str, salt: bytes) -> str:
    """16 hex digits that tell people of one site apart, and lead back to nobody without the salt."""
    return hmac.new(salt, f"{site}\0{name}".encode(), hashlib.sha256).hexdigest()[:16]


def utc_now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
