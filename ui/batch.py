"""여러 문장: lines or a file in, every row read, charts, a table to look through, and a file to take home."""

import asyncio
import html
import math
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import gradio as gr
import pandas as pd
from gradio.processing_utils import save_file_to_cache

from ui import charts, feedback, results
from ui.errors import GatewayAway, GatewayError
from ui.gateway import Prediction
from ui.page import Page, explain, notice
from ui.run import REQUESTS_AT_ONCE, Run
from ui.table import MAX_BYTES, MAX_ROWS, SUFFIXES, Table, TableRefused, read_file, read_lines, write_csv, write_xlsx
from ui.words import Words

TICK_SECONDS = 0.3  # between two looks at a run
ROWS_SHOWN = 100  # on one page of the table
CHARACTERS_SHOWN = 200  # of a text in the table
NUMBERS_SHOWN = 20  # of rows set aside, in the summary
MAX_PASTED = 10_000_000  # characters

WORDS = {
    "source": ("무엇을 읽을까요?", "What shall be read?"),
    "lines": ("글 붙여 넣기", "Pasted lines"),
    "file": ("파일 올리기", "A file"),
    "lines_label": ("한 줄에 하나씩", "One text a line"),
    "lines_placeholder": ("여기에 글을 한 줄에 하나씩 붙여 넣어 보세요", "Paste Korean texts here, one a line"),
    "file_label": (
        "TXT, CSV, XLSX 파일 (최대 {rows:,}줄, {megabytes:.0f} MB)",
        "A TXT, CSV or XLSX file (up to {rows:,} rows, {megabytes:.0f} MB)",
    ),
    "file_about": (
        "올린 파일은 읽고 나서 바로 지워요. 내용은 이 창을 닫을 때까지만 메모리에 있어요.",
        "The file is deleted as soon as it is read. Its content stays in memory until you close the page, no longer.",
    ),
    "titled": ("첫 줄은 열 이름이에요", "The first row holds titles"),
    "text_column": ("글이 들어 있는 열", "Column with the texts"),
    "date_column": ("날짜가 들어 있는 열", "Column with dates"),
    "no_dates": ("날짜 없음", "No dates"),
    "empty": (
        "글을 붙여 넣거나 파일을 올린 다음 ‘모두 읽기’를 눌러 주세요.",
        "Paste lines or choose a file, then press “Read all”.",
    ),
    "read": (
        "{rows:,}줄을 찾았어요 ({encoding}). 열이 맞는지 보고 ‘모두 읽기’를 눌러 주세요.",
        "Found {rows:,} rows ({encoding}). Check the columns, then press “Read all”.",
    ),
    "read_broken": (
        "{rows:,}줄을 찾았어요 ({encoding}). 읽을 수 없는 줄은 따로 두었어요: {numbers}",
        "Found {rows:,} rows ({encoding}). Rows that cannot be read are set aside: {numbers}",
    ),
    "start": ("모두 읽기", "Read all"),
    "pause": ("잠시 멈춤", "Pause"),
    "go_on": ("이어서 읽기", "Go on"),
    "stop": ("그만두기", "Cancel"),
    "running": ("{done:,} / {total:,}줄을 읽었어요.", "Read {done:,} of {total:,} rows."),
    "left": (" 약 {time} 남았어요.", " About {time} left."),
    "seconds": ("{seconds}초", "{seconds} s"),
    "minutes": ("{minutes}분 {seconds}초", "{minutes} min {seconds} s"),
    "paused": ("잠시 멈췄어요.", "Paused."),
    "away": (
        "게이트웨이와 연결이 끊겨 기다리고 있어요. 돌아오면 저절로 이어서 읽어요. 읽은 줄은 그대로 있어요.",
        "The gateway is gone. Reading goes on by itself as soon as it is back; what was read is kept.",
    ),
    "busy": (
        "지금 요청이 많아 밀려 있어요. {seconds}초 뒤에 저절로 이어서 읽어요.",
        "The gateway is overloaded. Reading goes on by itself in {seconds} s.",
    ),
    "stopped": (
        "그만뒀어요. 읽은 줄은 아래에 있고, ‘이어서 읽기’를 누르면 나머지도 읽어요.",
        "Cancelled. What was read is below; “Go on” reads the rest.",
    ),
    "done": ("다 읽었어요.", "All done."),
    "aside": (
        " 답이 없는 줄 {count:,}개는 따로 두었어요: {numbers}",
        " Rows without an answer, set aside: {count:,} ({numbers})",
    ),
    "more": ("{numbers} 등", "{numbers} and more"),
    "progress": ("진행", "Progress"),
    "shares": ("느낌의 비율", "Shares of the labels"),
    "confidences": ("확신별 줄 수", "Rows by confidence"),
    "over_time": ("날짜별 줄 수", "Rows over time"),
    "rows": ("줄 수", "Rows"),
    "filter_label": ("보여 줄 느낌", "Labels to show"),
    "filter_text": ("이 말이 들어 있는 줄만 (Enter)", "Only rows that contain (Enter)"),
    "filter_confidence": ("확신이 이만큼 이하인 줄만 (%)", "Only rows with at most this confidence (%)"),
    "sort": ("차례", "Order"),
    "sort_row": ("파일의 차례대로", "As in the file"),
    "sort_sure": ("확신이 높은 것부터", "Surest first"),
    "sort_unsure": ("확신이 낮은 것부터", "Least sure first"),
    "sort_newest": ("날짜가 늦은 것부터", "Newest first"),
    "page": ("쪽", "Page"),
    "page_of": (
        "{rows:,}줄 가운데 {first:,}-{last:,}줄 ({pages:,}쪽)",
        "Rows {first:,}-{last:,} of {rows:,} ({pages:,} pages)",
    ),
    "none_found": ("조건에 맞는 줄이 없어요. 조건을 풀어 보세요.", "No row fits. Loosen the filter."),
    "table": ("읽은 줄", "The rows"),
    "table_about": (
        "줄을 고르면 그 답이 틀렸다고 알려 줄 수 있어요.",
        "Select a row to say that its answer is wrong.",
    ),
    "selected": ("{number}번 줄: {label} ({confidence:.1f}%)", "Row {number}: {label} ({confidence:.1f} %)"),
    "csv": ("CSV 내려받기", "Download CSV"),
    "xlsx": ("XLSX 내려받기", "Download XLSX"),
    "file_name": ("눈치-결과", "nunchi-results"),
    "number": ("줄", "Row"),
    "text": ("글", "Text"),
    "label": ("느낌", "Label"),
    "prediction": ("느낌 (영문)", "Label (name)"),
    "confidence": ("확신", "Confidence"),
    "probability": ("확률", "Probability"),
    "version": ("버전", "Version"),
    "truncated": ("뒷부분을 읽지 못함", "End left out"),
    "problem": ("읽지 못한 까닭", "Problem"),
    "without": ("(답 없음)", "(no answer)"),
    # why a row is set aside, or a whole file
    "empty_cell": ("글이 비어 있어요", "The text is empty"),
    "open_quote": ('큰따옴표(")의 짝이 맞지 않아요', 'A quote (") is never closed'),
    "broken_bytes": ("깨진 글자가 있어요", "It holds broken characters"),
    "too_many_cells": ("열 이름보다 칸이 많아요", "It has more cells than the first row"),
    "not_asked": ("아직 읽지 않았어요", "Not read yet"),
    "wrong_type": (
        "{suffix} 파일은 읽을 수 없어요. TXT, CSV, XLSX 가운데 하나로 저장해서 올려 주세요.",
        "{suffix} files cannot be read. Save it as TXT, CSV or XLSX.",
    ),
    "too_large": (
        "파일이 {megabytes:.0f} MB예요. {limit:.0f} MB까지 읽을 수 있으니 나누어 올려 주세요.",
        "The file has {megabytes:.0f} MB, the limit is {limit:.0f} MB. Split it.",
    ),
    "too_many_rows": (
        "{rows:,}줄이나 있어요. 한 번에 {limit:,}줄까지 읽을 수 있으니 나누어 올려 주세요.",
        "It has {rows:,} rows, the limit is {limit:,}. Split it.",
    ),
    "too_many_columns": (
        "열이 {columns:,}개예요. {limit:,}개까지 읽을 수 있으니 필요한 열만 남겨 주세요.",
        "It has {columns:,} columns, the limit is {limit:,}. Keep those you need.",
    ),
    "unknown_encoding": (
        "글자를 알아볼 수 없어요. UTF-8(또는 CP949)로 저장해서 다시 올려 주세요.",
        "Its characters cannot be read. Save it as UTF-8 (or CP949).",
    ),
    "broken_xlsx": (
        "XLSX 파일을 열 수 없어요. 암호가 걸려 있지 않은지 보고, 다시 저장하거나 CSV로 올려 주세요.",
        "The XLSX file cannot be opened. Check that it has no password, save it again, or use CSV.",
    ),
    "no_rows": ("읽을 줄이 없어요. 글을 한 줄 이상 넣어 주세요.", "There is no row to read. Give at least one."),
}

