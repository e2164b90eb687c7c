"""Arguments that several commands take, and their types."""

import argparse
from collections.abc import Callable
from pathlib import Path

from export.settings import Settings


def add_repository(parser: argparse.ArgumentParser, settings: Settings) -> None:
    parser.add_argument(
        "--repository", type=Path, default=settings.repository, help="model repository (default: %(default)s)"
    )


def add_soak(parser: argparse.ArgumentParser, settings: Settings) -> None:
    parser.add_argument(
        "--soak", type=soak_seconds, default=settings.soak_seconds, metavar="SECONDS",
        help="how long the version before stays loaded (default: %(default)s, NUNCHI_SOAK_SECONDS)",
    )  # fmt: skip


def at_least(least: int) -> Callable[[str], int]:
    """A whole number from ``least`` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return number


def soak_seconds(text: str) -> float:
    """Seconds, 0 to a day."""
    value = float(text)
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{value:g} is not between 0 and 86400 seconds")
    return value


def share(text: str) -> float:
    """A part of the traffic: above 0, up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not above 0 and up to 1")
    return value
