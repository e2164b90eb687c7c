"""What this room raises on purpose.

CannotStart     the user must change something first; str() is one sentence with limit, value and remedy

Everything else that escapes is a fault of ours and ends in a traceback.
"""


class CannotStart(Exception):
    """`python -m server` prints it as `error: …` and exits with status 2."""