Changes = dict[Any, Any]  # new values by component


@dataclass
class Batch:
    """What the page keeps of one visitor: the file as it was read, and the latest run with what it came to."""

    file: Table | None = None
    table: Table | None = None
    text_column: str = ""
    date_column: str | None = None
    numbers: Sequence[int] = ()
    run: Run | None = None
    frame: pd.DataFrame | None = None


@dataclass(frozen=True)
class Parts:
    """The components that events read or change; ``shown`` is the selected row for ui/feedback.py, or None."""

    batch: gr.State
    shown: gr.State
    source: gr.Radio
    lines: gr.Textbox
    file_group: gr.Column
    file: gr.File
    columns: gr.Column
    titled: gr.Checkbox
    text_column: gr.Dropdown
    date_column: gr.Dropdown
    start: gr.Button
    pause: gr.Button
    go_on: gr.Button
    stop: gr.Button
    status: gr.HTML
    results: gr.Column
    shares: gr.BarPlot
    confidences: gr.BarPlot
    over_time: gr.BarPlot
    labels: gr.CheckboxGroup
    contains: gr.Textbox
    confidence: gr.Number
    sort: gr.Dropdown
    page: gr.Number
    found: gr.HTML
    rows: gr.Dataframe
    selected: gr.HTML
    csv: gr.Button
    xlsx: gr.Button
    save: gr.DownloadButton


