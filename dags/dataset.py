"""The reviews that a retraining learns from, fixed before it begins: the collection goes on changing meanwhile.

A set is named for its last day, its content and the configuration, so what was trained once is not trained twice.
"""

import hashlib
import os
import shutil
from pathlib import Path

from dags.settings import ROOT


def freeze(collected: Path, sets: Path, config: str) -> dict[str, str]:
    """Link every Parquet file under ``collected`` into a folder of its own under ``sets``: its ``name`` and ``folder``.

    The collector replaces its files whole, so a link keeps what it was made of.

    Raises:
        FileNotFoundError: nothing is collected yet, or there is no such configuration.
    """
    files = sorted(collected.glob("site=*/day=*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{collected} holds no site=…/day=…/*.parquet; run the DAG collect_reviews first")
    digest = hashlib.sha256((ROOT / config).read_bytes())
    part = sets / f".{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    for file in files:
        kept = part / file.relative_to(collected)
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, kept)
        digest.update(str(file.relative_to(collected)).encode() + hashlib.sha256(kept.read_bytes()).digest())
    last_day = max(file.parent.name.removeprefix("day=") for file in files)
    name = f"reviews-{last_day}-{digest.hexdigest()[:8]}"
    if (sets / name).is_dir():
        shutil.rmtree(part)
    else:
        part.rename(sets / name)
    return {"name": name, "folder": str(sets / name)}
