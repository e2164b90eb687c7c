"""A connection that does not wait for ever and asks the doorman first: uvicorn's, with a clock on both ends.

uvicorn writes the head of an answer and its body apart, and a system call is the dearest step of an answer: here what
one turn of the event loop writes leaves in one, and an answer as soon as it is whole, before anybody makes notes of it.

uvicorn closes connections that are idle between two requests for `timeout_keep_alive` seconds.  One that never sends
its first request, sends half the head of one, or takes nothing of its answer, it keeps as long as the client likes,
with its file and its memory; here such a client gets those seconds too.  (The body has its own clock, in app.py.)
"""

import asyncio
import itertools

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.doorman import Doorman

NUMBERS = itertools.count()  # of connections
CLOSE = (b"connection", b"close")  # among uvicorn's default headers once the server drains


class Refused:
    """Stands in uvicorn's books for a request that was refused at the door: its body, if any, is thrown away."""

    response_complete = True
    message_event = asyncio.Event()


class Gathered:
    """The transport of a connection, whose writes within one turn of the event loop leave together."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self.leave)
        self._pieces.append(data)

    def close(self) -> None:
        self.leave()
        self._transport.close()

    def leave(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            if not self._transport.is_closing():
                self._transport.write(b"".join(pieces))


class Connection(HttpToolsProtocol):
    """Give `functools.partial(Connection, doorman)` to uvicorn.Config as `http`."""

    def __init__(self, doorman: Doorman, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self._doorman = doorman
        self._number = next(NUMBERS)
        self._predictions = 0  # asked for
        self._head_is_due: asyncio.TimerHandle | None = None
        self._taking_is_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(Gathered(transport, self.loop))
        self._head_is_due = self.loop.call_later(self.timeout_keep_alive, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        answered = self.cycle is None or self.cycle.response_complete
        if answered and self._head_is_due is None and self.timeout_keep_alive_task is None:
            self._head_is_due = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def on_headers_complete(self) -> None:
        self._cancel_head()
        if self.parser.get_method() == b"POST":
            self._predictions += self._doorman.hears(self._number, self.url)
        if self._may_be_refused() and self._doorman.refuses(self.url, self.headers):
            self.cycle = Refused
            self.transport.write(self._doorman.refusal(self.url, self.headers, self.server_state.default_headers))
            self.on_response_complete()
        else:
            super().on_headers_complete()

    def on_response_complete(self) -> None:
        if self.cycle is not Refused:  # of those, one turn may write many
            self.transport.leave()
        super().on_response_complete()

    def _may_be_refused(self) -> bool:
        """Not behind a request that is being answered, and not where the connection ends with this one."""
        first_in_line = self.cycle is None or self.cycle.response_complete
        reads = not self.flow.write_paused  # else its answers pile up here, where nothing holds it back
        return first_in_line and reads and self.parser.get_method() == b"POST" and self._is_kept()

    def _is_kept(self) -> bool:
        kept = self.parser.should_keep_alive() and self.parser.get_http_version() == "1.1"
        return kept and CLOSE not in self.server_state.default_headers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking_is_due = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_taking()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._predictions > 1:
            self._doorman.admission.callers.leaves(self._number)
        self._cancel_head()
        self._cancel_taking()

    def _cancel_head(self) -> None:
        if self._head_is_due is not None:
            self._head_is_due.cancel()
            self._head_is_due = None

    def _cancel_taking(self) -> None:
        if self._taking_is_due is not None:
            self._taking_is_due.cancel()
            self._taking_is_due = None
