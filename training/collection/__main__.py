"""``python -m training.collection crawl --site NAME-or-FILE [--output DIR] [--since DAY] [--until DAY]``, or ``card``.

``crawl`` says what it does on stderr, and at last prints one line of JSON: site, new, duplicates, near_duplicates,
edited, rejected, broken_pages, pages, alarm, folder. A crawl that goes on counts from where it first began. It ends
with 0; with 2 when it was refused, where what was collected stays and the next run goes on; with 3 when a changed
layout raised the alarm. ``--since`` and ``--until`` choose by the day a review was written, the first included and
the second not, as Airflow's intervals are; with ``--since`` a crawl looks again at all of those days, and finds
what was edited.
"""

import argparse
import json
import sys
from contextlib import closing
from datetime import date
from pathlib import Path

from training.errors import CollectionError, TrainingError
from training.settings import read_settings


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.collection", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="crawl | card")
    crawling = commands.add_parser("crawl", help="collect what is new on a site")
    crawling.add_argument("--site", required=True, help="a YAML, or the name of one in training/collection/sites")
    crawling.add_argument("--since", type=_day, metavar="DAY", help="written on this day or later: 2026-11-30")
    crawling.add_argument("--until", type=_day, metavar="DAY", help="written before this day")
    showing = commands.add_parser("card", help="write the data card, and print its path")
    for command in (crawling, showing):
        command.add_argument("--output", type=Path, metavar="DIR", help="default: collected under NUNCHI_VAR")
    options = parser.parse_args(argv)
    try:
        folder = (options.output or read_settings().var / "collected").expanduser().resolve()
        return _crawl(options, folder) if options.command == "crawl" else _card(folder)
    except TrainingError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2


def _crawl(options: argparse.Namespace, folder: Path) -> int:
    if options.since and options.until and options.since >= options.until:
        raise CollectionError(
            f"--since {options.since} is not before --until {options.until}, and that day is not included"
        )
    from training.collection.site import read_site
    from training.collection.store import Interval

    site = read_site(options.site)  # before Scrapy is loaded: a wrong YAML is refused at once
    from training.collection.crawl import crawl

    crawled = crawl(site, folder, Interval(options.since, options.until))
    alarm = crawled.tally.alarm
    if alarm:
        print(f"alarm: {alarm}", file=sys.stderr)
    elif crawled.refused:
        print(f"error: {crawled.refused}", file=sys.stderr)
    print(json.dumps(crawled.tally.as_json(str(crawled.folder)), ensure_ascii=False))
    return 3 if alarm else 2 if crawled.refused else 0


def _card(folder: Path) -> int:
    from training.collection.card import write_card
    from training.collection.store import Store

    if not (folder / "_state").is_dir():
        raise CollectionError(f"{folder} holds no collection; crawl a site first, or name its folder with --output")
    with closing(Store(folder)) as store:
        print(write_card(store))
    return 0


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write it as 2026-11-30") from None


if __name__ == "__main__":
    sys.exit(main())