def build(page: Page) -> None:
    words = page.words.of(WORDS)
    states = {"batch": gr.State(Batch()), "shown": gr.State(None)}
    parts = Parts(**states, **_source(words), **_controls(words), **_results(page, words, states["shown"]))
    lane = asyncio.Semaphore(REQUESTS_AT_ONCE)
    _wire_source(words, parts)
    _wire_run(page, words, parts, lane)
    _wire_results(page, words, parts)


def _source(words: Words) -> dict[str, Any]:
    choices = [(words(each), each) for each in ("lines", "file")]
    source = gr.Radio(choices, value="lines", label=words("source"), elem_id="batch-source")
    lines = gr.Textbox(
        label=words("lines_label"),
        placeholder=words("lines_placeholder"),
        lines=6,
        max_lines=12,
        max_length=MAX_PASTED,
        elem_id="batch-lines",
    )
    with gr.Column(visible=False, elem_id="batch-file-group") as file_group:
        about = words("file_label", rows=MAX_ROWS, megabytes=MAX_BYTES / 1e6)
        file = gr.File(label=about, file_types=list(SUFFIXES), height=140, elem_id="batch-file")
        gr.Markdown(words("file_about"))
        with gr.Column(visible=False, elem_id="batch-columns") as columns:
            titled = gr.Checkbox(True, label=words("titled"), elem_id="batch-titled")
            with gr.Row():
                text_column = gr.Dropdown([], label=words("text_column"), min_width=200, elem_id="batch-text-column")
                date_column = gr.Dropdown([], label=words("date_column"), min_width=200, elem_id="batch-date-column")
    return {
        "source": source,
        "lines": lines,
        "file_group": file_group,
        "file": file,
        "columns": columns,
        "titled": titled,
        "text_column": text_column,
        "date_column": date_column,
    }


