"""``training.json``: what made a checkpoint, written beside its weights; export carries it into the manifest."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from training.data import Dataset
from training.settings import ROOT

FILE = "training.json"


def write_record(folder: Path, *, encoder: str, labels: list[str], max_length: int, dataset: Dataset, **facts) -> None:
    """``facts`` are further JSON values; ``metrics`` among them, the test figures, is what export looks for."""
    record = {
        "encoder": encoder,
        "labels": labels,
        "max_length": max_length,
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        **facts,
    }
    (folder / FILE).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def encoder_name(encoder: str) -> str:
    """What a checkpoint's encoder is called: as its record says, else the folder's name, else the name asked for."""
    folder = Path(encoder)
    if (folder / FILE).is_file():
        return json.loads((folder / FILE).read_text(encoding="utf-8"))["encoder"]
    return folder.resolve().name if folder.is_dir() else encoder


def git_commit() -> str | None:
    """The commit that is checked out, with ``+`` when files differ from it; None outside a git checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
