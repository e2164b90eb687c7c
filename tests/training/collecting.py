"""What the tests of training/collection share: the command as a user runs it, and what it left on disk."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, "-m", "training.collection"]


@dataclass(frozen=True)
class Run:
    code: int
    said: dict
    """The last line of stdout; empty where there is none."""
    stderr: str


def start_crawl(yaml: Path, output: Path, *more: str) -> subprocess.Popen:
    command = [*COMMAND, "crawl", "--site", str(yaml), "--output", str(output), *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def crawl(yaml: Path, output: Path, *more: str) -> Run:
    with start_crawl(yaml, output, *more) as process:
        out, errors = process.communicate(timeout=500)
    return Run(process.returncode, json.loads(out.splitlines()[-1]) if out.strip() else {}, errors)


def collected(output: Path) -> list[dict]:
    """Every row of every Parquet file that a reader finds, with the ``day`` of its folder."""
    return [
        {**row, "day": file.parent.name.removeprefix("day=")}
        for file in sorted(output.glob("site=*/day=*/*.parquet"))
        for row in pq.ParquetFile(file).read().to_pylist()
    ]


def ids(output: Path) -> list[str]:
    return sorted(row["review_id"] for row in collected(output))


def readable_folder(output: Path) -> int:
    """The rows that a reader who knows nothing of us sees in the whole folder."""
    return len(pd.read_parquet(output))
