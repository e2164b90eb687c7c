"""What the gateway writes to stderr: one JSON object per line, or plain lines for people (NUNCHI_LOG_FORMAT=text).

A request that failed or was slow gets one line with its id, which Triton's log and the caller's answer have too; one
that went well gets none, and one that was refused at the door (doorman.py) is only counted.  A line says how many texts
there were and how long they were, never what they said.  A fault must not become a flood of lines, so of one kind only
LINES_PER_SECOND are written, and then how many were not.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TextIO

import orjson

from gateway.errors import RequestError

if TYPE_CHECKING:
    from gateway.envelope import Exchange

LINES_PER_SECOND = 5
SLOW_SECONDS = 2.0  # a single text takes hundredths, a full batch about a second

log = logging.getLogger("gateway.requests")


def configure_log(stream: TextIO, log_format: str) -> None:
    """Send the lines of the gateway, and OpenTelemetry's errors, to `stream` as "json" or "text".

    Its warnings are left out: while no collector answers there is one for each try and for each span.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if log_format == "json" else Lines())
    for name, level in (("gateway", logging.INFO), ("opentelemetry", logging.ERROR)):
        root = logging.getLogger(name)
        root.handlers = [handler]
        root.setLevel(level)
        root.propagate = False


class JsonLines(logging.Formatter):
    """`time` (ISO 8601 with offset), `level`, `logger`, `message`, then the fields given as extra={"fields": {…}}."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class Lines(logging.Formatter):
    """The same for people: the fields follow the message as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        traceback = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{moment(record)} {record.levelname} gateway {record.getMessage()}{fields}{traceback}"


def moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


@dataclass(slots=True)
class Second:
    """The lines of one kind since `started`, a time.monotonic() moment."""

    started: float
    written: int = 0
    withheld: int = 0


class RequestLog:
    """Lines about requests.  Used from the event loop only."""

    def __init__(self) -> None:
        self._seconds: dict[str, Second] = {}

    def ended(self, exchange: "Exchange", status: int, version: str, seconds: float, error: Exception | None) -> None:
        """Write about a request that is over, when there is something to say about it.

        `error` is what ended it: a RequestError that became its answer, or an accident, whose traceback is written.
        """
        refused = isinstance(error, RequestError)
        if error and not refused:
            kind = "request failed: internal" if status == 500 else "answer broke off"
        elif status >= 500 or status == 429:
            kind = f"request failed: {exchange.code}"
        elif seconds >= SLOW_SECONDS:
            kind = "request was slow"
        else:
            return
        if not self._may_write(kind):
            return
        log.log(
            logging.WARNING if status == 429 or error is None else logging.ERROR,
            kind,
            exc_info=None if refused else error,
            extra={"fields": fields_of(exchange, status, version, seconds, error.cause if refused else "")},
        )

    def _may_write(self, kind: str) -> bool:
        now = time.monotonic()
        second = self._seconds.get(kind)
        if second is None or now - second.started >= 1:
            second = self._seconds[kind] = Second(now)
        if second.written < LINES_PER_SECOND:
            second.written += 1
            return True
        second.withheld += 1
        if second.withheld == 1:
            asyncio.get_running_loop().call_later(1, self._own_up, kind, second)
        return False

    def _own_up(self, kind: str, second: Second) -> None:
        log.warning(kind, extra={"fields": {"suppressed": second.withheld}})


def fields_of(exchange: "Exchange", status: int, version: str, seconds: float, cause: str) -> dict:
    """What a line says of a request: counts, sizes and times, no word of its texts."""
    stages = exchange.stages
    fields = {
        "request_id": exchange.request_id,
        "route": exchange.route,
        "status": status,
        "code": exchange.code,
        "version": version,
        "key": exchange.key_name,
        "texts": exchange.texts,
        "characters": exchange.characters,
        "tokenization_ms": round(1000 * stages.tokenization, 3),
        "queue_ms": round(1000 * stages.queue, 3),
        "inference_ms": round(1000 * stages.inference, 3),
        "total_ms": round(1000 * seconds, 3),
        "trace_id": exchange.trace.trace_id if exchange.trace else None,
        "cause": cause,
    }
    return {name: value for name, value in fields.items() if value not in (None, "")}
