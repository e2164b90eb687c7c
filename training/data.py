"""``python -m training.data [--config FILE] [--dataset.key value …]``: reviews, checked and cut into parts.

The command prints what a run would learn from: the parts, and what was found in the files. With ``feedback`` as its
first word it makes such a file of what people said in the page (training/feedback.py).

Kinds of dataset:

* ``nsmc``: a folder with ``ratings_train.txt`` and ``ratings_test.txt`` (``id``, ``document``, ``label``; tab-separated
  without quotes); without one the official files (github.com/e9t/nsmc, CC0) are downloaded. Three labels also need
  ``reviews_rest.tsv.gz`` (``document``, ``rating`` 1-10, …).
* ``collected``: a folder of Parquet files at any depth (``site=…/day=…/*.parquet``) with ``document`` and ``rating``
  1-10 or ``label``; further columns are left alone. What stands in ``earlier`` data already is left out.
* ``files``: TSV, CSV or Parquet of the user's own. ``sample``: the bundled hand-written reviews.

The protocol: dev is cut from train, no text stands on both sides of a cut, and test is left to registration. Every cut
goes by a hash of the text without white space, so it depends on neither the order of the rows nor a seed. Of collected
reviews it goes by their words alone (training.cleaning.words): people post a text again with another "!!", and edit it.

What may well be true of real reviews is kept and counted in the report: a text that stands there twice ("최고" is
written by many), or with two labels.
"""

import argparse
import hashlib
import os
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from training.cleaning import words
from training.config import POLARITY, STARS, DatasetConfig, add_config_arguments, parse_config
from training.errors import DatasetError, TrainingError
from training.feedback import main as make_feedback
from training.reviews import DataReport, Finding, Source, check_reviews, places, read_reviews
from training.settings import read_settings

__all__ = ["REST", "SAMPLE", "STAR_LABELS", "TEST", "TRAIN", "Dataset", "cut_dev", "open_dataset", "read_reviews"]

NSMC_URL = "https://raw.githubusercontent.com/e9t/nsmc/master/"
TRAIN, TEST, REST = "ratings_train.txt", "ratings_test.txt", "reviews_rest.tsv.gz"
SAMPLE = Path(__file__).parent / "sample_reviews.tsv"
STAR_LABELS = STARS  # 1-4, 5-8 and 9-10 stars, as NSMC cuts them

MAX_SHARED = 0.5
"""Of test's texts may stand in train as well; in NSMC 3.6 % do, short ones that many people write."""

STAR_TEST_SHARE = 0.05
"""Of NSMC's reviews with stars; fixed, since pretraining leaves these texts out whatever a later run asks for."""


@dataclass(frozen=True)
class Part:
    """Checked rows: ``document``, ``label``, and ``order``, the hash UINT64 of the text by which cuts are made."""

    rows: pd.DataFrame
    report: DataReport


