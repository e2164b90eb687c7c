"""The labelled sentences that the parity gate compares on."""

from dataclasses import dataclass
from pathlib import Path

from export.errors import DataError
from export.manifest import Label
from training.data import SAMPLE, read_reviews
from training.errors import DatasetError

MIN_ROWS = 1_000
SEED = 20261122


@dataclass(frozen=True)
class Reviews:
    """``labels`` are indexes into the labels of the model that is exported; ``found`` counts the rows of the file."""

    name: str
    texts: list[str]
    labels: list[int]
    found: int


def load_reviews(path: Path | None, labels: tuple[Label, ...], rows: int) -> Reviews:
    """A seeded sample of at most ``rows`` rows of the NSMC-format file at ``path``; the bundled reviews without one.

    The file's labels 0 and 1 mean negative and positive, found by name in ``labels``; a model that has no labels of
    these names is compared with its first two.

    Raises:
        DataError: the file cannot be read, or holds fewer rows than the gate needs.
    """
    path = path or SAMPLE
    try:
        table = read_reviews(path)
    except DatasetError as exc:
        raise DataError(str(exc)) from exc
    found = len(table)
    if found < MIN_ROWS:
        raise DataError(
            f"{path} holds {found:,} labelled reviews, the parity gate needs {MIN_ROWS:,}; name a larger file"
        )
    if found > rows:
        table = table.sample(rows, random_state=SEED)
    names = [label.name.lower() for label in labels]
    index = [names.index(name) if name in names else place for place, name in enumerate(("negative", "positive"))]
    return Reviews(path.name, table.document.tolist(), [index[label] for label in table.label], found)
