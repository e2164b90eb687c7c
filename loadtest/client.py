"""HTTP/1.1 POSTs to one address over kept connections, at a small part of what a general client costs.

A load generator shares the machine with what it measures: what it spends per request is missing there. This one lets
httptools, uvicorn's own parser, read the answers, and does nothing else. No redirects, no TLS, no cookies, no retries.
"""

import asyncio
import time
from collections import deque
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

KEPT_SECONDS = 2.0  # idle: closed here before the server does it, so that no request meets a closing connection


class Answer(NamedTuple):
    """``headers`` by their names in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class ConnectionLost(OSError):
    """The server closed or broke the connection before the answer was whole."""


class Client:
    """`async with Client(url, headers) as client: answer = await client.post(body, seconds)`."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port or 80
        lines = {"host": parts.netloc, **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._head = f"POST {parts.path or '/'} HTTP/1.1\r\n{head}content-length: ".encode("latin-1")
        self._idle: deque[_Connection] = deque()
        self._all: set[_Connection] = set()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exception: object) -> None:
        for connection in list(self._all):
            connection.close()

    async def post(self, body: bytes, seconds: float) -> Answer:
        """Raises:
        OSError: no connection, or it was lost before the whole answer had come.
        TimeoutError: that took more than ``seconds``.
        httptools.HttpParserError: what came is not HTTP.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        connection = self._kept()
        if connection is None:
            async with asyncio.timeout_at(until):
                _, connection = await loop.create_connection(_Connection, *self._address)
            self._all.add(connection)
            connection.on_lost = self._all.discard
        answer = await connection.ask(b"%s%d\r\n\r\n%s" % (self._head, len(body), body), until)
        if connection.is_kept:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _kept(self) -> "_Connection | None":
        """The one used last; those that were not needed for a while are closed."""
        stale = time.monotonic() - KEPT_SECONDS
        while self._idle and (self._idle[0].idle_since < stale or not self._idle[0].is_kept):
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_kept:
                return connection
        return None


class _Connection(asyncio.Protocol):
    """One request at a time; the methods without an underscore that nobody here calls are httptools' and asyncio's."""

    def __init__(self) -> None:
        self.is_kept = True
        self.idle_since = 0.0
        self.on_lost = lambda connection: None
        self._answer: asyncio.Future[Answer] | None = None

    async def ask(self, request: bytes, until: float) -> Answer:
        loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._answer = loop.create_future()
        alarm = loop.call_at(until, self._give_up)
        try:
            if self.is_kept:  # it may have been lost in the moment it was taken
                self._transport.write(request)
            else:
                self._fail(ConnectionLost("the server closed the connection"))
            return await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            alarm.cancel()
            self._answer = None

    def close(self) -> None:
        self.is_kept = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nobody asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(exc)

    def eof_received(self) -> None:
        self.is_kept = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_kept = False
        self._fail(ConnectionLost(str(exc) if exc else "the server closed the connection"))
        self.on_lost(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.is_kept = False
        if self._answer and not self._answer.done():
            self._answer.set_result(Answer(self._parser.get_status_code(), self._headers, b"".join(self._body)))

    def _give_up(self) -> None:
        self._fail(TimeoutError("the answer was not there in time"))

    def _fail(self, exc: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc)
