"""A site as its YAML describes it: where reviews stand on its pages, how it pages, what its stars mean, how to behave.

``sites/example.yaml`` shows every key with its meaning; an unknown one is refused.
"""

import hashlib
import re
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from training.config import STARS, Section
from training.errors import SiteRefused

SITES = Path(__file__).parent / "sites"
PAGE = "{page}"


def _css(selector: str) -> str:
    from parsel.csstranslator import HTMLTranslator

    try:
        HTMLTranslator().css_to_xpath(selector)
    except Exception as exc:  # cssselect's and parsel's have no common base
        raise ValueError(f"{selector!r} is no CSS selector ({exc})") from None
    return selector


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http:// or https:// address")
    return url


Css = Annotated[str, Field(min_length=1), AfterValidator(_css)]
Address = Annotated[str, AfterValidator(_address)]


class Value(Section):
    """One value of a review: a selector, and a pattern whose only group is the part that is meant."""

    css: Css = Field(description="ends in ::text or ::attr(name); without one, all text inside the element")
    pattern: str | None = Field(None, description="a regular expression with one group")

    @field_validator("pattern")
    @classmethod
    def one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as exc:
                raise ValueError(f"{pattern!r} is no regular expression ({exc})") from None
            if groups != 1:
                raise ValueError(f"{pattern!r} has {groups} groups; put ( ) around the one part that is meant")
        return pattern


def _value(given: Any) -> Any:
    return {"css": given} if isinstance(given, str) else given


Wanted = Annotated[Value, BeforeValidator(_value)]


class Selectors(Section):
    """``list`` and ``review`` are looked for in the page, the others inside one review."""

    list: Css = Field(description="what holds the reviews; it is there on a page without reviews too")
    review: Css
    id: Wanted
    text: Wanted
    rating: Wanted
    written_at: Wanted
    author: Wanted | None = Field(None, description="whose names are never kept as they are; see authors")
    empty: Css | None = Field(None, description="what the first page shows when there is honestly no review")


class Paging(Section):
    """How the next page is found."""

    kind: Literal["link", "number", "none"] = "link"
    next: Css | None = Field(None, description="link: the element whose href is the next page")
    first: int = Field(1, ge=0, description="number: what stands for {page} in start_urls on the first page")
    newest_first: bool = Field(False, description="true lets a crawl stop where it meets what it knows")

    @model_validator(mode="after")
    def agrees(self):
        if (self.kind == "link") != (self.next is not None):
            raise ValueError(f"paging.kind is {self.kind}, and paging.next belongs to kind link, which needs it")
        return self


class Rating(Section):
    """The site's scale. The thresholds lie where NSMC's do unless given: 1-4 and 9-10 of 1-10, 1-2 and 5 of 1-5."""

    lowest: float
    highest: float
    negative_up_to: float | None = None
    positive_from: float | None = None

    @model_validator(mode="after")
    def ordered(self):
        if not self.lowest <= self.negative < self.positive <= self.highest:
            raise ValueError(
                f"the scale runs {self.lowest:g}, negative_up_to {self.negative:g}, positive_from {self.positive:g}, "
                f"{self.highest:g}; each must be above the one before"
            )
        return self

    @property
    def negative(self) -> float:
        return self.lowest + (self.highest - self.lowest) / 3 if self.negative_up_to is None else self.negative_up_to

    @property
    def positive(self) -> float:
        return self.lowest + (self.highest - self.lowest) * 8 / 9 if self.positive_from is None else self.positive_from

    def label(self, stars: float) -> str:
        """negative, neutral or positive."""
        return STARS[(stars > self.negative) + (stars >= self.positive)]

    def on_ten(self, stars: float) -> int:
        """1 to 10, as training.reviews cuts them: 1-4 where the label is negative, 5-8 neutral, 9-10 positive."""
        low, high, lowest, highest, first, last = {
            "negative": (self.lowest, self.negative, 1, 4, 1, 4),
            "neutral": (self.negative, self.positive, 5, 8, 4, 9),
            "positive": (self.positive, self.highest, 9, 10, 9, 10),
        }[self.label(stars)]
        if low == high:  # one value is all there is of it
            return last if stars == self.highest else first
        return min(max(round(first + (last - first) * (stars - low) / (high - low)), lowest), highest)


class Dates(Section):
    formats: list[str] = Field(["%Y-%m-%d"], min_length=1, description="of datetime.strptime, tried in order")
    timezone: str = "Asia/Seoul"

    @field_validator("timezone")
    @classmethod
    def known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{name!r} is no time zone; write one as Asia/Seoul") from None
        return name

    def read(self, text: str) -> datetime | None:
        """With the site's time zone unless it names another; None where no format fits."""
        for form in self.formats:
            try:
                moment = datetime.strptime(text, form)
            except ValueError:
                continue
            zone = ZoneInfo(self.timezone)
            return moment.astimezone(zone) if moment.tzinfo else moment.replace(tzinfo=zone)
        return None


