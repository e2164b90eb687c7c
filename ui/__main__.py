"""Serve the page in the foreground: `python -m ui`.

Ctrl-C or SIGTERM stops it.  A condition the user has to fix is one line, `error: …`, and exit status 2.  What visitors
upload and download lies in a folder of its own, which is gone when the page stops.
"""

import os
import signal
import socket
import sys
import tempfile

import uvicorn
from pydantic import ValidationError

from ui.settings import Settings

STOP_SECONDS = 3  # a browser keeps its stream of events open for ever


class CannotStart(Exception):
    """The message is one sentence naming value and remedy."""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder is removed
    try:
        settings = read_settings()
        listener = open_port(settings)
    except CannotStart as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="nunchi-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        from ui.app import create_app  # Gradio takes seconds to import: a wrong setting is told before

        config = uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=STOP_SECONDS)
        print(f"the page listens on http://{settings.ui_host}:{settings.ui_port}", flush=True)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            return 0
    return 0


def read_settings() -> Settings:
    """Raises: CannotStart, naming the first variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"NUNCHI_{str(first['loc'][0]).upper()}" if first["loc"] else "the settings"
        raise CannotStart(f"{name} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}") from None


def open_port(settings: Settings) -> socket.socket:
    """A socket bound to the page's address.  Raises: CannotStart, when somebody else has it."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.ui_host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the past may be in TIME_WAIT
    try:
        listener.bind((settings.ui_host, settings.ui_port))
        listener.listen()  # here, so that of two pages the second is refused
    except OSError as error:
        listener.close()
        raise CannotStart(
            f"the page cannot listen on {settings.ui_host}:{settings.ui_port} ({error.strerror}); stop what listens "
            "there, or set NUNCHI_UI_PORT (and NUNCHI_UI_HOST) to something free"
        ) from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
