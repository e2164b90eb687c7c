"""The labelled sentences that the parity gate compares on."""

from dataclasses import dataclass
from pathlib import Path

from export.errors import DataError
from export.manifest import Label
from training.config import KOREAN, POLARITY, STARS
from training.data import SAMPLE, read_reviews
from training.errors import DatasetError

MIN_ROWS = 1_000
DEFAULT_ROWS = 5_000
SEED = 20261122


@dataclass(frozen=True)
class Reviews:
    """``labels`` are indexes into the labels of the model that is exported; ``found`` counts the rows of the file."""

    name: str
    texts: list[str]
    labels: list[int]
    found: int


def load_reviews(path: Path | None, labels: tuple[Label, ...], rows: int) -> Reviews:
    """A seeded sample of at most ``rows`` labelled rows of the file at ``path``; of the bundled reviews without one.

    Labels of the file are matched to those of the model by name: 0 and 1 mean negative and positive, whatever else the
    model knows, and 0, 1 and 2 negative, neutral and positive. A model with other names is compared by index.

    Raises:
        DataError: the file cannot be read, or holds fewer rows than the gate needs.
    """
    path = path or SAMPLE
    known = {korean: name for name, korean in KOREAN.items()}
    names = [known.get(label.korean, label.name.lower()) for label in labels]
    usual = next((each for each in (POLARITY, STARS) if set(each) == set(names)), names)
    try:
        table = read_reviews(path, labels=usual)
    except DatasetError as exc:
        raise DataError(str(exc)) from exc
    found = len(table)
    if found < MIN_ROWS:
        raise DataError(
            f"{path} holds {found:,} labelled reviews, the parity gate needs {MIN_ROWS:,}; name a larger file"
        )
    if usual == STARS and table.label.max() < len(POLARITY):
        usual = POLARITY
    if found > rows:
        table = table.sample(rows, random_state=SEED)
    index = [names.index(name) for name in usual]
    return Reviews(path.name, table.document.tolist(), [index[label] for label in table.label], found)
