"""Stands where Slack does, for ``make loop`` and the tests: an incoming webhook on loopback that keeps what it is told.

It refuses what Slack refuses, with Slack's words: another address, and blocks beyond the limits of Block Kit.
"""

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MOST_BLOCKS, MOST_FIELDS, MOST_ELEMENTS = 50, 10, 10
CHARACTERS = {"header": 150, "section": 3000, "field": 2000}


class Channel:
    """``messages`` are the bodies that were taken, in order; ``url`` is the webhook's address, secret as a real one."""

    def __init__(self, port: int) -> None:
        self.path = f"/services/T0LOCAL/B0LOCAL/{secrets.token_hex(12)}"
        self.url = f"http://127.0.0.1:{port}{self.path}"
        self.messages: list[dict] = []
        self.answer: tuple[int, str] | None = None
        """Status and text of every answer, where it is not the honest one."""

    def take(self, path: str, body: bytes) -> tuple[int, str]:
        if self.answer:
            return self.answer
        if path != self.path:
            return 403, "invalid_token"
        message = json.loads(body)
        if fault := fault_of(message):
            return 400, f"invalid_blocks: {fault}"
        self.messages.append(message)
        return 200, "ok"


def fault_of(message: dict) -> str | None:
    """What Slack would not take: https://docs.slack.dev/reference/block-kit/blocks."""
    blocks = message.get("blocks", [])
    if not message.get("text") or not 0 < len(blocks) <= MOST_BLOCKS:
        return "a text and 1 to 50 blocks are asked for"
    for block in blocks:
        fields, elements = block.get("fields", []), block.get("elements", [])
        texts = [(block["type"], block["text"])] if "text" in block else []
        texts += [("field", part) for part in [*fields, *elements]]
        if block["type"] not in ("header", "section", "context") or not texts:
            return f"{block['type']} is no block, or has no text"
        if len(fields) > MOST_FIELDS or len(elements) > MOST_ELEMENTS:
            return f"{block['type']} has too many parts"
        for kind, text in texts:
            if text["type"] != ("plain_text" if kind == "header" else "mrkdwn"):
                return f"{kind} cannot hold {text['type']}"
            if not 0 < len(text["text"]) <= CHARACTERS[kind]:
                return f"{kind} holds {len(text['text'])} characters"
    return None


@contextmanager
def slack_channel() -> Iterator[Channel]:
    """A channel that listens while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, text = channel.take(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    channel = Channel(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield channel
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
