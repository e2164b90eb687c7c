"""A site of reviews over real HTTP: ``python -m tests.review_site --reviews FILE.jsonl [--yaml FILE] [--port 0]``.

As a process of its own it prints its address as its first line and serves until it is killed. FILE holds one review
per line: ``{"review_id", "text", "stars", "written_at", "author"}``; it is read again when it changes. ``--yaml``
writes the description of the site that training.collection wants. Without ``--reviews`` it serves a thousand
made-up ones.

In a test::

    with ReviewSite(made_up_reviews(1000)) as site:
        site.reviews.insert(0, …)                     # newest first, as a site shows them
        site.faults["/reviews?page=3"] = ["503", "hang", "cut", "slow"]  # for the next four requests
        site.describe(path, start_urls=[…], …)        # its YAML, with changes
        site.asked                                    # what was asked: path, headers, moment

Lists: ``/reviews`` (UTF-8), ``/old`` (CP949, which it does not say), ``/lying`` (CP949, said to be UTF-8),
``/script`` (made by a script from ``/api``), ``/endless`` (made-up reviews without end), ``/to?URL`` (elsewhere),
``/circle`` (the last page for ever).
"""

import argparse
import html
import json
import random
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

LIKED = "재밌어요 최고예요 감동이에요 추천합니다 훌륭해요 완벽해요 사랑스러워요 만족합니다 빛나네요 또볼래요"
DISLIKED = "지루해요 별로예요 실망이에요 아까워요 최악이에요 엉망이네요 답답해요 후회합니다 졸려요 환불하고싶다"
SO_SO = "그저그래요 무난해요 보통이에요 애매해요 평범하네요"
ABOUT = (
    "배우 연기 음악 화면 대사 결말 전개 각본 감독 주인공 장면 분위기 조연 촬영 색감 편집 반전 도입부 액션 노래 "
    "의상 배경 유머 긴장감 여운 메시지 자막 더빙 상영관 좌석 팝콘 친구 가족 주말 아침 저녁 바다 도시 시골 겨울 여름 "
    "기차 우주 역사 전쟁 사랑 이별 학교 회사"
)
HOW = "정말 너무 조금 생각보다 확실히 역시 솔직히 아주 꽤 은근히 유난히 대체로 끝까지 처음부터 다시봐도 왠지"

LAYOUT = """<!doctype html><html lang="ko"><head>{meta}<title>리뷰</title></head><body>
<h1>리뷰</h1><ul class="reviews">
{reviews}
</ul>{empty}{next}</body></html>"""

ITEM = (
    '<li data-id="{review_id}"><span class="author">{author}</span><b class="stars">별점 {stars}점</b>'
    '<time datetime="{written_at}">{shown}</time><p class="comment">{text}</p></li>'
)

SCRIPT = """<!doctype html><html lang="ko"><head><meta charset="utf-8"><title>리뷰</title></head><body><h1>리뷰</h1>
<div id="here">불러오는 중</div><script>
fetch("/api" + location.search).then(answer => answer.json()).then(page => setTimeout(() => {
  document.getElementById("here").innerHTML = page.html;
}, 50));
</script></body></html>"""


@dataclass
class WrittenReview:
    """``text`` is plain: the site escapes it. ``written_at`` as ISO 8601."""

    review_id: str
    text: str
    stars: float
    written_at: str
    author: str = "작성자"


