"""One crawl of one site, put together: store, spider, Scrapy's settings; then Parquet and the card."""

import sys
from dataclasses import dataclass
from pathlib import Path

from scrapy.crawler import AsyncCrawlerProcess

from training.collection import polite
from training.collection.files import write_changed
from training.collection.site import Site
from training.collection.spider import ReviewSpider
from training.collection.store import Interval, Store
from training.collection.tally import Tally

ROBOT = "NunchiCollector"
"""What robots.txt may call this crawler by."""

VERSION = "0.1"


@dataclass(frozen=True)
class Crawled:
    """``refused``: why the crawl could not go to its end, though what it collected stays."""

    tally: Tally
    folder: Path
    refused: str | None


def crawl(site: Site, folder: Path, interval: Interval) -> Crawled:
    """Collect what is new on ``site`` into ``folder``. Once per process: Scrapy's reactor does not start again.

    Raises:
        CollectionError: the folder cannot be used, another crawl of the site runs, or there is no Chromium.
    """
    store = Store(folder)
    try:
        with store.lock(site.name):
            days = write_changed(store, site.name, site.dates.timezone)  # what a killed run left to do
            number, goes_on = store.begin(site, interval)
            tally = Tally.of(site, store.counts(number))
            try:
                if goes_on:
                    print(f"{site.name}: an unfinished crawl goes on, page by page that is missing", file=sys.stderr)
                _run(site, store, number, interval, tally)
            finally:
                days += write_changed(store, site.name, site.dates.timezone)
                if days or tally.near_duplicates or tally.rejected or not store.card.exists():
                    _show(store)
            return Crawled(tally, folder, _end(site, store, number, tally))
    finally:
        store.close()


def _run(site: Site, store: Store, number: int, interval: Interval, tally: Tally) -> None:
    spider_class, more = ReviewSpider, {}
    if site.javascript:
        from training.collection import browser

        spider_class, more = browser.RenderedReviewSpider, browser.settings(site, user_agent(site))
    process = AsyncCrawlerProcess({**scrapy_settings(site), **more})
    process.crawl(spider_class, site=site, store=store, crawl=number, interval=interval, tally=tally)
    process.start()


def _show(store: Store) -> None:
    from training.collection.card import write_card  # its matplotlib takes longer to load than most crawls take

    write_card(store)


def _end(site: Site, store: Store, number: int, tally: Tally) -> str | None:
    """Close the crawl unless it can go on; why it did not come to its end."""
    if tally.alarm:
        store.end(number, "cut")
    elif not store.waiting(number):
        store.end(number, "cut" if tally.gap else "whole")
    elif tally.refused is None:
        return (
            f"the crawl of {site.name} was stopped before its end (by a signal, after limits.minutes, "
            f"{site.limits.minutes:g}, or by an error above); what was collected stays, and the next run goes on there"
        )
    return tally.refused


def user_agent(site: Site) -> str:
    return f"{ROBOT}/{VERSION} (+{site.contact})"


def scrapy_settings(site: Site) -> dict:
    return {
        "USER_AGENT": user_agent(site),
        "ROBOTSTXT_OBEY": True,
        "ROBOTSTXT_USER_AGENT": ROBOT,
        "DOWNLOADER_MIDDLEWARES": {
            "scrapy.downloadermiddlewares.robotstxt.RobotsTxtMiddleware": None,
            polite.Robots: 100,
            "scrapy.downloadermiddlewares.retry.RetryMiddleware": None,
            polite.BackOff: 550,
        },
        "EXTENSIONS": {
            "scrapy.extensions.throttle.AutoThrottle": None,
            polite.Pace: 0,
            "scrapy.extensions.logstats.LogStats": None,
        },
        "AUTOTHROTTLE_ENABLED": True,
        "AUTOTHROTTLE_START_DELAY": site.delays.least,
        "AUTOTHROTTLE_MAX_DELAY": max(site.delays.most, site.delays.least),
        "AUTOTHROTTLE_TARGET_CONCURRENCY": site.limits.concurrent,
        "DOWNLOAD_DELAY": site.delays.least,
        "DOWNLOAD_DELAY_JITTER": 0,  # the least is the least
        "CONCURRENT_REQUESTS": site.limits.concurrent,
        "CONCURRENT_REQUESTS_PER_DOMAIN": site.limits.concurrent,
        "DOWNLOAD_TIMEOUT": site.limits.timeout,
        "DOWNLOAD_MAXSIZE": site.limits.megabytes << 20,
        "DOWNLOAD_WARNSIZE": 0,
        "RETRY_TIMES": site.limits.tries - 1,
        "RETRY_PRIORITY_ADJUST": 0,  # a list is walked in order
        "BACK_OFF_FIRST": site.delays.retry,
        "BACK_OFF_LONGEST": site.delays.longest_wait,
        "CLOSESPIDER_TIMEOUT": site.limits.minutes * 60,
        "DEFAULT_REQUEST_HEADERS": {"Accept": "text/html", "Accept-Language": "ko"},
        "DUPEFILTER_CLASS": "scrapy.dupefilters.BaseDupeFilter",  # the store knows what was fetched
        "COOKIES_ENABLED": False,  # nobody is logged in
        "TELNETCONSOLE_ENABLED": False,
        "REMOTE_CONTROL_ENABLED": False,  # no port is opened
        "LOG_LEVEL": "WARNING",
        "LOG_FORMAT": "%(levelname)s: %(name)s: %(message)s",
    }
