"""Run the gateway in the foreground: `python -m gateway`.

Ctrl-C or SIGTERM stops it and everything it started, after the requests in flight are answered.  A condition the user
has to fix is one line, `error: …`, and exit status 2; when Ray itself ended, the exit status is 1.  The process you
start is the guardian (guardian.py); it runs `python -m gateway serve FOLDER`.  With RAY_ADDRESS there is none: the
gateway runs on that cluster (cluster.py).
"""

import argparse
import asyncio
import socket
import sys
from pathlib import Path

from gateway.errors import CannotStart
from gateway.settings import read_settings


def main(words: list[str]) -> int:
    try:
        return serve(Path(words[1])) if words[:1] == ["serve"] else guard(read_arguments(words))
    except CannotStart as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2


def read_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gateway", description="The gateway, in the foreground.")
    parser.add_argument("--socket", type=int, metavar="FD", help="an inherited socket, bound already, to serve on")
    parser.add_argument(
        "--beside", type=int, metavar="FD", help="with --socket: another gateway serves on it; a pipe to report to"
    )
    return parser.parse_args(words)


def guard(arguments: argparse.Namespace) -> int:
    from gateway.guardian import guard
    from gateway.port import open_port

    settings = read_settings()
    if settings.ray_address is not None:
        from gateway.cluster import run

        return run(settings)
    if arguments.socket is None:
        listener = open_port(settings.host, settings.gateway_port)
    else:
        listener = socket.socket(fileno=arguments.socket)
    command = [sys.executable, "-m", "gateway", "serve"]
    return asyncio.run(guard(command, listener, arguments.beside, settings.deadline_seconds))


def serve(folder: Path) -> int:
    # Here, so that the guardian stays small: it brings in gRPC, numpy, FastAPI and in the end Ray.
    from gateway.serve import run

    return run(read_settings(), folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
