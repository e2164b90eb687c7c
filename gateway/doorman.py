"""Refuses at the door: predictions there is no room for, answered with bytes before anything else looks at them.

In an overload most requests are refused, by the same event loop that has to answer the others.  A refusal that goes
through ASGI, Ray and FastAPI costs that loop most of what an answer costs; here, called by the HTTP protocol as soon as
it has read a head (connection.py), it costs a twentieth.  What passes may still be refused by `Admission.let_in`, which
knows how many texts there are.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.admission import SMALL, Admission
from gateway.edge import PROBLEM_JSON, REQUEST_ID, problem_body, sane_id
from gateway.errors import problem_of

FEWEST_TEXTS = {b"/v1/predict": (1,), b"/v1/predict/batch": (1, SMALL + 1)}  # of the kinds of request a route takes
NO_TIME = b"".join(b"x-%s-time: 0.000\r\n" % stage for stage in (b"tokenization", b"queue", b"inference", b"total"))

Head = list[tuple[bytes, bytes]]  # names in lower case


@dataclass(frozen=True)
class Doorman:
    """`count(route, status, code, version)` is told of each refusal."""

    admission: Admission
    live_version: Callable[[], str]
    count: Callable[[str, int, str, str], None]

    def hears(self, connection: int, target: bytes) -> bool:
        """A POST to `target` has come on this connection; whether it is a prediction."""
        asks = target in FEWEST_TEXTS
        if asks:
            self.admission.callers.asks(connection)
        return asks

    def refuses(self, target: bytes, head: Head) -> bool:
        """Whether a POST to `target` finds no room.  Pages of other origins pass: CORS is the application's matter."""
        fewest = FEWEST_TEXTS.get(target)
        if fewest is None:
            return False
        full = not any(map(self.admission.has_room, fewest))
        if full and not any(name in (b"origin", b"expect") for name, _ in head):
            return True
        self.admission.expect()
        return False

    def refusal(self, target: bytes, head: Head, server_headers: Head) -> bytes:
        """The whole answer, of the same shape as the one the application would give."""
        error = self.admission.refusal(FEWEST_TEXTS[target][0])
        problem = problem_of(error)
        version = self.live_version()
        identity = sane_id(next((value for name, value in head if name == REQUEST_ID), b"").decode("latin-1"))
        body = problem_body(error, identity)
        self.count(target.decode("ascii"), problem.status, problem.code, version)
        return (
            b"HTTP/1.1 %d Too Many Requests\r\ncontent-type: %s\r\ncontent-length: %d\r\nretry-after: %s\r\n"
            b"x-request-id: %s\r\nx-model-version: %s\r\n%s%s\r\n%s"
        ) % (
            problem.status,
            PROBLEM_JSON.encode(),
            len(body),
            error.headers["Retry-After"].encode(),
            identity.encode("ascii"),
            version.encode("ascii"),
            NO_TIME,
            b"".join(b"%s: %s\r\n" % each for each in server_headers),
            body,
        )