@dataclass(frozen=True, eq=False)
class Dataset:
    """Reviews with ``label`` an index into ``labels``, read and checked when it was opened.

    ``fingerprint`` names its rows: sha256 over labels, train and test, 12 digits. Files that hold the same rows have
    the same one; what is cut from train afterwards (dev_share, dataset_sampling_rate) is in the config, not in it.
    """

    name: str
    labels: tuple[str, ...]
    fingerprint: str
    report: DataReport
    config: DatasetConfig
    _train: pd.DataFrame = field(repr=False)
    _test: pd.DataFrame = field(repr=False)

    def train(self) -> pd.DataFrame:
        return _public(self._train)

    def test(self) -> pd.DataFrame:
        return _public(self._test)

    def learning_parts(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(train, dev): dev is cut first, then ``dataset_sampling_rate`` of each label's texts is taken from the rest.

        Raises:
            DatasetError: a label has no review left on one side.
        """
        train, dev = _cut(self._train, self.config.dev_share)
        if self.config.dataset_sampling_rate < 1:
            train = train[_lowest(train, self.config.dataset_sampling_rate)]
        self._refuse_missing_labels("train", train, "dataset_sampling_rate")
        self._refuse_missing_labels("dev", dev, "dev_share")
        return _public(train), _public(dev)

    def star_reviews(self) -> pd.DataFrame:
        """All reviews that may be pretrained on, with ``label`` an index into STAR_LABELS.

        Train and, where there is one, the rest, without any text of test or dev, of two labels or of three.

        Raises:
            DatasetError: the dataset is not NSMC's, so nothing says which texts must stay out.
        """
        if self.config.kind != "nsmc":
            raise DatasetError(f"{self.name} is of kind {self.config.kind}; pretraining reads kind nsmc")
        folder = self.config.folder
        polarity = train, test = _nsmc_polarity(self.config)
        _, dev = _cut(train.rows, self.config.dev_share)
        if (folder / REST).is_file():
            reviews, _ = _cut(_nsmc_stars(self.config, *polarity)[0].rows, self.config.dev_share)
        else:
            reviews = _as_stars(train.rows)
        return _public(reviews[~reviews.order.isin({*dev.order, *test.rows.order})])

    def _refuse_missing_labels(self, part: str, rows: pd.DataFrame, remedy: str) -> None:
        counts = rows.label.value_counts()
        missing = [label for index, label in enumerate(self.labels) if index not in counts]
        if missing:
            raise DatasetError(
                f"{part} of {self.name} ({len(rows):,} reviews) holds none that is {' or '.join(missing)}; "
                f"raise dataset.{remedy} ({getattr(self.config, remedy)}) or add reviews"
            )


def open_dataset(config: DatasetConfig, *, cache: Path) -> Dataset:
    """Read and check everything that ``config`` names; official NSMC is downloaded into ``cache`` unless it is there.

    Test is read here as well, so that a fault in it shows before a search and not after.

    Raises:
        DatasetError: a file is missing, damaged, not in its format, or cannot be downloaded.
    """
    name = config.name or _default_name(config)
    if config.kind == "nsmc":
        config = config.model_copy(update={"folder": config.folder or _download_nsmc(cache)})
        train, test = _nsmc_polarity(config)
        if config.labels == STARS:
            train, test = _nsmc_stars(config, train, test)
    else:
        train, test = _OPENERS[config.kind](config)
    report = train.report + test.report + _shared(train, test)
    report.write_log()
    _refuse_empty(name, config, train.rows, test.rows)
    return Dataset(
        name=name,
        labels=tuple(config.labels),
        fingerprint=fingerprint(config.labels, train.rows, test.rows),
        report=report,
        config=config,
        _train=train.rows,
        _test=test.rows,
    )


def fingerprint(labels: list[str], *parts: pd.DataFrame) -> str:
    """12 hex digits of sha256 over the labels' names and every row (document, label) in its order."""
    digest = hashlib.sha256("\0".join(labels).encode())
    for rows in parts:
        # No text holds a NUL byte, so none of these can be cut in another way.
        digest.update(b"\0\0" + "\0".join(rows.document.to_numpy(object)).encode("utf-8", "surrogatepass"))
        digest.update(rows.label.to_numpy("<i8").tobytes())
    return digest.hexdigest()[:12]


def cut_dev(train: pd.DataFrame, share: float = 0.05) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cut train into (train, dev): stratified by label, and no text on both sides.

    Texts are ordered by a hash of themselves without white space, so the cut depends on neither row order nor a seed.

    Raises:
        DatasetError: ``share`` is not between 0 and 0.5.
    """
    if not 0 < share < 0.5:
        raise DatasetError(f"the dev share is {share}; it must lie between 0 and 0.5")
    rest, dev = _cut(_in_order(train), share)
    return _public(rest), _public(dev)


def _cut(rows: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    chosen = _lowest(rows, share)
    return rows[~chosen], rows[chosen]


def _lowest(rows: pd.DataFrame, share: float) -> pd.Series:
    """Which rows hold the ``share`` of each label's texts that stand first by their hash: BOOL [rows]."""
    texts = rows.drop_duplicates("order").sort_values("order")
    first = [group.order.head(round(len(group) * share)) for _, group in texts.groupby("label")]
    return rows.order.isin(pd.concat(first))


def _cut_test(part: Part, share: float) -> tuple[Part, Part]:
    """(train, test): every text whose hash lies in the lowest ``share`` of all hashes is test.

    Unlike dev's, this cut is fixed for each text: as a collection grows none moves from train to test, where a Champion
    that learnt from it would look better than it is. Each label gets its share to within chance.
    """
    in_test = part.rows.order < np.uint64(share * 2**64)
    return Part(part.rows[~in_test], part.report), Part(part.rows[in_test], DataReport({}))


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _in_order(rows: pd.DataFrame, plain: Callable[[str], str] = _without_spaces) -> pd.DataFrame:
    """With ``order``: evenly spread, the same on every machine; texts that are ``plain`` the same share one."""
    texts = (plain(text).encode("utf-8", "surrogatepass") for text in rows.document.to_numpy(object))
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return rows.assign(order=np.frombuffer(digests, ">u8").astype(np.uint64))


def _public(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[["document", "label"]].reset_index(drop=True)


def _read(path: Path, source: Source) -> Part:
    rows, report = check_reviews(path, source)
    rows = _in_order(rows)
    return Part(rows, report + _repeats(path.name, rows))


def _repeats(source: str, rows: pd.DataFrame) -> DataReport:
    """What stands more than once, white space aside."""
    twice = rows.index[rows.duplicated(["order", "label"])]
    by_text = rows.groupby("order", sort=False).label
    both = rows.index[by_text.transform("min") != by_text.transform("max")]
    return _report(source, "the same text and label stood before", twice) + _report(
        source, "the same text has another label too", both
    )


def _report(source: str, reason: str, found: pd.Index, *, dropped: bool = False) -> DataReport:
    finding = Finding(source, reason, len(found), dropped, places(found))
    return DataReport({}, (finding,) if finding.rows else ())


def _nsmc_polarity(config: DatasetConfig) -> tuple[Part, Part]:
    """The official split: a text may stand on both sides of it, as it does in the original."""
    missing = [file for file in (TRAIN, TEST) if not (config.folder / file).is_file()]
    if missing:
        raise DatasetError(f"{config.folder} holds no {' and no '.join(missing)}; name a folder with NSMC's two files")
    source = Source(POLARITY, max_megabytes=config.max_megabytes)
    return _read(config.folder / TRAIN, source), _read(config.folder / TEST, source)


def _nsmc_stars(config: DatasetConfig, train: Part, test: Part) -> tuple[Part, Part]:
    """Three labels: train and the rest together, without the texts of the official test, then cut anew."""
    if not (config.folder / REST).is_file():
        raise DatasetError(
            f"{config.folder} holds no {REST}, and neutral reviews stand there only; take labels {POLARITY}, or a "
            f"folder that has it (document, rating 1-10)"
        )
    rest = _read(config.folder / REST, Source(STARS, star_column="rating", max_megabytes=config.max_megabytes))
    named = {TRAIN: _as_stars(train.rows), REST: rest.rows}
    rows = pd.concat(named)
    held = rows.order.isin(test.rows.order)
    report = train.report + rest.report + _report(REST, "a text of the official test", rows.index[held], dropped=True)
    return _cut_test(Part(rows[~held], report), STAR_TEST_SHARE)


def _as_stars(rows: pd.DataFrame) -> pd.DataFrame:
    """NSMC's negative (1-4 stars) and positive (9-10) are the first and the last of three."""
    return rows.assign(label=rows.label * 2)


def _collected(config: DatasetConfig) -> tuple[Part, Part]:
    folder, source = config.folder, Source(config.labels, star_column="rating", max_megabytes=config.max_megabytes)
    files = sorted(
        file for file in folder.rglob("*.parquet")
        if not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)  # being written
    )  # fmt: skip
    if not files:
        raise DatasetError(f"{folder} holds no .parquet file; collect reviews first, or name their folder")
    _refuse_size(config, "holds", sum(file.stat().st_size for file in files))
    named, reports, size = {}, {}, 0
    for file in files:
        name = str(file.relative_to(folder))
        try:
            named[name], reports[name] = check_reviews(file, source)
        except DatasetError as exc:
            raise DatasetError(f"{folder}, {name}: {exc}") from exc
        size += named[name].document.array.nbytes
        _refuse_size(config, "unpacks to more than", size)
    rows = _in_order(pd.concat(named), words)
    report = _together(folder.name, reports) + _repeats(folder.name, rows)
    for earlier in config.earlier:
        stood = rows.order.isin(_earlier_order(earlier, config))
        report += _report(folder.name, f"its words stand in {earlier.name} already", rows.index[stood], dropped=True)
        rows = rows[~stood]
    return _cut_test(Part(rows, report), config.test_share)


def _earlier_order(earlier: Path, config: DatasetConfig) -> pd.Series:
    """UINT64 [rows]: the hashes of the words of a file of reviews, or of NSMC's folder."""
    stars = Source(STARS, star_column="rating", encoding=config.encoding, max_megabytes=config.max_megabytes)
    if earlier.is_dir():
        rows = pd.concat(part.rows for part in _nsmc_polarity(config.model_copy(update={"folder": earlier})))
    else:
        rows, _ = check_reviews(earlier, stars)
    return _in_order(rows, words).order


def _refuse_size(config: DatasetConfig, verb: str, size: int) -> None:
    if size > config.max_megabytes << 20:
        raise DatasetError(
            f"{config.folder} {verb} {size / 2**20:,.0f} MB, and {config.max_megabytes:,} (dataset.max_megabytes) may "
            f"be read; raise the limit or name the folder of one site"
        )


def _together(source: str, reports: dict[str, DataReport]) -> DataReport:
    """The reports of many files as one of ``source``, whose places are file and line."""
    lines: dict[str, list[tuple[str, str]]] = {}
    rows: Counter[str] = Counter()
    for name, report in reports.items():
        for finding in report.findings:
            rows[finding.reason] += finding.rows
            lines.setdefault(finding.reason, []).extend((name, line) for line in finding.first)
    findings = tuple(Finding(source, why, count, True, places(lines[why])) for why, count in rows.items())
    return DataReport({source: sum(sum(report.read.values()) for report in reports.values())}, findings)


def _sample(config: DatasetConfig) -> tuple[Part, Part]:
    return _cut_test(_read(SAMPLE, Source(POLARITY)), config.test_share)


def _files(config: DatasetConfig) -> tuple[Part, Part]:
    source = Source(
        config.labels, config.text_column, config.label_column,
        encoding=config.encoding, max_megabytes=config.max_megabytes,
    )  # fmt: skip
    train = _read(config.train, source)
    return (train, _read(config.test, source)) if config.test else _cut_test(train, config.test_share)


_OPENERS = {"collected": _collected, "sample": _sample, "files": _files}


def _default_name(config: DatasetConfig) -> str:
    if config.kind == "sample":
        return "sample"
    if config.kind == "files":
        return config.train.name.split(".")[0]
    return config.folder.resolve().name if config.folder else "NSMC"


def _shared(train: Part, test: Part) -> DataReport:
    """The texts of test that stand in train too: the user's own split, reported and left as it is.

    Raises:
        DatasetError: most of test does, so that no figure on it would mean anything.
    """
    shared = test.rows.index[test.rows.order.isin(train.rows.order)]
    if len(shared) > MAX_SHARED * len(test.rows):
        raise DatasetError(
            f"{len(shared):,} of {len(test.rows):,} texts of test stand in train too, and {MAX_SHARED:.0%} may; "
            "name another test file, or leave it out to have test cut from train"
        )
    return _report(next(iter(test.report.read), "test"), "a text of test that train has too", shared)


def _refuse_empty(name: str, config: DatasetConfig, train: pd.DataFrame, test: pd.DataFrame) -> None:
    for part, rows in (("train", train), ("test", test)):
        if rows.empty:
            raise DatasetError(f"{part} of {name} holds no review with a label of {', '.join(config.labels)}; add some")


def _download_nsmc(cache: Path) -> Path:
    folder = cache / "nsmc"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TRAIN, TEST):
        if not (folder / name).is_file():
            _download(NSMC_URL + name, folder / name)
    return folder


