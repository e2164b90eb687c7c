"""Manners, where Scrapy's own leave a gap: a robots.txt that fails or asks for pauses, Retry-After, back-off.

Scrapy's AutoThrottle sets the pace, its RetryMiddleware says what is worth another try.
"""

import asyncio
import random
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from scrapy import signals
from scrapy.downloadermiddlewares.retry import RetryMiddleware
from scrapy.downloadermiddlewares.robotstxt import RobotsTxtMiddleware
from scrapy.exceptions import IgnoreRequest
from scrapy.extensions.throttle import AutoThrottle

FORBIDDEN = b"User-agent: *\nDisallow: /"


class Robots(RobotsTxtMiddleware):
    """A robots.txt that cannot be had forbids all, one that is not there nothing (RFC 9309, 2.3.1.3 and 2.3.1.4).

    Redirects that lead away from the site are not followed; Scrapy's own filter drops them without a word.
    """

    async def process_request(self, request):
        if urlsplit(request.url).hostname not in self.crawler.spider.site.hosts:
            raise IgnoreRequest(f"it leads to {request.url}, which is not of this site")
        await super().process_request(request)

    async def _parse_robots(self, response, netloc, request):
        if response.status >= 500 or response.status == 429:
            response = response.replace(body=FORBIDDEN)
        elif response.status >= 400:
            response = response.replace(body=b"")
        await super()._parse_robots(response, netloc, request)

    def _robots_error(self, exc, netloc):
        waiting = self._parsers[netloc]
        self._parsers[netloc] = self._parserimpl.from_crawler(self.crawler, FORBIDDEN)
        waiting.callback(self._parsers[netloc])


class Pace(AutoThrottle):
    """AutoThrottle that never goes faster than the site's Crawl-delay."""

    def __init__(self, crawler):
        super().__init__(crawler)
        self._asked = 0.0
        crawler.signals.connect(self._robots_parsed, signal=signals.robots_parsed)

    def _robots_parsed(self, robotparser, request):
        asked = robotparser.crawl_delay(self.crawler.settings["ROBOTSTXT_USER_AGENT"])
        if asked is None:
            return
        self.mindelay = max(self.mindelay, asked)
        self.maxdelay = max(self.maxdelay, asked)
        downloader = self.crawler.engine.downloader
        downloader._delay = max(downloader._delay, asked)
        for slot in downloader.slots.values():
            slot.delay = max(slot.delay, asked)


class BackOff(RetryMiddleware):
    """Between two tries the whole site is left alone: as long as Retry-After says, else twice as long each time."""

    def __init__(self, settings):
        super().__init__(settings)
        self._first, self._longest = settings.getfloat("BACK_OFF_FIRST"), settings.getfloat("BACK_OFF_LONGEST")
        self._not_before: dict[str, float] = {}

    async def process_request(self, request):
        host = urlsplit(request.url).hostname
        while (wait := self._not_before.get(host, 0) - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    async def process_response(self, request, response):
        again = super().process_response(request, response)
        if again is not response:
            self._pause(request, again, response.headers.get("Retry-After"))
        return again

    async def process_exception(self, request, exception):
        again = super().process_exception(request, exception)
        if again is not None:
            self._pause(request, again, None)
        return again

    def _pause(self, request, again, retry_after: bytes | None) -> None:
        asked = seconds_asked(retry_after.decode("latin-1")) if retry_after else None
        if asked is not None and asked > self._longest:
            self.crawler.spider.tally.refused = (
                f"the site asks to be left alone for {asked:,.0f} s (Retry-After), and delays.longest_wait is "
                f"{self._longest:,.0f}; start again then"
            )
            raise IgnoreRequest("told to come back much later")
        doubled = self._first * 2 ** (again.meta["retry_times"] - 1) * random.uniform(1, 1.25)
        wait = max(asked, 0) if asked is not None else min(doubled, self._longest)
        host = urlsplit(request.url).hostname
        self._not_before[host] = max(self._not_before.get(host, 0), time.monotonic() + wait)
        self.crawler.spider.say(f"{request.url}: again in {wait:.1f} s (try {again.meta['retry_times'] + 1})")


def seconds_asked(retry_after: str) -> float | None:
    """Of a Retry-After header: seconds or a date (RFC 9110, 10.2.3); None where it is neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
