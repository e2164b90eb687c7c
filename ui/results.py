"""What a batch came to, row by row: as a data frame to filter, sort and draw, and as rows to download.

The frame has a line for each row of the table, in its order: `number`, `text`, `label` (shown; "" without an answer),
`prediction`, `confidence` (0 to 1), `version`, `truncated`, `problem` (why there is no answer; else ""), `day`
(midnight, or NaT), and `p_<label>` for every label's probability.
"""

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from ui.errors import GatewayError
from ui.gateway import Prediction
from ui.run import Run
from ui.table import DATE, Table

PROBABILITY = "p_"
SORTS: dict[str, tuple[list[str], list[bool]]] = {  # columns, ascending
    "row": (["number"], [True]),
    "sure": (["confidence", "number"], [False, True]),
    "unsure": (["confidence", "number"], [True, True]),
    "newest": (["day", "number"], [False, True]),
}


def collect(
    table: Table,
    text_column: str,
    date_column: str | None,
    numbers: Sequence[int],
    run: Run,
    *,
    shown: Callable[[Prediction], str],
    reason: Callable[[str | GatewayError], str],
) -> pd.DataFrame:
    """``numbers``: the row of each text of the run; ``reason`` puts why a row has no answer into words."""
    texts = table.column(text_column)
    places = {number: place for place, number in enumerate(numbers)}
    lines = []
    for number in sorted({*texts, *table.broken}):
        line = {"number": number, "text": texts.get(number, ""), "problem": ""}
        place = places.get(number)
        if place in run.answers:
            lines.append(line | _answered(*run.answers[place], shown))
        elif place is None:
            lines.append(line | {"problem": reason(table.broken.get(number, "empty_cell"))})
        else:
            lines.append(line | {"problem": reason(run.refused.get(place, "not_asked"))})
    frame = pd.DataFrame(lines).reindex(columns=_columns(lines))
    for column in ("label", "prediction", "version"):
        frame[column] = frame[column].astype(object).where(frame[column].notna(), "")
    frame["day"] = _days(table.column(date_column), frame["number"]) if date_column else pd.NaT
    return frame


def _answered(prediction: Prediction, version: str, shown: Callable[[Prediction], str]) -> dict[str, object]:
    return {
        "label": shown(prediction),
        "prediction": prediction.prediction,
        "confidence": prediction.confidence,
        "version": version,
        "truncated": prediction.truncated,
        **{f"{PROBABILITY}{label}": probability for label, probability in prediction.probabilities.items()},
    }


def _columns(lines: list[dict[str, object]]) -> list[str]:
    """Those every frame has, then a probability for every label that occurs."""
    always = ("number", "text", "label", "prediction", "confidence", "version", "truncated", "problem")
    labels = dict.fromkeys(name for line in lines for name in line if name.startswith(PROBABILITY))
    return [*always, *labels]


def _days(cells: dict[int, str], numbers: pd.Series) -> pd.Series:
    parts = numbers.map(cells).fillna("").astype("str").str.extract(DATE).astype(float)
    parts.columns = ["year", "month", "day"]
    return pd.to_datetime(parts, errors="coerce")


def choose(frame: pd.DataFrame, labels: list[str], contains: str, most_confidence: float, sort: str) -> pd.DataFrame:
    """The lines with one of these labels ("" stands for none), this in their text (upper and lower case alike), and at
    most this confidence, in the order of SORTS.
    """
    chosen = frame[frame["label"].isin(labels)]
    if contains:
        chosen = chosen[chosen["text"].str.contains(contains, case=False, regex=False)]
    if most_confidence < 1:
        chosen = chosen[~(chosen["confidence"] > most_confidence)]
    columns, ascending = SORTS[sort]
    return chosen.sort_values(columns, ascending=ascending, na_position="last", kind="stable")


def export(table: Table, frame: pd.DataFrame, titles: dict[str, str]) -> tuple[list[str], Iterator[list[object]]]:
    """Columns and rows of the download: what came in, then what came out. ``titles`` of the columns that are added."""
    probabilities = [column for column in frame if column.startswith(PROBABILITY)]
    added = ["label", "prediction", "confidence", *probabilities, "version", "truncated", "problem"]
    shown = [titles.get(column, f"{titles['probability']} {column.removeprefix(PROBABILITY)}") for column in added]
    width = table.width

    def rows() -> Iterator[list[object]]:
        for number, *values in frame[["number", *added]].itertuples(index=False, name=None):
            cells = table.rows.get(number, [])
            yield [
                number,
                *cells,
                *[""] * (width - len(cells)),
                *(None if pd.isna(value) else value for value in values),
            ]

    return [titles["number"], *table.columns, *shown], rows()