def _controls(words: Words) -> dict[str, Any]:
    with gr.Row():
        buttons = {
            name: gr.Button(
                words(name),
                variant="primary" if name in ("start", "go_on") else "stop" if name == "stop" else "secondary",
                visible=name == "start",
                min_width=100,
                elem_id=f"batch-{name.replace('_', '-')}",
            )
            for name in ("start", "pause", "go_on", "stop")
        }
    return {**buttons, "status": gr.HTML(notice(words("empty")), elem_id="batch-status")}


def _results(page: Page, words: Words, shown: gr.State) -> dict[str, Any]:
    with gr.Column(visible=False, elem_id="batch-results") as column:
        parts = {**_charts(words), **_filters(words)}
        rows = gr.Dataframe(
            label=words("table"),
            headers=[words(name) for name in ("number", "label", "confidence", "text", "problem")],
            datatype=["number", "str", "number", "str", "str"],
            column_widths=[70, 90, 90, 640, 220],  # left to itself, a long text takes what the others need
            interactive=False,
            wrap=True,
            elem_id="batch-rows",
        )
        selected = gr.HTML(notice(words("table_about")), elem_id="batch-selected")
        feedback.attach(page, shown, place="batch")
        with gr.Row():
            csv = gr.Button(words("csv"), min_width=140, elem_id="batch-csv")
            xlsx = gr.Button(words("xlsx"), min_width=140, elem_id="batch-xlsx")
        save = gr.DownloadButton(words("csv"), elem_id="batch-save")  # never seen: the buttons above press it
    return {"results": column, **parts, "rows": rows, "selected": selected, "csv": csv, "xlsx": xlsx, "save": save}


def _charts(words: Words) -> dict[str, Any]:
    about = {"colors_in_legend": [], "height": 240, "min_width": 280}  # the first chart tells what the colours mean
    rows = {"y": "rows", "y_title": words("rows")}
    with gr.Row():
        shares = gr.BarPlot(
            x="label",
            y="share",
            color="label",
            x_title=" ",
            y_title="%",
            y_lim=[0, 100],
            tooltip="all",
            label=words("shares"),
            elem_id="batch-shares",
            **about,
        )
        confidences = gr.BarPlot(
            x="confidence",
            color="label",
            x_title=f"{words('confidence')} (%)",
            sort="x",
            label=words("confidences"),
            elem_id="batch-confidences",
            **rows,
            **about,
        )
    over_time = gr.BarPlot(
        x="day",
        color="label",
        x_title=" ",
        x_label_angle=-45,
        sort="x",
        label=words("over_time"),
        visible=False,
        elem_id="batch-over-time",
        **rows,
        **about,
    )
    return {"shares": shares, "confidences": confidences, "over_time": over_time}


def _filters(words: Words) -> dict[str, Any]:
    sorts = [(words(f"sort_{each}"), each) for each in results.SORTS]
    labels = gr.CheckboxGroup([], label=words("filter_label"), elem_id="batch-filter-label")
    with gr.Row():
        contains = gr.Textbox(label=words("filter_text"), max_lines=1, min_width=200, elem_id="batch-filter-text")
        confidence = gr.Number(
            100,
            label=words("filter_confidence"),
            minimum=0,
            maximum=100,
            min_width=200,
            elem_id="batch-filter-confidence",
        )
        sort = gr.Dropdown(sorts, value="row", label=words("sort"), min_width=200, elem_id="batch-sort")
    with gr.Row():
        page = gr.Number(1, label=words("page"), precision=0, minimum=1, min_width=100, elem_id="batch-page")
        found = gr.HTML(elem_id="batch-found")
    return {
        "labels": labels,
        "contains": contains,
        "confidence": confidence,
        "sort": sort,
        "page": page,
        "found": found,
    }


EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}