def made_up_reviews(
    count: int, *, seed: int = 1, newest: str = "2026-11-29", per_day: int = 100
) -> list[WrittenReview]:
    """Newest first. Their words go with their stars (1 to 5), and no two are nearly identical."""
    dice = random.Random(seed)
    moment = datetime.fromisoformat(f"{newest}T21:00:00+09:00")
    return [
        WrittenReview(
            review_id=f"r{seed}-{count - place}",
            text=made_up_text(dice, stars := dice.choice([1, 1, 2, 3, 4, 5, 5, 5])),
            stars=stars,
            written_at=(moment - timedelta(days=place // per_day, seconds=place % per_day)).isoformat(),
            author=f"홍길동{dice.randrange(1000)}",
        )
        for place in range(count)
    ]


def made_up_text(dice: random.Random, stars: float) -> str:
    felt = (LIKED if stars >= 4.5 else DISLIKED if stars <= 2 else SO_SO).split()
    topics = dice.sample(ABOUT.split(), dice.randint(2, 6))
    said = [word for topic in topics for word in (topic, dice.choice(HOW.split()), dice.choice(felt))]
    return " ".join(said) + dice.choice(["", "!", "!!", " ㅋㅋㅋㅋ", " ㅠㅠ", "~"])


@dataclass
class Asked:
    """``headers`` by their names in lower case."""

    path: str
    headers: dict[str, str]
    moment: float


@dataclass
class ReviewSite:
    """Serves ``reviews`` until the block ends. ``layout`` and ``item`` may be changed meanwhile, as a site's are."""

    reviews: list[WrittenReview]
    page_size: int = 20
    port: int = 0
    robots: tuple[int, str] = (200, "User-agent: *\nDisallow: /private/\n")
    layout: str = LAYOUT
    item: str = ITEM
    retry_after: str | None = None
    broken: set[int] = field(default_factory=set)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    asked: list[Asked] = field(default_factory=list)
    each_page: float = 0.0
    """Seconds that each page of a list takes."""

    def __enter__(self) -> "ReviewSite":
        self.over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        while not self.over.wait(3600):
            pass

    @property
    def pages_asked(self) -> list[str]:
        return [asked.path for asked in self.asked if asked.path != "/robots.txt"]

    def describe(self, file: Path, **changes) -> Path:
        """Write the YAML of this site; ``changes`` replace keys, a mapping those inside it."""
        described = {
            "name": "local",
            "contact": "tests@example.org",
            "start_urls": [f"{self.url}/reviews"],
            "selectors": {
                "list": "ul.reviews",
                "review": "ul.reviews > li",
                "id": "::attr(data-id)",
                "text": ".comment",
                "rating": {"css": ".stars::text", "pattern": r"별점 ([\d.]+)점"},
                "written_at": "time::attr(datetime)",
                "author": ".author::text",
                "empty": ".none",
            },
            "paging": {"kind": "link", "next": "a.next", "newest_first": True},
            "rating": {"lowest": 1, "highest": 5},
            "dates": {"formats": ["%Y-%m-%dT%H:%M:%S%z"]},
            "delays": {"least": 0, "retry": 0.05},
        }
        for key, value in changes.items():
            described[key] = {**described.get(key, {}), **value} if isinstance(value, dict) else value
        file.write_text(yaml.safe_dump(described, allow_unicode=True), encoding="utf-8")
        return file

    # --- what it answers ---------------------------------------------------------------------------------------------

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(path)
        page = int(parse_qs(parts.query).get("page", ["1"])[0])
        html_type = {"Content-Type": "text/html; charset=utf-8"}
        if parts.path == "/robots.txt":
            return self.robots[0], {"Content-Type": "text/plain"}, self.robots[1].encode()
        if parts.path == "/to":
            return 302, {"Location": parts.query}, b""
        if parts.path == "/script":
            return 200, html_type, SCRIPT.encode()
        if parts.path == "/api":
            body = json.dumps({"html": self.page("/script", page)}).encode()
            return 200, {"Content-Type": "application/json"}, body
        if parts.path in ("/reviews", "/private/reviews"):
            if page in self.broken:
                return 200, html_type, '<html><body><ul class="revie<li <p>이 페이지는 <b>깨졌'.encode()
            return 200, html_type, self.page(parts.path, page).encode()
        if parts.path in ("/old", "/lying"):
            said = html_type if parts.path == "/lying" else {"Content-Type": "text/html"}
            return 200, said, self.page(parts.path, page, meta="").encode("cp949", "xmlcharrefreplace")
        if parts.path == "/endless":
            made_up = made_up_reviews(self.page_size, seed=1000 + page)
            return 200, html_type, self.shown(made_up, f"/endless?page={page + 1}").encode()
        if parts.path == "/circle":
            shown = self.reviews[(page - 1) * self.page_size :][: self.page_size] or self.reviews[-self.page_size :]
            return 200, html_type, self.shown(shown, f"/circle?page={page + 1}").encode()
        return 404, html_type, "<h1>없는 페이지</h1>".encode()

    def page(self, path: str, number: int, meta: str = '<meta charset="utf-8">') -> str:
        shown = self.reviews[(number - 1) * self.page_size :][: self.page_size]
        more = number * self.page_size < len(self.reviews)
        return self.shown(shown, f"{path}?page={number + 1}" if more else None, meta)

    def shown(self, reviews: list[WrittenReview], following: str | None, meta: str = '<meta charset="utf-8">') -> str:
        items = "\n".join(
            self.item.format(
                review_id=html.escape(str(review.review_id)),
                author=html.escape(review.author),
                stars=f"{review.stars:g}" if isinstance(review.stars, int | float) else review.stars,
                written_at=review.written_at,
                shown=review.written_at[:10].replace("-", "."),
                text=html.escape(review.text),
            )
            for review in reviews
        )
        return self.layout.format(
            meta=meta,
            reviews=items,
            empty="" if reviews else '<p class="none">아직 리뷰가 없습니다</p>',
            next=f'<a class="next" href="{following}">다음</a>' if following else "",
        )


def _handler(site: ReviewSite):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            headers = {name.lower(): value for name, value in self.headers.items()}
            site.asked.append(Asked(self.path, headers, time.monotonic()))
            if site.each_page and self.path != "/robots.txt":
                site.over.wait(site.each_page)
            waiting = site.faults.get(self.path)
            fault = waiting.pop(0) if waiting else None
            if fault == "hang":
                site.over.wait(60)
                self.close_connection = True
                return
            if fault == "slow":
                site.over.wait(3)
            status, headers, body = site.answer(self.path)
            if fault and fault.isdecimal():
                status, body = int(fault), f"<h1>{fault}</h1>".encode()
                if site.retry_after is not None:
                    headers = {**headers, "Retry-After": site.retry_after}
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
            except ConnectionError:  # the crawler was killed
                self.close_connection = True
            if fault == "cut":
                self.close_connection = True

        def log_message(self, *_):
            pass

    return Handler


def read_reviews(file: Path) -> list[WrittenReview]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [WrittenReview(**json.loads(line)) for line in lines if line.strip()]


def write_reviews(reviews: list[WrittenReview], file: Path) -> None:
    lines = [json.dumps(asdict(review), ensure_ascii=False) for review in reviews]
    part = file.with_name(f".{file.name}.part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(file)


class FileSite(ReviewSite):
    """Whose reviews are what a file holds at the moment."""

    def __init__(self, file: Path, **how):
        super().__init__(read_reviews(file), **how)
        self._file, self._read = file, file.stat().st_mtime_ns

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        now = self._file.stat().st_mtime_ns
        if now != self._read:
            self.reviews, self._read = read_reviews(self._file), now
        return super().answer(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.review_site", description="A site of reviews for tests.")
    parser.add_argument("--reviews", type=Path, help="JSON lines; default: a thousand made-up ones")
    parser.add_argument("--yaml", type=Path, help="write the site's description there before the address is printed")
    parser.add_argument("--name", default="local", help="of the site, in its description")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--page-size", type=int, default=20)
    options = parser.parse_args()
    how = {"page_size": options.page_size, "port": options.port}
    with FileSite(options.reviews, **how) if options.reviews else ReviewSite(made_up_reviews(1000), **how) as site:
        if options.yaml:
            site.describe(options.yaml, name=options.name)
        print(site.url, flush=True)
        site.serve_forever()


if __name__ == "__main__":
    main()
