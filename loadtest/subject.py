"""What is measured: a bundle, the checkpoint it was made from where peers are to serve the same, and the texts."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtest import roofline
from loadtest.served import Served
from loadtest.settings import ROOT, Settings
from loadtest.systems import PEERS, PEERS_PYTHON
from loadtest.texts import read_texts

KCBERT_SHAPE = "kcbert-shape"
PARITY_ROWS = "1000"
SHIPPED_SHAPE = ROOT / "training" / "nano" / "config.json"  # of the encoder that the shipped Champion was trained from


class CannotPrepare(Exception):
    """A model could not be made ready; the message has the last word of the command that failed."""


@dataclass(frozen=True)
class Subject:
    """``config`` is the config.json of the encoder; ``infinity`` the folder that it serves, None where it is not
    installed."""

    repository: Path
    served: Served
    checkpoint: Path | None
    infinity: Path | None
    config: dict
    texts: list[str]
    data: str
    mean_tokens: float

    def facts(self) -> dict:
        return {
            "encoder": self.served.manifest["encoder"],
            "precision": self.served.manifest["precision"],
            "checkpoint": self.checkpoint and self.checkpoint.name,
            "layer_parameters": roofline.layer_parameters(self.config),
            "texts": self.data,
            "count": len(self.texts),
            "mean_tokens": self.mean_tokens,
        }

    def roofline(self, giga: float) -> dict:
        parameters = roofline.layer_parameters(self.config)
        limit = roofline.texts_per_second(giga, parameters, self.mean_tokens)
        return {"giga_operations": giga, "texts_per_second": limit}


def prepare(checkpoint: str | None, data: Path | None, vocabulary: Path | None, folder: Path) -> Subject:
    """What is there already and still fits is used again.

    Raises:
        CannotPrepare: a step failed.
        NoTexts: ``data`` has none.
    """
    texts = read_texts(data)
    source, infinity = None, None
    if checkpoint is None:
        repository = Settings().model_repository
        config = json.loads(SHIPPED_SHAPE.read_text(encoding="utf-8"))
    else:
        source = _kcbert_shape(folder, vocabulary) if checkpoint == KCBERT_SHAPE else Path(checkpoint).resolve()
        try:
            config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        except OSError as exc:
            raise CannotPrepare(f"{source} is no checkpoint ({exc}); name a folder of save_pretrained") from None
        repository = _exported(source, folder)
        infinity = _for_infinity(source, folder) if PEERS_PYTHON.exists() else None
    try:
        served = Served.of(repository)
    except OSError as exc:
        raise CannotPrepare(f"{repository} serves nothing ({exc}); publish a version with make export") from None
    mean_tokens = served.mean_tokens(texts)
    name = data.name if data else "the bundled reviews"
    return Subject(repository, served, source, infinity, config, texts, name, mean_tokens)


def _kcbert_shape(folder: Path, vocabulary: Path | None) -> Path:
    target = folder / KCBERT_SHAPE
    command = [sys.executable, PEERS / "checkpoint.py", "--output", target]
    command += ["--source", vocabulary] if vocabulary else []
    return _made(target, f"{vocabulary} {_digest(PEERS / 'checkpoint.py')}", command)


def _exported(checkpoint: Path, folder: Path) -> Path:
    """A repository of its own with the checkpoint in it, made anew when checkpoint or exporter have changed."""
    target = folder / f"{checkpoint.name}-repository"
    command = [
        sys.executable,
        "-m",
        "export",
        "--checkpoint",
        checkpoint,
        "--repository",
        target,
        "--rows",
        PARITY_ROWS,
    ]
    return _made(target, f"{_identity(checkpoint)} {_digest(*(ROOT / 'export').glob('*.py'))}", command)


def _for_infinity(checkpoint: Path, folder: Path) -> Path:
    target = folder / f"{checkpoint.name}-infinity"
    command = [PEERS_PYTHON, PEERS / "infinity_model.py", "--checkpoint", checkpoint, "--output", target]
    return _made(target, f"{_identity(checkpoint)} {_digest(PEERS / 'infinity_model.py')}", command)


def _identity(checkpoint: Path) -> str:
    return " ".join(f"{file.name} {file.stat().st_mtime_ns}" for file in sorted(checkpoint.iterdir()))


def _digest(*sources: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(sources))).hexdigest()


def _made(target: Path, of: str, command: list) -> Path:
    """``target``, by ``command`` unless it was made of the same before."""
    note = target.with_name(f"{target.name}.made-of")
    if target.exists() and note.exists() and note.read_text(encoding="utf-8") == of:
        return target
    print(f"making {target}", file=sys.stderr, flush=True)
    shutil.rmtree(target, ignore_errors=True)
    note.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUNCHI_")}
    # Nothing that runs at the usual ports is to take the new repository for its own.
    environment |= {"HF_HUB_OFFLINE": "1", "NUNCHI_VAR": str(target.parent / "state")}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CannotPrepare(f"{command[1]} failed: {done.stderr.strip()[-500:]}")
    note.write_text(of, encoding="utf-8")
    return target