def _wire_source(words: Words, parts: Parts) -> None:
    columns = [parts.columns, parts.titled, parts.text_column, parts.date_column, parts.start, parts.status]

    def switch(source: str, batch: Batch) -> Changes:
        ready = source == "lines" or batch.file is not None
        return {
            parts.lines: gr.Textbox(visible=source == "lines"),
            parts.file_group: gr.Column(visible=source == "file"),
            parts.start: gr.Button(interactive=ready),
        }

    async def take(path: str, batch: Batch) -> Changes:
        batch.file = None
        file = Path(path)
        try:
            batch.file = await asyncio.to_thread(read_file, file)
        except TableRefused as refused:
            return _no_file(parts, _refusal(words, refused))
        finally:
            file.unlink(missing_ok=True)
        return _columns_of(words, parts, batch.file)

    def title(titled: bool, batch: Batch) -> Changes:
        if batch.file is None:
            return {parts.status: gr.skip()}
        batch.file = replace(batch.file, titled=titled)
        return _columns_of(words, parts, batch.file)

    def forget(batch: Batch) -> Changes:
        batch.file = None
        return _no_file(parts, notice(words("empty")))

    parts.source.change(switch, [parts.source, parts.batch], [parts.lines, parts.file_group, parts.start], **EVENT)
    parts.file.upload(take, [parts.file, parts.batch], columns, **EVENT)
    parts.file.clear(forget, parts.batch, columns, **EVENT)
    parts.titled.input(title, [parts.titled, parts.batch], columns, **EVENT)


def _no_file(parts: Parts, status: str) -> Changes:
    return {parts.columns: gr.Column(visible=False), parts.start: gr.Button(interactive=False), parts.status: status}


def _columns_of(words: Words, parts: Parts, table: Table) -> Changes:
    names = table.columns
    found = {"rows": len(table.records), "encoding": table.encoding}
    key = "read_broken" if table.broken else "read"
    return {
        parts.columns: gr.Column(visible=True),
        parts.start: gr.Button(interactive=True),
        parts.titled: table.titled,
        parts.text_column: gr.Dropdown(names, value=table.text_column()),
        parts.date_column: gr.Dropdown([(words("no_dates"), ""), *names], value=table.date_column() or ""),
        parts.status: notice(words(key, **found, numbers=_listed(words, list(table.broken)))),
    }


def _wire_run(page: Page, words: Words, parts: Parts, lane: asyncio.Semaphore) -> None:
    async def start(
        batch: Batch, source: str, lines: str, text_column: str, date_column: str
    ) -> AsyncIterator[Changes]:
        if batch.run and batch.run.state in ("running", "paused"):
            return  # a second click
        try:
            table = batch.file if source == "file" else await asyncio.to_thread(read_lines, lines)
            if table is None:
                raise TableRefused("no_rows")
        except TableRefused as refused:
            yield {parts.status: _refusal(words, refused)}
            return
        _prepare(page, batch, table, text_column, date_column, lane)
        async for changes in _follow(page, words, parts, batch):
            yield changes

    async def go_on(batch: Batch) -> AsyncIterator[Changes]:
        if batch.run is None or batch.run.state == "paused":
            if batch.run:
                batch.run.resume()  # whoever follows it shows the rest
            return
        async for changes in _follow(page, words, parts, batch):
            yield changes

    shown = [part for name, part in vars(parts).items() if name not in ("batch", "source", "lines", "file")]
    inputs = [parts.batch, parts.source, parts.lines, parts.text_column, parts.date_column]
    parts.start.click(start, inputs, shown, **EVENT)
    parts.go_on.click(go_on, parts.batch, shown, trigger_mode="multiple", **EVENT)
    parts.pause.click(lambda batch: batch.run.pause(), parts.batch, None, **EVENT)
    parts.stop.click(lambda batch: batch.run.stop(), parts.batch, None, **EVENT)


def _prepare(
    page: Page, batch: Batch, table: Table, text_column: str, date_column: str | None, lane: asyncio.Semaphore
) -> None:
    text_column = text_column if text_column in table.columns else table.text_column()
    cells = table.column(text_column)
    batch.table, batch.text_column = table, text_column
    batch.date_column = date_column if date_column in table.columns else None
    batch.numbers = [number for number, text in cells.items() if text.strip()]
    batch.run = Run(page.gateway, [cells[number] for number in batch.numbers], lane)
    batch.frame = None


