"""How one text is read for ui/single.py: asked, asked again while the gateway is busy, weighed by word, remembered.

A question is an asynchronous iterator of changes to components.  A visitor's newer question makes the older ones
stale: what they still say is dropped.
"""

import asyncio
import math
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from ui.errors import Busy, GatewayError
from ui.gateway import Answer, whole
from ui.occlusion import MAX_CHARACTERS, weigh
from ui.page import Page, explain, notice
from ui.table import write_csv
from ui.words import Words

TYPING_SECONDS = 0.25  # of rest before a text that is being typed is asked
STANDING_SECONDS = 1.5  # an answer that stands so long while nobody types belongs to the history
TRIES = 4
MAX_HISTORY = 200  # rows
HISTORY_COLUMNS = ("at", "text", "label", "confidence", "answered_by")  # keys of words

SUPPORTING, OPPOSING = (29, 78, 216), (180, 83, 9)  # blue and amber; white is readable on both
FULL_COLOR_POINTS = 40  # a weight of so many percentage points has the full colour, a lighter one is greyer
GREY = 90


Changes = dict[Any, Any]  # new values by component


@dataclass
class Visit:
    """One visitor, as long as the page is open: rows of the history, newest first, and when the latest question was
    asked, in milliseconds of the browser's clock: questions of a quick typist can arrive in another order.
    """

    asked_at: float = 0.0
    history: list[tuple[str, str, str, float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Parts:
    """The components that an answer changes; ``shown`` holds the answer on the screen for ui/feedback.py, or None."""

    status: gr.HTML
    label: gr.Label
    facts: gr.Markdown
    shown: gr.State
    weights: gr.HighlightedText
    weights_status: gr.HTML
    figures: gr.Dataframe
    history: gr.Dataframe
    download: gr.DownloadButton


@dataclass(frozen=True)
class Reader:
    """``words`` reads the table of ui/single.py."""

    page: Page
    words: Words
    parts: Parts

    async def read(self, text: str, visit: Visit, at: float) -> AsyncIterator[Changes]:
        yield self._unchanged
        async for changes in _newest(visit, at, self._read(whole(text), visit)):
            yield changes

    async def read_typed(self, text: str, visit: Visit, at: float, live: bool) -> AsyncIterator[Changes]:
        """The same once the visitor has stopped typing, where they want that; the history waits a little longer."""
        yield self._unchanged
        if live:
            async for changes in _newest(visit, at, self._read_typed(whole(text), visit)):
                yield changes

    @property
    def _unchanged(self) -> Changes:
        """Said first: Gradio empties the outputs of an iterator that ends without a word."""
        return {self.parts.status: gr.skip()}

    async def _read(self, text: str, visit: Visit) -> AsyncIterator[Changes]:
        async for step in self._ask(text):
            if isinstance(step, Answer):
                yield await self._show(text, step)
                yield self._remember(text, step, visit)
                yield await self._weigh(text, step)
            else:
                yield step

    async def _read_typed(self, text: str, visit: Visit) -> AsyncIterator[Changes]:
        await asyncio.sleep(TYPING_SECONDS)
        yield {}  # where it is stale already, it ends here
        if not text.strip():
            yield self._cleared(notice(self.words("empty")))
            return
        async for step in self._ask(text):
            if isinstance(step, Answer):
                yield await self._show(text, step)
                yield await self._weigh(text, step)
                await asyncio.sleep(STANDING_SECONDS)
                yield {}
                yield self._remember(text, step, visit)
            else:
                yield step

    async def _ask(self, text: str) -> AsyncIterator[Changes | Answer]:
        """The answer last, where there is one; before it, how long a busy gateway still has to be waited for."""
        for tries_left in reversed(range(TRIES)):
            try:
                yield await self.page.gateway.predict(text)
                return
            except Busy as busy:
                if not tries_left:
                    yield self._cleared(notice(explain(self.page.words, busy), "alert"))
                    return
                for seconds in range(math.ceil(busy.retry_after), 0, -1):
                    yield self._cleared(notice(self.words("waiting", seconds=seconds)))
                    await asyncio.sleep(1)
            except GatewayError as error:
                yield self._cleared(notice(explain(self.page.words, error), "alert"))
                return

    def _cleared(self, status: str) -> Changes:
        parts = self.parts
        return {
            parts.status: status,
            parts.label: gr.Label(value=None, visible=False),
            parts.facts: "",
            parts.shown: None,
            parts.weights: gr.HighlightedText(value=None, visible=False),
            parts.weights_status: "",
            parts.figures: gr.Dataframe(value=[]),
        }

    async def _show(self, text: str, answer: Answer) -> Changes:
        words, parts, (row,) = self.words, self.parts, answer.predictions
        names = await self._label_names()
        read = "truncated" if row.truncated else "read_all"
        facts = (
            words("version", version=answer.version),
            words(read, tokens=row.input_tokens),
            words("time", **answer.milliseconds),
        )
        return {
            parts.status: "",
            parts.label: gr.Label(
                value={names.get(name, name): share for name, share in row.probabilities.items()}, visible=True
            ),
            parts.facts: "\n".join(f"- {fact}" for fact in facts),
            parts.shown: {
                "text": text,
                "version": answer.version,
                "prediction": row.prediction,
                "label": row.label,
                "confidence": row.confidence,
            },
            parts.weights: gr.HighlightedText(value=[(text, None)], visible=True),
            parts.weights_status: "",
            parts.figures: gr.Dataframe(value=[]),
        }

    async def _label_names(self) -> dict[str, str]:
        """What the page calls the labels: in Korean as the model says, in English by their own names."""
        if self.words.language != "ko":
            return {}
        try:
            return {label["name"]: label["korean"] for label in (await self.page.gateway.model())["labels"]}
        except GatewayError:  # the answer is there: better shown under the label's own name than not at all
            return {}

    async def _weigh(self, text: str, answer: Answer) -> Changes:
        words, parts, (row,) = self.words, self.parts, answer.predictions
        if len(text) > MAX_CHARACTERS:
            sentence = words("too_long_to_weigh", limit=MAX_CHARACTERS, characters=len(text))
            return {parts.weights_status: notice(sentence)}
        try:
            weighted = await weigh(self.page.gateway, text, row.prediction)
        except GatewayError as error:
            return {parts.weights_status: notice(words("not_weighed", reason=explain(self.page.words, error)))}
        figures = [[piece.strip(), round(100 * weight, 1)] for piece, weight in weighted if weight is not None]
        if not figures:
            return {parts.weights_status: notice(words("one_word"))}
        return {
            parts.weights: [(piece, points(weight)) for piece, weight in weighted],
            parts.weights_status: notice(words("weights_about")),
            parts.figures: gr.Dataframe(value=sorted(figures, key=lambda figure: -abs(figure[1]))),
        }

    def _remember(self, text: str, answer: Answer, visit: Visit) -> Changes:
        (row,) = answer.predictions
        label = row.label if self.words.language == "ko" else row.prediction
        at = datetime.now().strftime("%H:%M:%S")
        if visit.history and visit.history[0][1] == text:  # a click may overtake the news that the text has changed
            del visit.history[0]
        visit.history.insert(0, (at, text, label, round(100 * row.confidence, 1), answer.version))
        del visit.history[MAX_HISTORY:]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "nunchi-history.csv"
            write_csv(file, [self.words(key) for key in HISTORY_COLUMNS], visit.history)
            # Gradio deletes what lies in its cache, by the clock of ui/app.py.
            cached = save_file_to_cache(file, cache_dir=self.parts.download.GRADIO_CACHE)
        return {
            self.parts.history: gr.Dataframe(value=[list(row) for row in visit.history]),
            self.parts.download: gr.DownloadButton(value=cached, interactive=True),
        }


def weight_colors() -> dict[str, str]:
    """A colour for every weight that `points` writes."""
    colors = {}
    for sign, full in (("+", SUPPORTING), ("-", OPPOSING)):
        for size in range(1, 101):
            strength = min(1.0, size / FULL_COLOR_POINTS)
            mixed = (round(GREY + (channel - GREY) * strength) for channel in full)
            colors[f"{sign}{size}"] = "#" + "".join(f"{channel:02x}" for channel in mixed)
    return colors


def points(weight: float | None) -> str | None:
    """A weight in whole percentage points with its sign, as `weight_colors` knows it; None where it is nothing."""
    return f"{round(100 * weight):+d}" if weight and round(100 * weight) else None


async def _newest(visit: Visit, at: float, changes: AsyncIterator[Changes]) -> AsyncIterator[Changes]:
    """The changes as long as the visitor asks nothing newer, each with those before it: of changes that come in quick
    succession, Gradio's browser side takes only the last.

    A change is a component, never `gr.update()`: out of such a dictionary Gradio takes the value when it sends it, so
    that the second time it would be said without.
    """
    visit.asked_at = max(visit.asked_at, at)
    said: Changes = {}
    async with aclosing(changes):
        async for change in changes:
            if visit.asked_at > at:
                return
            if change:
                said |= change
                yield dict(said)
