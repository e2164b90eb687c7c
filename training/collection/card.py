"""The data card: one HTML file with its plots in it that says what was collected, and what was not and why."""

import html
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.collection.store import Store
from training.config import STARS
from training.errors import CollectionError

COLOUR = "#0072B2"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd }
td:not(:first-child), th:not(:first-child) { text-align: right } th { text-align: left }
figure { margin: 1rem 0 } svg { max-width: 100%; height: auto }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } figure { background: #fff } }
"""


def write_card(store: Store) -> Path:
    """Whole or not at all; its path.

    Raises:
        CollectionError: it cannot be written.
    """
    file = store.card
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_text(render(store), encoding="utf-8")
        os.replace(part, file)
    except OSError as exc:
        raise CollectionError(f"{file} cannot be written: {exc.strerror or exc}") from exc
    finally:
        part.unlink(missing_ok=True)
    return file


def render(store: Store) -> str:
    kept, rejected, crawls = store.every_kept(), store.rejected(), store.crawls()
    sites = sorted({row[0] for row in kept} | set(rejected) | {crawl["site"] for crawl in crawls})
    reasons = Counter()
    for counts in rejected.values():
        reasons.update(counts)
    days, labels, ratings = (Counter(row[column] for row in kept) for column in (1, 2, 3))
    figures = [
        _bars("Reviews by the day they were written", _months(days) if len(days) > 60 else days, sort=True),
        _histogram("Length of the cleaned text, characters", [row[6] for row in kept]),
        _bars("Rating, 1 to 10", {str(rating): ratings[rating] for rating in range(1, 11)}),
        _bars("Label", {label: labels[label] for label in STARS}),
        _bars("Language, of what is kept", Counter(row[4] for row in kept)),
        _histogram("Share of Hangul among the letters", [row[5] for row in kept], (0, 1)),
        _bars("Not kept, by reason", dict(reasons.most_common()), flat=True),
    ]
    by_site = [_site(name, kept, rejected, crawls) for name in sites]
    by_reason = [(site, why, n) for site in sites for why, n in sorted(rejected.get(site, {}).items())]
    whole = f"{min(days)} to {max(days)}" if days else "none yet"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Collected reviews</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>Collected reviews</h1>
<p>{len(kept):,} reviews of {len(sites)} sites, written on {len(days):,} days ({whole}); {reasons.total():,} were not
kept. Texts are cleaned by Nunchi's normalizer; labels are cut from stars by each site's scale. Names of authors are not
in the data: dropped, or hashed with a salt. Days are those of the site's time zone.</p>
{_table(["site", "kept", *STARS, "not kept", "last crawl", "which was"], by_site)}
{"".join(f"<figure>{figure}</figure>" for figure in figures)}
<h2>Not kept</h2>
{_table(["site", "reason", "reviews"], by_reason)}
</body></html>
"""


def _site(name: str, kept: list[tuple], rejected: dict, crawls: list[dict]) -> list:
    own = [row for row in kept if row[0] == name]
    last = [crawl for crawl in crawls if crawl["site"] == name][-1:]
    return [
        name,
        len(own),
        *(sum(row[2] == label for row in own) for label in STARS),
        sum(rejected.get(name, {}).values()),
        *([last[0]["began"], last[0]["state"]] if last else ["", ""]),
    ]


def _months(days: Counter) -> Counter:
    months: Counter = Counter()
    for day, count in days.items():
        months[day[:7]] += count
    return months


def _bars(title: str, counts: dict, *, sort: bool = False, flat: bool = False) -> str:
    items = sorted(counts.items()) if sort else list(counts.items())
    names, values = [str(name) for name, _ in items], [count for _, count in items]
    figure = Figure(figsize=(9, 0.8 + 0.32 * max(len(names), 2)) if flat else (9, 2.8), layout="constrained")
    axes = figure.subplots()
    (axes.barh if flat else axes.bar)(names, values, color=COLOUR)
    if flat:
        axes.invert_yaxis()
    elif len(names) > 12:
        axes.set_xticks(range(0, len(names), len(names) // 10))
    return _drawn(figure, axes, title, flat)


def _histogram(title: str, values: list[float], limits: tuple[float, float] | None = None) -> str:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.hist(np.array(values, float), bins=40, range=limits, color=COLOUR)
    return _drawn(figure, axes, title, flat=False)


def _drawn(figure: Figure, axes, title: str, flat: bool) -> str:
    axes.set_title(title, loc="left", fontsize=11)
    (axes.xaxis if flat else axes.yaxis).set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.spines[["top", "right"]].set_visible(False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Title": title, "Date": None})
    return drawn.getvalue().partition("<svg")[1] + drawn.getvalue().partition("<svg")[2]


def _table(names: list[str], rows: list) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value) -> str:
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))