def _download(url: str, target: Path) -> None:
    """Whole or not at all; several workers of one trial may do it at the same time."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
            expected = answer.headers["Content-Length"]
        if expected is not None and part.stat().st_size != int(expected):
            raise OSError(f"{part.stat().st_size:,} of {int(expected):,} bytes came")
    except (urllib.error.URLError, OSError) as exc:
        part.unlink(missing_ok=True)
        raise DatasetError(
            f"NSMC's {target.name} could not be downloaded ({exc}); fetch it by hand and name its folder with "
            f"--dataset.folder (training.pretrain: --data)"
        ) from exc
    os.replace(part, target)


def summary(dataset: Dataset) -> str:
    """The parts and the report of a dataset as tables for a terminal."""
    train, dev = dataset.learning_parts()
    lines = [
        f"{dataset.name}, fingerprint {dataset.fingerprint}",
        "",
        f"{'part':8} {'reviews':>9}" + "".join(f" {label:>12}" for label in dataset.labels),
    ]
    for part, rows in (("train", train), ("dev", dev), ("test", dataset.test())):
        counts = np.bincount(rows.label, minlength=len(dataset.labels))
        lines.append(f"{part:8} {len(rows):9,}" + "".join(f" {count:12,}" for count in counts))
    return "\n".join([*lines, "", dataset.report.table()])


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["feedback"]:
        return make_feedback(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m training.data",
        description="Check and count the reviews of a run; `feedback` as the first word makes a dataset of opinions.",
    )
    add_config_arguments(parser)
    try:
        _, config = parse_config(parser, argv)
        began = time.perf_counter()
        dataset = open_dataset(config.dataset, cache=read_settings().var / "data")
        print(summary(dataset))
    except TrainingError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    print(f"\nread in {time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
