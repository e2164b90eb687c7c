"""Text and labels in, registered models out: the training toolkit of Nunchi.

    from training import SentimentTrainer, SentimentPredictor

Both names are looked up when they are first used, so that ``import training`` alone costs nothing.
"""

import importlib

_HOMES = {"SentimentTrainer": "training.trainer", "SentimentPredictor": "training.predict"}

__all__ = ["SentimentPredictor", "SentimentTrainer"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
