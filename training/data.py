"""Reviews and their labels: read, download, cut into parts.

The official NSMC files (github.com/e9t/nsmc, CC0) are the default; any folder with ``ratings_train.txt`` and
``ratings_test.txt`` in their format (``id``, ``document``, ``label``; tab-separated, no quoting) works the same way.
A folder may also hold ``reviews_rest.tsv.gz`` (``document``, ``rating`` 1-10, …): more reviews, for pretraining.

The protocol: the dev part is cut from train, no text stands on both sides, and test is read once, by
``training.finetune`` after the checkpoint is chosen.
"""

import csv
import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from training.errors import DatasetError

NSMC_URL = "https://raw.githubusercontent.com/e9t/nsmc/master/"
TRAIN, TEST, REST = "ratings_train.txt", "ratings_test.txt", "reviews_rest.tsv.gz"
SAMPLE = Path(__file__).parent / "sample_reviews.tsv"
STAR_LABELS = ["negative", "neutral", "positive"]  # 1-4, 5-8 and 9-10 stars, as NSMC cuts them


@dataclass(frozen=True)
class Dataset:
    """A folder of reviews. ``fingerprint`` names its exact rows: sha256 over the files, first 12 digits."""

    name: str
    folder: Path
    fingerprint: str

    def train(self) -> pd.DataFrame:
        return read_reviews(self.folder / TRAIN)

    def test(self) -> pd.DataFrame:
        return read_reviews(self.folder / TEST)

    def star_reviews(self) -> pd.DataFrame:
        """All reviews that may be pretrained on, with ``label`` an index into STAR_LABELS.

        Train without its dev part (its two labels become the first and the last of the three), and the rest without any
        text that also stands in dev or test; the labels of those two are not looked at.
        """
        train, dev = cut_dev(self.train())
        reviews = [pd.DataFrame({"document": train.document, "label": train.label * 2})]
        if (self.folder / REST).is_file():
            rest = _read_tsv(self.folder / REST, ["document", "rating"])
            rest = rest[~rest.document.isin({*dev.document, *self.test().document}) & (rest.document.str.strip() != "")]
            stars = pd.to_numeric(rest.rating)
            labels = (stars > 4).astype(int) + (stars > 8).astype(int)
            reviews.append(pd.DataFrame({"document": rest.document, "label": labels}))
        return pd.concat(reviews, ignore_index=True)


def open_dataset(folder: Path | None, *, name: str | None = None, cache: Path) -> Dataset:
    """The dataset in ``folder``; without one, official NSMC, downloaded into ``cache`` unless it is there.

    Raises:
        DatasetError: a file is missing, or cannot be downloaded.
    """
    if folder is None:
        folder, name = _download_nsmc(cache), name or "NSMC"
    missing = [file for file in (TRAIN, TEST) if not (folder / file).is_file()]
    if missing:
        raise DatasetError(f"{folder} holds no {' and no '.join(missing)}; name a folder with NSMC's two files")
    digest = hashlib.sha256()
    for file in (TRAIN, TEST, REST):
        if (folder / file).is_file():
            digest.update((folder / file).read_bytes())
    return Dataset(name or folder.resolve().name, folder, digest.hexdigest()[:12])


def read_reviews(path: Path) -> pd.DataFrame:
    """Rows of one file in NSMC's format with ``document`` (str) and ``label`` (0 or 1); rows without text are dropped.

    Raises:
        DatasetError: the file is missing, lacks a column, or holds a label that is not 0 or 1.
    """
    rows = _read_tsv(path, ["document", "label"])
    wrong = ~rows.label.isin(["0", "1"])
    if wrong.any():
        line = int(wrong.idxmax()) + 2
        raise DatasetError(f"{path.name} line {line}: label is {rows.label[wrong.idxmax()]!r}; it must be 0 or 1")
    rows = rows.assign(label=rows.label.astype(int))
    return rows[rows.document.str.strip() != ""].reset_index(drop=True)


def cut_dev(train: pd.DataFrame, share: float = 0.05) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cut train into (train, dev): stratified by label, and no text on both sides.

    Texts are ordered by a hash of themselves without white space, so the cut depends on neither row order nor a seed.

    Raises:
        DatasetError: ``share`` is not between 0 and 0.5.
    """
    if not 0 < share < 0.5:
        raise DatasetError(f"the dev share is {share}; it must lie between 0 and 0.5")
    key = train.document.str.replace(r"\s+", "", regex=True)
    texts = pd.DataFrame({"key": key, "label": train.label}).drop_duplicates("key")
    order = texts.key.map(lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest())
    texts = texts.assign(order=order).sort_values("order")
    dev_keys: set[str] = set()
    for _, group in texts.groupby("label"):
        dev_keys.update(group.key.head(round(len(group) * share)))
    in_dev = key.isin(dev_keys)
    return train[~in_dev].reset_index(drop=True), train[in_dev].reset_index(drop=True)


def _read_tsv(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        rows = pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError as exc:
        raise DatasetError(f"{path} does not exist") from exc
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as exc:
        raise DatasetError(f"{path.name} is no tab-separated UTF-8 file with a header line: {exc}") from exc
    missing = [column for column in columns if column not in rows.columns]
    if missing:
        raise DatasetError(f"{path.name} has no column {', '.join(missing)}; it has {', '.join(rows.columns)}")
    return rows[columns]


def _download_nsmc(cache: Path) -> Path:
    folder = cache / "nsmc"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TRAIN, TEST):
        if (folder / name).is_file():
            continue
        part = folder / f"{name}.part"
        try:
            with urllib.request.urlopen(NSMC_URL + name, timeout=60) as answer, part.open("wb") as file:
                while block := answer.read(1 << 20):
                    file.write(block)
        except (urllib.error.URLError, OSError) as exc:
            raise DatasetError(
                f"NSMC's {name} could not be downloaded ({exc}); fetch it by hand and name its folder with --data"
            ) from exc
        os.replace(part, folder / name)
    return folder
