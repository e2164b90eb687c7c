"""The Champion of the registry: what is exported when no checkpoint is named."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from export.bundle import verify_bundle
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


def folder_that_serves(repository: Path, champion: "Version") -> Path | None:
    """The version folder of ``repository`` that serves this very model; None when another model serves, or none."""
    version = read_serving(repository).get("version")
    if version is None:
        return None
    folder = repository / MODEL / str(version)
    try:
        source = verify_bundle(folder).source
    except BundleBroken as exc:
        log.info("what serves is not whole, so it is exported anew: %s", exc)
        return None
    # Both: the numbers of a registry that was made afresh start at 1 again.
    same = (source.registry_version, source.mlflow_run) == (str(champion.number), champion.run_id)
    return folder if same else None
