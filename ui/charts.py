"""The charts of a batch: how the labels are shared out, how sure the model is, and how both go over time.

Each function returns the few rows that a gr.BarPlot draws, from a frame of ui/results.py.
"""

import pandas as pd

BINS = 10  # of confidence, from 0 to 100 %
MOST_PERIODS = 60  # bars over time; more, and they are gathered by week or by month
COLORS = {"negative": "#c2410c", "neutral": "#6b7280", "positive": "#1d4ed8"}


def shares(frame: pd.DataFrame) -> pd.DataFrame:
    """`label`, `rows`, and `share` in percent; rows without an answer are left out."""
    counts = _answered(frame).groupby("label").size().rename("rows").reset_index()
    return counts.assign(share=(100 * counts["rows"] / counts["rows"].sum()).round(1))


def confidences(frame: pd.DataFrame) -> pd.DataFrame:
    """`confidence` as "90-100", `label`, `rows`."""
    answered = _answered(frame)
    step = 100 // BINS
    lower = (answered["confidence"] * BINS).astype(int).clip(upper=BINS - 1) * step
    bins = lower.map(lambda percent: f"{percent}-{percent + step}")
    return answered.groupby([bins, "label"]).size().rename("rows").reset_index()


def over_time(frame: pd.DataFrame) -> pd.DataFrame:
    """`day` (ISO 8601, the first of its period), `label`, `rows`, periods without any included; empty without dates."""
    dated = _answered(frame).dropna(subset="day")
    if dated.empty:
        return pd.DataFrame({"day": [], "label": [], "rows": []})
    days = (dated["day"].max() - dated["day"].min()).days + 1
    period = "D" if days <= MOST_PERIODS else "W" if days <= 7 * MOST_PERIODS else "M"
    periods = dated["day"].dt.to_period(period)
    counts = dated.groupby([periods, "label"]).size().unstack(fill_value=0)
    counts = counts.reindex(pd.period_range(periods.min(), periods.max(), freq=period, name="day"), fill_value=0)
    counts.index = counts.index.start_time.strftime("%Y-%m-%d")
    return counts.stack().rename("rows").reset_index()


def colors(frame: pd.DataFrame) -> dict[str, str]:
    """A colour by shown label, for the labels that have one of their own."""
    names = frame[["label", "prediction"]].drop_duplicates()
    return {label: COLORS[name] for label, name in names.itertuples(index=False, name=None) if name in COLORS}


def _answered(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["label"] != ""]
