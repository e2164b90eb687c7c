"""Run the gateway in the foreground: `python -m gateway`.

Ctrl-C or SIGTERM stops it and everything it started.  A condition the user has to fix is one line, `error: …`, and
exit status 2.  The process you start is the guardian (guardian.py); it runs `python -m gateway serve FOLDER`.
"""

import sys
from pathlib import Path

from gateway.errors import CannotStart


def main(arguments: list[str]) -> int:
    if not arguments:
        from gateway.guardian import guard

        return guard([sys.executable, "-m", "gateway", "serve"])
    try:
        # Here, so that the guardian stays small: these bring in gRPC, numpy, FastAPI and in the end Ray.
        from gateway.serve import run
        from gateway.settings import read_settings

        _, folder = arguments
        run(read_settings(), Path(folder))
    except CannotStart as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
