"""A connection that does not wait for ever: uvicorn's, with a clock on both ends of an exchange.

uvicorn closes connections that are idle between two requests for `timeout_keep_alive` seconds.  One that never sends
its first request, sends half the head of one, or takes nothing of its answer, it keeps as long as the client likes,
with its file and its memory; here such a client gets those seconds too.  (The body has its own clock, in app.py.)
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """Give it to uvicorn.Config as `http`."""

    _head_is_due: asyncio.TimerHandle | None = None
    _taking_is_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._head_is_due = self.loop.call_later(self.timeout_keep_alive, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        answered = self.cycle is None or self.cycle.response_complete
        if answered and self._head_is_due is None and self.timeout_keep_alive_task is None:
            self._head_is_due = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._cancel_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking_is_due = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_taking()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
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
