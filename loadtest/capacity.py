"""``python -m loadtest.capacity --p99 50``: the highest arrival rate that is answered with p99 under a limit.

An open loop: requests come at their rate, answered or not, and each is counted from when it was due. The rate doubles
until the limit breaks, and then the space between is halved. One failed request breaks it too, so what the gateway
refuses by 429 is not capacity.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from loadtest import doors, measure
from loadtest.doors import Door
from loadtest.settings import Settings
from loadtest.texts import NoTexts, read_texts

FIRST_RATE = 8.0  # requests per second
HIGHEST_RATE = 20_000.0
CLOSE_ENOUGH = 1.1  # of the lowest rate that breaks the limit to the highest that holds it


def find_capacity(door: Door, p99: float, seconds: float) -> dict:
    """``rate`` in requests per second (0 when the first breaks it already), ``p99`` there, and every ``step``.

    ``p99`` is the limit in milliseconds; each step takes ``seconds``, and one to settle.
    """
    steps: list[dict] = []

    def holds(rate: float) -> bool:
        row = measure.figures([measure.run(door, seconds, rate=rate)])
        seen = row["milliseconds"]["p99"]
        good = not row["failures"] and seen is not None and seen <= p99
        steps.append({"rate": rate, "p99": seen, "failures": sum(row["failures"].values()), "holds": good})
        return good

    low, high = 0.0, FIRST_RATE
    while high < HIGHEST_RATE and holds(high):
        low, high = high, 2 * high
    while low and high > low * CLOSE_ENOUGH:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    seen = next((step["p99"] for step in reversed(steps) if step["rate"] == low), None)
    return {"limit": p99, "rate": low, "p99": seen, "steps": steps}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.capacity", description=__doc__.splitlines()[0])
    parser.add_argument("--p99", type=float, required=True, help="limit in milliseconds")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each step (default: %(default)s)")
    parser.add_argument("--texts", type=Path, help="file of texts (default: the bundled reviews)")
    options = parser.parse_args(argv)
    settings = Settings()
    url = f"http://{settings.host}:{settings.gateway_port}"
    try:
        door = doors.gateway(url, read_texts(options.texts), settings.api_key)
    except NoTexts as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    if not asyncio.run(doors.answers(door)):
        print(f"error: nothing answers at {url}; start the stack with make up", file=sys.stderr)
        return 2
    found = find_capacity(door, options.p99, options.seconds)
    for step in found["steps"]:
        seen = "no answer" if step["p99"] is None else f"p99 {step['p99']:8.2f} ms"
        print(f"{step['rate']:8.1f} per second   {seen}   {step['failures']} failed")
    print(f"capacity {found['rate']:.1f} requests per second with p99 under {options.p99:g} ms")
    return 0 if found["rate"] else 1


if __name__ == "__main__":
    sys.exit(main())