async def _follow(page: Page, words: Words, parts: Parts, batch: Batch) -> AsyncIterator[Changes]:
    """Let the run work, and say how it goes until it ends; then show what it came to."""
    run = batch.run
    work = asyncio.create_task(run.work())
    last = ""
    try:
        yield {**_buttons(parts, "running"), parts.results: gr.Column(visible=False), parts.shown: None}
        while not work.done():
            sentence = _progress(words, run)
            if sentence != last:
                yield {parts.status: sentence, **_buttons(parts, run.state)}
                last = sentence
            await asyncio.wait([work], timeout=TICK_SECONDS)
    finally:  # the visitor may have gone
        work.cancel()
    error = work.exception()
    if error and not isinstance(error, GatewayError):
        raise error
    batch.frame = await asyncio.to_thread(_collected, page, words, batch)
    yield {**_buttons(parts, run.state), **_came_to(words, parts, batch, error and explain(page.words, error))}


def _buttons(parts: Parts, state: str) -> Changes:
    return {
        parts.start: gr.Button(visible=state in ("ready", "stopped", "done")),
        parts.pause: gr.Button(visible=state == "running"),
        parts.go_on: gr.Button(visible=state in ("paused", "stopped")),
        parts.stop: gr.Button(visible=state in ("running", "paused")),
    }


def _progress(words: Words, run: Run) -> str:
    """The bar, and beside it what is going on."""
    sentence = words("running", done=run.done, total=run.total)
    if run.state == "paused":
        sentence += " " + words("paused")
    elif isinstance(run.waiting_for, GatewayAway):
        sentence += " " + words("away")
    elif run.waiting_for:
        sentence += " " + words("busy", seconds=max(1, math.ceil(run.again_at - monotonic())))
    elif run.seconds_left is not None:
        sentence += words("left", time=_duration(words, run.seconds_left))
    label = html.escape(words("progress"))
    return f'<progress aria-label="{label}" max="{run.total}" value="{run.done}"></progress>{notice(sentence)}'


def _duration(words: Words, seconds: float) -> str:
    minutes, rest = divmod(max(1, math.ceil(seconds)), 60)
    return words("minutes", minutes=minutes, seconds=rest) if minutes else words("seconds", seconds=rest)


def _collected(page: Page, words: Words, batch: Batch) -> pd.DataFrame:
    def shown(prediction: Prediction) -> str:
        return prediction.label if words.language == "ko" else prediction.prediction

    def reason(why: str | GatewayError) -> str:
        return words(why) if isinstance(why, str) else explain(page.words, why)

    return results.collect(
        batch.table, batch.text_column, batch.date_column, batch.numbers, batch.run, shown=shown, reason=reason
    )


def _came_to(words: Words, parts: Parts, batch: Batch, problem: str | None) -> Changes:
    """The summary, the charts, and the filters with what there is to choose."""
    frame, run = batch.frame, batch.run
    aside = frame["number"][(frame["problem"] != "") & (frame["problem"] != words("not_asked"))].tolist()
    sentence = words("running", done=run.done, total=run.total) + " " + (problem or words(run.state))
    if aside:
        sentence += words("aside", count=len(aside), numbers=_listed(words, aside))
    labels = sorted(frame["label"].unique(), reverse=True)
    time = charts.over_time(frame)
    colors = charts.colors(frame)
    return {
        parts.status: notice(sentence, "alert" if problem else "status"),
        parts.results: gr.Column(visible=True),
        parts.shares: gr.BarPlot(charts.shares(frame), color_map=colors),
        parts.confidences: gr.BarPlot(charts.confidences(frame), color_map=colors),
        parts.over_time: gr.BarPlot(time, color_map=colors, visible=not time.empty),
        parts.labels: gr.CheckboxGroup([(each or words("without"), each) for each in labels], value=labels),
        parts.contains: "",
        parts.confidence: 100,
        parts.sort: "row",
        parts.page: 1,
        **_page_of(words, parts, frame, 1),
        parts.selected: notice(words("table_about")),
    }


