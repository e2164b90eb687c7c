"""The spider of paginated lists of reviews, as the server sends them; ``browser`` has that of lists that scripts make.

It walks what the store says is waiting and gives it back what each page holds; what comes next is the store's to
remember.
"""

import sys
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import scrapy
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.exceptions import CloseSpider, IgnoreRequest
from scrapy.http import Response, TextResponse

from training.cleaning import cleaning_normalizer
from training.collection.files import write_changed
from training.collection.page import Page, keep_broken, read_page
from training.collection.review import judge, utc_now
from training.collection.site import Site
from training.collection.store import Interval, Store, Taken, Waiting
from training.collection.tally import BROKEN_IN_A_ROW, Tally

KNOWN_IN_A_ROW = 2
"""Pages with nothing but known reviews after which a list sorted newest first is left."""

REPEATED_IN_A_ROW = 3
"""Pages with nothing that this crawl had not met, after which a list goes round in circles."""

PAGES_PER_WRITE = 200
"""After as many the Parquet files are brought up to date, so that a long crawl is of use before its end."""

GONE = (404, 410)


class ReviewSpider(scrapy.Spider):
    """Lists of reviews as the server sends them."""

    name = "reviews"

    def __init__(self, site: Site, store: Store, crawl: int, interval: Interval, tally: Tally):
        super().__init__()
        self.site, self.store, self.crawl, self.interval, self.tally = site, store, crawl, interval, tally
        self._clean, self._salt = cleaning_normalizer("keep"), store.salt()
        self._may_stop = store.may_stop(site, interval)

    async def start(self) -> AsyncIterator[scrapy.Request]:
        for page in self.store.waiting(self.crawl):
            yield self.ask(page)

    def ask(self, page: Waiting) -> scrapy.Request:
        """Pages that come first are asked for first; errors come to `parse` too, once they are not tried again."""
        return scrapy.Request(
            page.url,
            callback=self.parse,
            errback=self.failed,
            priority=-page.number,
            meta={"handle_httpstatus_list": range(400, 600), "download_timeout": self.site.limits.timeout},
            cb_kwargs={"page": page},
        )

    def parse(self, response: Response, page: Waiting):
        self._stop_if_over()
        if urlsplit(response.url).hostname not in self.site.hosts:  # Chromium follows redirects by itself
            return self.refuse(f"{page.url} leads to {response.url}, which is not of this site; mend start_urls")
        if response.status in (401, 403, 451):
            return self.refuse(f"{response.url} is refused (HTTP {response.status}); the site does not want to be read")
        if response.status == 429 or response.status >= 500:
            return self.refuse(
                f"{response.url} answers HTTP {response.status} after {self.site.limits.tries} tries; what was "
                "collected stays, and the next run goes on there"
            )
        if response.status in GONE and page.number > self.site.paging.first:
            with self.store.page(self.crawl, page):
                pass  # behind the last page
            return None
        found = self._read(response, page)
        if not found.whole and not found.says_empty:
            again = get_retry_request(response.request, spider=self, reason="broken page", max_retry_times=1)
            if again:
                return again
        return self._take(response, page, found)

    def _read(self, response: Response, page: Waiting) -> Page:
        # Something else than HTML, a download or JSON, is a page without its list.
        if self.site.encoding and isinstance(response, TextResponse):
            response = response.replace(encoding=self.site.encoding)
        if isinstance(response, TextResponse) and response.body and response.selector.type == "html":
            return read_page(response.selector, response.url, page.number, self.site, page.start_url)
        return Page((), whole=False, says_empty=False, next_url=None)

    def _take(self, response: Response, page: Waiting, found: Page) -> scrapy.Request | None:
        now = utc_now()
        verdicts = [judge(raw, page.url, self.site, self._clean, self._salt, now) for raw in found.reviews]
        first = page.number == self.site.paging.first
        broken = self.tally.watch(found, verdicts, response.url, first=first, status=response.status)
        if broken:
            name = f"{now:%Y%m%dT%H%M%S}-page{page.number}"
            folder = self.store.folder / "_broken" / self.site.name
            encoding = self.site.encoding or getattr(response, "encoding", "utf-8")
            kept = keep_broken(response.body, encoding, name, folder)
            self.say(f"page {page.number} is broken: {response.url}, kept as {kept}")
            self.tally.gap = True
        self._stop_if_over()
        with self.store.page(self.crawl, page) as writer:
            taken = writer.take(verdicts, self.site, self.interval, may_stop=self._may_stop)
            following = self._following(page, found, taken, broken)
            follow = following is not None and writer.follow(following)
            self.tally.add(taken)
            writer.count(self.tally.counts())
        self.say(f"page {page.number}: {len(verdicts)} reviews, {taken.new} new")
        if self.tally.pages % PAGES_PER_WRITE == 0:
            write_changed(self.store, self.site.name, self.site.dates.timezone)
        return self.ask(following) if follow else None

    def _following(self, page: Waiting, found: Page, taken: Taken, broken: bool) -> Waiting | None:
        """The page after this one, unless this is the last that is of use."""
        if found.next_url is None or (found.whole and not found.reviews):
            return None
        if self.site.paging.newest_first and taken.all_before:
            return None
        counts = {
            "known": page.known + 1 if taken.all_known else 0,
            "repeated": page.repeated + 1 if found.reviews and not (taken.unseen or taken.outside) else 0,
            "broken": page.broken + 1 if broken else 0,
        }
        if counts["known"] >= KNOWN_IN_A_ROW or counts["broken"] >= BROKEN_IN_A_ROW:
            return None
        if counts["repeated"] >= REPEATED_IN_A_ROW:
            self.say(
                f"page {page.number}: for {REPEATED_IN_A_ROW} pages nothing that was not met before; this list ends"
            )
            return None
        if page.number - self.site.paging.first + 1 >= self.site.limits.pages:
            self.say(
                f"page {page.number}: limits.pages ({self.site.limits.pages}) is reached; what lies deeper is left"
            )
            return None
        return Waiting(found.next_url, page.start_url, page.number + 1, **counts)

    def failed(self, failure):
        """A page that could not be fetched stays waiting, one that robots.txt forbids does not."""
        page = failure.request.cb_kwargs["page"]
        self._stop_if_over()
        if failure.check(IgnoreRequest):
            why = failure.getErrorMessage()
            if "robots.txt" in why:
                why = "robots.txt forbids it, or cannot be had; it is obeyed"
            if page.number == self.site.paging.first:
                return self.refuse(f"{page.url} is not read: {why}")
            self.say(f"page {page.number} is left out: {why}")
            self.tally.gap = True
            with self.store.page(self.crawl, page) as writer:
                writer.count(self.tally.counts())
            return None
        return self.refuse(
            f"{page.url} could not be fetched in {self.site.limits.tries} tries ({failure.type.__name__}: "
            f"{' '.join(failure.getErrorMessage().split())[:200]}); what was collected stays, and the next run "
            "goes on there"
        )

    def refuse(self, sentence: str) -> None:
        """End the run; what is waiting stays waiting."""
        self.tally.refused = sentence
        self._stop_if_over()

    def _stop_if_over(self) -> None:
        if self.tally.alarm or self.tally.refused:
            raise CloseSpider("alarm" if self.tally.alarm else "refused")

    def say(self, line: str) -> None:
        print(f"{self.site.name}: {line}", file=sys.stderr, flush=True)