class Filters(Section):
    """Which reviews are worth keeping, once cleaned."""

    min_characters: int = Field(2, ge=1)
    max_characters: int = Field(2000, ge=1)
    min_hangul_share: float = Field(0.5, ge=0, le=1, description="of the letters, ㅋ and ㅠ included")
    languages: list[str] = Field(["ko"], min_length=1, description="ko, ja, zh, latin, other: by the letters it is in")
    near_duplicate: float = Field(0.8, gt=0, le=1, description="share of common 4-letter pieces that makes two one")
    near_duplicate_letters: int = Field(20, ge=1, description="shorter texts are written by many; all are kept")


class Delays(Section):
    """In seconds. AutoThrottle moves between the first two by how long the site takes; robots.txt may ask for more."""

    least: float = Field(1.0, ge=0, description="between two requests")
    most: float = Field(60.0, gt=0)
    retry: float = Field(2.0, ge=0, description="before the second try; twice as long before each further one")
    longest_wait: float = Field(300.0, gt=0, description="a Retry-After beyond it ends the crawl for now")


class Limits(Section):
    pages: int = Field(1000, ge=1, description="of one list; what lies deeper is left there, so endless pages end")
    minutes: float = Field(120, gt=0, description="per run")
    concurrent: int = Field(1, ge=1, le=8, description="requests at one time")
    tries: int = Field(5, ge=1, description="per page")
    timeout: float = Field(60, gt=0, description="seconds per page, its scripts included")
    megabytes: int = Field(8, ge=1, description="per page")


class Site(Section):
    """See the module's words and ``sites/example.yaml``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="becomes site=NAME of the folder")
    start_urls: list[Address] = Field(min_length=1)
    contact: str = Field(description="an address or e-mail where the site's people reach you; part of the user agent")
    javascript: bool = Field(False, description="true: pages are rendered by Chromium")
    encoding: str | None = Field(None, description="where the site does not say its own, e.g. cp949")
    selectors: Selectors
    paging: Paging
    rating: Rating
    dates: Dates = Dates()
    authors: Literal["drop", "hash"] = Field("drop", description="hash: a salted hash, to tell people apart")
    filters: Filters = Filters()
    delays: Delays = Delays()
    limits: Limits = Limits()

    @field_validator("contact")
    @classmethod
    def reachable(cls, contact: str) -> str:
        if not re.fullmatch(r"https?://\S+|mailto:\S+@\S+|\S+@\S+\.\S+", contact):
            raise ValueError(
                f"{contact!r} is neither an address nor an e-mail; name one where the site's people reach you"
            )
        return contact

    @field_validator("encoding")
    @classmethod
    def known(cls, encoding: str | None) -> str | None:
        try:
            "가".encode(encoding or "utf-8")
        except (LookupError, UnicodeEncodeError):
            raise ValueError(f"Python knows no encoding of Korean by the name {encoding!r}; try cp949") from None
        return encoding

    @model_validator(mode="after")
    def agrees(self):
        for url in self.start_urls:
            if (PAGE in url) != (self.paging.kind == "number"):
                raise ValueError(f"{url}: {PAGE} stands in start_urls where paging.kind is number, and only there")
        if self.authors == "hash" and self.selectors.author is None:
            raise ValueError("authors is hash, but selectors.author names none")
        return self

    @cached_property
    def digest(self) -> str:
        """12 hex digits that tell two descriptions apart by which something else would be collected."""
        what = self.model_dump_json(
            exclude={"contact": True, "delays": True, "limits": {*Limits.model_fields} - {"pages"}}
        )
        return hashlib.sha256(what.encode()).hexdigest()[:12]

    @property
    def hosts(self) -> list[str]:
        return sorted({urlsplit(url).hostname for url in self.start_urls})

    @property
    def first_pages(self) -> list[str]:
        return [self.numbered(url, self.paging.first) for url in self.start_urls]

    @staticmethod
    def numbered(url: str, number: int) -> str:
        return url.replace(PAGE, str(number))


def read_site(named: str) -> Site:
    """A YAML by its path, or one of ``sites/`` by its name.

    Raises:
        SiteRefused: there is none, or a key is unknown, missing or wrong.
    """
    path = SITES / f"{named}.yaml" if re.fullmatch(r"[a-z0-9-]+", named) else Path(named).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        have = ", ".join(sorted(file.stem for file in SITES.glob("*.yaml")))
        raise SiteRefused(f"there is no {path}; name a YAML file, or one of {have}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise SiteRefused(f"{path} cannot be read as YAML: {' '.join(str(exc).split())}") from None
    if not isinstance(content, dict):
        raise SiteRefused(f"{path} holds no mapping; sites/example.yaml shows what it should hold")
    try:
        return Site.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise SiteRefused(f"{path}, {where}: {first['msg'].removeprefix('Value error, ')}") from None