def _page_of(words: Words, parts: Parts, chosen: pd.DataFrame, page: int) -> Changes:
    """One page of the chosen rows; the nearest one where there is no such page."""
    pages = max(1, math.ceil(len(chosen) / ROWS_SHOWN))
    first = (min(max(page, 1), pages) - 1) * ROWS_SHOWN
    lines = chosen.iloc[first : first + ROWS_SHOWN]
    place = {"rows": len(chosen), "first": first + 1, "last": first + len(lines), "pages": pages}
    cells = [
        [number, label, None if pd.isna(confidence) else round(100 * confidence, 1), _cut(text), problem]
        for number, label, confidence, text, problem in lines[
            ["number", "label", "confidence", "text", "problem"]
        ].itertuples(index=False, name=None)
    ]
    found = words("page_of", **place) if cells else words("none_found")
    return {parts.found: notice(found), parts.rows: gr.Dataframe(cells)}


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS_SHOWN else f"{text[:CHARACTERS_SHOWN]}…"


def _wire_results(page: Page, words: Words, parts: Parts) -> None:
    filters = [parts.labels, parts.contains, parts.confidence, parts.sort]

    async def look(batch: Batch, number: int | None, *chosen: Any) -> Changes:
        labels, contains, confidence, sort = chosen
        most = 1.0 if confidence is None else confidence / 100
        lines = await asyncio.to_thread(results.choose, batch.frame, labels, contains.strip(), most, sort)
        return _page_of(words, parts, lines, number or 1)

    async def look_anew(batch: Batch, *chosen: Any) -> Changes:
        return {parts.page: 1, **await look(batch, 1, *chosen)}

    def select(batch: Batch, event: gr.SelectData) -> Changes:
        row = batch.frame.set_index("number").loc[int(event.row_value[0])]
        if not row["label"]:
            return {parts.shown: None, parts.selected: notice(row["problem"])}
        keys = ("text", "version", "prediction", "label", "confidence")
        confidence = 100 * row["confidence"]
        about = words("selected", number=event.row_value[0], label=row["label"], confidence=confidence)
        return {parts.shown: {key: row[key] for key in keys}, parts.selected: notice(f"{about} {_cut(row['text'])}")}

    shown = [parts.found, parts.rows]
    for part in filters:  # not `change`, so that what a run sets is no choice; `input` of a Textbox misses an IME
        listen = part.submit if part is parts.contains else part.input
        listen(look_anew, [parts.batch, *filters], [parts.page, *shown], trigger_mode="always_last", **EVENT)
    parts.page.input(look, [parts.batch, parts.page, *filters], shown, trigger_mode="always_last", **EVENT)
    parts.rows.select(select, parts.batch, [parts.shown, parts.selected], **EVENT)
    for button, write, suffix in ((parts.csv, write_csv, ".csv"), (parts.xlsx, write_xlsx, ".xlsx")):
        written = button.click(_writer(words, parts, write, suffix), parts.batch, parts.save, **EVENT)
        written.success(None, js="() => setTimeout(() => document.querySelector('#batch-save').click(), 100)")


def _writer(words: Words, parts: Parts, write: Callable[..., None], suffix: str) -> Callable[..., Any]:
    """The event that writes the download; gr.Blocks deletes it after its time."""
    titles = {name: words(name) for name in ("number", "probability", *("label", "prediction", "confidence"))}
    titles |= {name: words(name) for name in ("version", "truncated", "problem")}

    def written(batch: Batch) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, words("file_name") + suffix)
            write(file, *results.export(batch.table, batch.frame, titles))
            return save_file_to_cache(file, parts.save.GRADIO_CACHE)

    async def download(batch: Batch) -> str:
        return await asyncio.to_thread(written, batch)

    return download


def _listed(words: Words, numbers: list[int]) -> str:
    few = ", ".join(map(str, numbers[:NUMBERS_SHOWN]))
    return words("more", numbers=few) if len(numbers) > NUMBERS_SHOWN else few


def _refusal(words: Words, refused: TableRefused) -> str:
    return notice(words(refused.reason, **refused.values), "alert")
