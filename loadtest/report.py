"""bench.html: one file that opens without asking anybody, and the short table for a terminal or a README."""

import html
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.yes { color: #186a3b } .no { color: #b03a2e; font-weight: 600 }
svg { max-width: 100%; height: auto } small { color: #666; display: block }
"""
STAGES = {"tokenization": "#7fb3d5", "queue": "#f5b041", "inference": "#2471a3", "rest of the gateway": "#aab7b8"}


def write_html(document: dict, file: Path) -> None:
    file.write_text("\n".join(_page(document)), encoding="utf-8")


def table(document: dict) -> str:
    """Markdown: a line for each door, and one for each promise."""
    rows = document["rows"]
    levels = sorted({row["callers"] for row in rows if row["texts_per_request"] == 1})
    lines = [
        f"| | texts per second at {' / '.join(map(str, levels))} callers "
        f"| p50 / p99 at {levels[0]}, ms | at {levels[-1]}, ms |",
        "|---|---|---|---|",
    ]
    for door in dict.fromkeys(row["door"] for row in rows):
        mine = {row["callers"]: row for row in rows if row["door"] == door}
        speeds = " / ".join(_short(row["texts_per_second"]) for row in mine.values())
        few, many = mine[min(mine)], mine[max(mine)]
        note = f" ({many['callers']} callers)" if many["texts_per_request"] > 1 else ""
        lines.append(f"| {door}{note} | {speeds} | {_pair(few)} | {_pair(many)} |")
    roof = document["roofline"]
    lines.append(
        f"| limit: int8 products alone, {roof['giga_operations']:.0f} Gop/s | {_short(roof['texts_per_second'])} | | |"
    )
    lines += ["", "| promise | seen | wanted | |", "|---|---|---|---|"]
    marks = {True: "yes", False: "**no**", None: ""}
    for claim in document["claims"]:
        wanted = "" if claim["met"] is None else claim["wanted"]
        lines.append(f"| {claim['what']} | {_short(claim['value'])} | {wanted} | {marks[claim['met']]} |")
    if document["generators"]:
        lines += ["", "| by other generators | callers | per second | p50 / p99, ms |", "|---|---|---|---|"]
        for run in document["generators"]:
            lines.append(
                f"| {run['generator']}: {run['door']} | {run['callers']} | {_short(run['per_second'])} | {_pair(run)} |"
            )
    return "\n".join(lines)


def _page(document: dict) -> Iterator[str]:
    model, machine = document["model"], document["machine"]
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>Nunchi: bench</title><style>{STYLE}</style>"
    yield "<h1>Nunchi: how fast, and against whom</h1>"
    cores, vnni = (", ".join(map(str, machine[name])) for name in ("cores", "vnni"))
    parameters = f"{model['layer_parameters'] / 1e6:.2f} M parameters"
    tokens = f"{model['mean_tokens']:.1f} tokens"
    facts = [
        f"{document['date']}, commit {document['commit']}, <code>{html.escape(document['command'])}</code>",
        f"{html.escape(machine['processor'])} ({vnni or 'no VNNI'}), cores {cores} for servers and generator together. "
        f"Processes that have nothing to do with it took {machine['taken_by_others']:.0%} of these cores meanwhile "
        f"(load before: {machine['load_before'][0]:.1f}).",
        f"{html.escape(model['encoder'])}, {model['precision']}, {parameters} in layers; {model['count']:,} texts of "
        f"{html.escape(model['texts'])}, natural lengths, {tokens} on average.",
    ]
    if document["cut"]:
        facts.append(f"<b>This run ended early ({html.escape(document['cut'])}); these are the figures until then.</b>")
    yield "".join(f"<p>{fact}</p>" for fact in facts)
    yield "<h2>Promises</h2>" + _table(
        ["", "seen", "wanted", ""],
        [[html.escape(each["what"]), _short(each["value"]), *_verdict(each)] for each in document["claims"]],
    )
    yield "<h2>Throughput against latency</h2>" + _svg(_throughput, document)
    yield "<h2>Percentiles with the most callers</h2>" + _svg(_percentiles, document)
    yield "<h2>Batches that Triton formed</h2>" + _svg(_batches, document)
    yield "<h2>The limit of the int8 products</h2>" + _svg(_roofline, document)
    yield (
        "<small>ONNX Runtime MatMulInteger, 1024 x 768 x 3072, measured in this run: "
        f"{document['roofline']['giga_operations']:.0f} Gop/s ÷ (2 x {parameters} x {tokens}).</small>"
    )
    yield "<h2>Where the time of a request goes</h2>" + _svg(_splits, document)
    yield "<small>Means of the gateway's x-…-time headers; inference contains Triton's queue.</small>"
    yield "<h2>Rows</h2>" + _rows(document)
    if document["generators"]:
        yield "<h2>Load generators that nobody here wrote</h2>" + _table(
            ["", "callers", "per second", "p50 / p99, ms", "failed"],
            [
                [f"{each['generator']}: {html.escape(each['door'])}", each["callers"], _short(each["per_second"]),
                 _pair(each), each["failures"]]
                for each in document["generators"]
            ],
        )  # fmt: skip
    if document["capacity"]:
        found = document["capacity"]
        yield f"<p>Highest arrival rate with p99 under {found['limit']:g} ms: <b>{found['rate']:.0f}/s</b>.</p>"
    yield "<h2>Threads and settings</h2>" + _table(
        ["", ""], [[html.escape(each["name"]), html.escape(each["about"])] for each in document["systems"]]
    )
    settings = document["settings"]
    resting = (
        ""
        if document["resting"] is None
        else f" Ours, resting, took {document['resting']:.1%} of a core from the others."
    )
    yield (
        f"<p>{settings['rounds']} rounds of turns of {settings['seconds']:g} s; speeds are medians of the rounds, "
        f"percentiles of all answers. Who waits for a turn is stopped, but for ours.{resting}</p></html>"
    )


def _rows(document: dict) -> str:
    head = ["", "callers", "texts/s", "each round", "p50", "p95", "p99", "requests", "failed"]
    body = []
    for row in [*document["rows"], *([document["half"]] if document["half"] else [])]:
        load = row["callers"] or f"{row['rate']:.0f}/s"
        times = [_short(row["milliseconds"][q]) for q in ("p50", "p95", "p99")]
        rounds = " ".join(map(_short, row["turns"]))
        failed = ", ".join(f"{name}: {count}" for name, count in row["failures"].items()) or "0"
        speed = _short(row["texts_per_second"])
        body.append([html.escape(row["door"]), load, speed, rounds, *times, row["requests"], html.escape(failed)])
    return _table(head, body)


def _table(head: list, body: list[list]) -> str:
    def line(cells: list, tag: str) -> str:
        kinds = ["" if place == 0 or len(head) < 3 else " class=n" for place in range(len(cells))]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    rows = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in body)
    return f"<table><tr>{line(head, 'th')}</tr>{rows}</table>"


def _verdict(claim: dict) -> list[str]:
    if claim["met"] is None:
        return ["", ""]
    return [claim["wanted"], "<span class=yes>yes</span>" if claim["met"] else "<span class=no>no</span>"]


def _svg(draw: Callable[[Axes, dict], None], document: dict) -> str:
    figure = Figure(figsize=(9, 4), layout="constrained")
    draw(figure.subplots(), document)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the XML head, whose DTD has an address


def _throughput(axes: Axes, document: dict) -> None:
    rows = [row for row in document["rows"] if row["texts_per_request"] == 1 and row["curve"]]
    for door in dict.fromkeys(row["door"] for row in rows):
        mine = [row for row in rows if row["door"] == door]
        speeds = [row["texts_per_second"] for row in mine]
        (line,) = axes.plot(speeds, [row["milliseconds"]["p50"] for row in mine], "o-", label=door)
        axes.plot(speeds, [row["milliseconds"]["p99"] for row in mine], "o:", color=line.get_color(), alpha=0.6)
    axes.set(xlabel="texts per second", ylabel="milliseconds (p50 solid, p99 dotted)", yscale="log", xlim=(0, None))
    _plain(axes.yaxis)
    axes.legend()
    axes.grid(alpha=0.3)


def _percentiles(axes: Axes, document: dict) -> None:
    rows = [row for row in document["rows"] if row["texts_per_request"] == 1 and row["curve"]]
    most = max(row["callers"] for row in rows)
    for row in rows:
        if row["callers"] == most:
            axes.plot(row["curve"], range(101), label=row["door"])
    axes.set(xlabel=f"milliseconds, {most} callers", ylabel="percent of the answers", xscale="log")
    _plain(axes.xaxis)
    axes.legend()
    axes.grid(alpha=0.3)


def _batches(axes: Axes, document: dict) -> None:
    levels = document["batch_sizes"]
    for place, (callers, sizes) in enumerate(levels.items()):
        texts = {int(size): int(size) * count for size, count in sizes.items()}
        width = 0.8 / len(levels)
        share = [count / max(sum(texts.values()), 1) for count in texts.values()]
        axes.bar([size + (place + 0.5) * width - 0.4 for size in texts], share, width, label=f"{callers} callers")
    axes.set(xlabel="texts in a batch (Triton's statistics)", ylabel="share of the texts")
    axes.legend()


def _roofline(axes: Axes, document: dict) -> None:
    most = max(row["callers"] for row in document["rows"])
    rows = [row for row in document["rows"] if row["callers"] == most or row["texts_per_request"] > 1]
    roof = document["roofline"]["texts_per_second"]
    names = [row["door"] for row in rows]
    axes.barh(names, [row["texts_per_second"] for row in rows], color="#2471a3")
    axes.axvline(roof, color="#b03a2e")
    axes.axvline(0.55 * roof, color="#b03a2e", linestyle=":")
    axes.invert_yaxis()
    axes.set(xlabel="texts per second (solid: the int8 products alone; dotted: 0.55 of it)")


def _splits(axes: Axes, document: dict) -> None:
    rows = [row for row in document["rows"] if row["split"] and row["texts_per_request"] == 1]
    names = [f"{row['callers']} callers" for row in rows]
    left = [0.0] * len(rows)
    for stage, color in STAGES.items():
        values = [row["split"].get(stage, _rest(row["split"])) for row in rows]
        axes.barh(names, values, left=left, label=stage, color=color)
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds")
    axes.legend()


def _plain(axis: Axis) -> None:
    """Numbers as people write them, at few places of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _rest(split: dict[str, float]) -> float:
    return max(2 * split["total"] - sum(split.values()), 0.0)


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _pair(row: dict) -> str:
    return f"{_short(row['milliseconds']['p50'])} / {_short(row['milliseconds']['p99'])}"
