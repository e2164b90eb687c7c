"""The spider of lists that scripts make: in Debian's Chromium, driven by scrapy-playwright."""

import os
import shutil
import subprocess
from contextlib import suppress

import scrapy
from playwright.async_api import Page
from playwright.async_api import TimeoutError as TooSlow
from scrapy.settings.default_settings import RETRY_EXCEPTIONS
from scrapy_playwright.page import PageMethod

from training.collection.site import Site
from training.collection.spider import ReviewSpider
from training.collection.store import Waiting
from training.errors import CollectionError
from training.settings import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome")
NOT_NEEDED = ("image", "media", "font")
START_SECONDS = 180  # on a busy machine


def find_chromium() -> str:
    """Its path.

    Raises:
        CollectionError: there is none, and none can be installed.
    """
    for name in NAMES:
        if path := shutil.which(name):
            return path
    script = ROOT / "deploy" / "chromium.sh"
    try:
        return subprocess.run([script], capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
    except (OSError, subprocess.CalledProcessError, IndexError) as exc:
        said = (getattr(exc, "stderr", None) or str(exc)).strip().splitlines()[-1:]
        raise CollectionError(f"a site with javascript: true needs Chromium on PATH ({' '.join(said)})") from None


def settings(site: Site, user_agent: str) -> dict:
    """Of scrapy-playwright."""
    handler = "scrapy_playwright.handler.ScrapyPlaywrightDownloadHandler"
    return {
        "DOWNLOAD_HANDLERS": {"http": handler, "https": handler},
        "PLAYWRIGHT_BROWSER_TYPE": "chromium",
        "PLAYWRIGHT_LAUNCH_OPTIONS": {
            "executable_path": find_chromium(),
            "chromium_sandbox": os.geteuid() != 0,  # Chromium refuses its sandbox to root
            "timeout": START_SECONDS * 1000,
        },
        "PLAYWRIGHT_CONTEXTS": {"default": {"user_agent": user_agent, "locale": "ko-KR", "service_workers": "block"}},
        "PLAYWRIGHT_MAX_PAGES_PER_CONTEXT": site.limits.concurrent,
        "PLAYWRIGHT_DEFAULT_NAVIGATION_TIMEOUT": site.limits.timeout * 1000,
        "PLAYWRIGHT_ABORT_REQUEST": not_needed,
        "RETRY_EXCEPTIONS": [*RETRY_EXCEPTIONS, "playwright.async_api.Error"],  # a page that did not load in time, too
    }


def not_needed(request) -> bool:
    return request.resource_type in NOT_NEEDED


class Rendering:
    """Waits until the scripts of one page have made the list of reviews; of an error page nothing is awaited."""

    def __init__(self, selector: str, seconds: float):
        self._selector, self._seconds, self._status = selector, seconds, 200

    async def watch(self, page: Page, _request) -> None:
        page.on("response", self._heard)

    def _heard(self, response) -> None:
        if response.request.is_navigation_request() and response.frame == response.frame.page.main_frame:
            self._status = response.status

    async def wait(self, page: Page) -> None:
        if self._status >= 400:
            return
        with suppress(TooSlow):  # it is read as it is then: without its list it is broken, and is asked for once more
            await page.wait_for_selector(self._selector, state="attached", timeout=self._seconds * 1000)


class RenderedReviewSpider(ReviewSpider):
    """Lists of reviews that scripts make."""

    name = "rendered"

    def ask(self, page: Waiting) -> scrapy.Request:
        rendering = Rendering(self.site.selectors.list, self.site.limits.timeout)
        request = super().ask(page)
        request.meta.update(
            playwright=True,
            playwright_page_init_callback=rendering.watch,
            playwright_page_methods=[PageMethod(rendering.wait)],
            # From there on the list itself is awaited: no state of the network says that scripts are done.
            playwright_page_goto_kwargs={"wait_until": "domcontentloaded"},
        )
        return request
