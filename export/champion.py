"""The Champion of the registry: what is exported when no checkpoint is named."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from export.bundle import read_manifest, verify_bundle
from export.errors import BundleBroken, NoChampion
from export.manifest import MODEL
from export.publish import read_serving
from training.settings import read_settings

if TYPE_CHECKING:
    from training.registry import Registry, Version

log = logging.getLogger(__name__)


def find_champion() -> tuple["Registry", "Version"]:
    """Raises:
    NoChampion: no version has been promoted.
    TrainingError: the registry cannot be read.
    """
    from training.registry import Registry  # brings MLflow along, which takes seconds to import

    settings = read_settings()
    registry = Registry(settings)
    champion = registry.champion()
    if champion is None:
        raise NoChampion(
            f"the registry {settings.registered_model!r} has no Champion; promote a version with "
            "make promote VERSION=…, or name a folder with --checkpoint"
        )
    return registry, champion


def find_published(repository: Path, champion: "Version") -> Path | None:
    """The version folder of ``repository`` that holds this very model, whole; the one that serves before others."""
    serving = read_serving(repository).get("version")
    folders = [folder for folder in (repository / MODEL).glob("*") if folder.name.isdecimal()]
    for folder in sorted(folders, key=lambda folder: (folder.name != str(serving), -int(folder.name))):
        try:
            source = read_manifest(folder).source
            # Both: the numbers of a registry that was made afresh start at 1 again.
            if (source.registry_version, source.mlflow_run) == (str(champion.number), champion.run_id):
                verify_bundle(folder)
                return folder
        except BundleBroken as exc:
            log.info("version %s is not whole: %s", folder.name, exc)
    return None


def serves(repository: Path, folder: Path) -> bool:
    return str(read_serving(repository).get("version")) == folder.name
