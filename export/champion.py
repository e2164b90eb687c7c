"""The Champion of the registry: what is exported when no checkpoint is named."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from export.build import Order, build
from export.bundle import read_manifest, verify_bundle
from export.errors import BundleBroken, NoChampion
from export.publish import open_stage
from export.release import Released, is_serving, release, serve_again
from export.serving import MODEL, read_serving
from export.settings import Settings
from training.settings import read_settings as read_training_settings

if TYPE_CHECKING:
    from training.registry import Registry, Version

log = logging.getLogger(__name__)


def find_champion() -> tuple["Registry", "Version"]:
    """Raises:
    NoChampion: no version has been promoted.
    TrainingError: the registry cannot be read.
    """
    from training.registry import Registry  # brings MLflow along, which takes seconds to import

    registry = Registry(read_training_settings())
    champion = registry.champion()
    if champion is None:
        raise NoChampion(
            f"the registry {registry.settings.registered_model!r} has no Champion; promote a version with "
            "make promote VERSION=…, or name a folder with --checkpoint"
        )
    return registry, champion


def release_champion(
    repository: Path,
    settings: Settings,
    order: Order,
    registry: "Registry",
    champion: "Version",
    version: int | None = None,
    *,
    known: bool = False,
) -> Released | None:
    """Let the Champion answer, from the version folder that holds it already or from a new one; None if it does.

    A repository that is ``known`` is not made anew when it is gone.

    Raises:
        ExportError, TrainingError: it cannot be fetched, exported or released.
    """
    published = find_published(repository, champion)
    if published and is_serving(repository, int(published.name)):
        log.info("the Champion, version %d of the registry, serves already", champion.number)
        return None
    if published:
        released = serve_again(repository, int(published.name), settings, known=known)
        log.info("the Champion, version %d of the registry, is version %s and serves again", champion.number,
                 published.name)  # fmt: skip
        return released
    log.info("the Champion is version %d of the registry", champion.number)
    checkpoint = registry.fetch(champion)
    with open_stage(repository, version, known=known) as stage:
        build(stage, checkpoint, order)
        return release(stage, settings)


def find_published(repository: Path, champion: "Version") -> Path | None:
    """The version folder of ``repository`` that holds this very model, whole; the one that serves before others."""
    serving = read_serving(repository)
    folders = [folder for folder in (repository / MODEL).glob("*") if folder.name.isdecimal()]
    serves_first = str(serving.version) if serving else ""
    for folder in sorted(folders, key=lambda folder: (folder.name != serves_first, -int(folder.name))):
        try:
            source = read_manifest(folder).source
            # Both: the numbers of a registry that was made afresh start at 1 again.
            if (source.registry_version, source.mlflow_run) == (str(champion.number), champion.run_id):
                verify_bundle(folder)
                return folder
        except BundleBroken as exc:
            log.info("version %s is not whole: %s", folder.name, exc)
    return None
