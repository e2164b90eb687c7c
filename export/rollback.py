"""Let the version before answer again: `python -m export.rollback` (make rollback). Once more undoes it.

`--leaving N` may be run twice: it does nothing unless version N serves.

While that version is still loaded, which it is during the soak of a release and after a rollback, this is one small
file, and the gateway answers with it in under a second. Else Triton loads it again first, with every proof of a
release. The Champion of the registry follows afterwards, as far as it can.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import psutil

from export.arguments import add_repository, at_least
from export.errors import ExportError, ReleaseRefused, RepositoryBusy
from export.gateway import Gateway
from export.serving import (
    Serving,
    in_one_sentence,
    now,
    read_serving,
    replace_serving,
    serving_file,
    version_folder,
)
from export.settings import Settings, read_settings
from export.triton import Triton
from export.triton_config import named_versions

# onnxruntime, torch, transformers and MLflow take seconds to import: not before the version before answers.

log = logging.getLogger("export.rollback")

BUSY_SECONDS = 10.0  # for the command that is letting a version go, which takes no longer


def main(arguments: list[str] | None = None) -> int:
    try:
        settings = read_settings()
        options = _parser(settings).parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        serving = read_serving(options.repository)
        if serving and options.leaving not in (None, serving.version):
            left = options.leaving
            log.info("version %d does not serve", left)
        else:
            left, serving = roll_back(options.repository, settings)
    except ExportError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what served before serves on", file=sys.stderr)
        return 130
    try:
        print(f"version {serving.version} serves again, not version {left}", flush=True)
        status = _wait_for_gateway(serving.version, settings)
        follow_in_registry(options.repository, left, serving.version)
    except KeyboardInterrupt:
        print(f"error: interrupted; version {serving.version} serves, the registry may not say so", file=sys.stderr)
        return 130
    return status


def _wait_for_gateway(version: int, settings: Settings) -> int:
    """The exit status: 2 if it does not answer with the version, which serving.json names all the same."""
    gateway = Gateway(settings)
    if not gateway.listens():
        return 0
    try:
        gateway.wait_for(version)
    except ExportError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    seconds = time.time() - psutil.Process().create_time()
    print(f"the gateway answers with it, {seconds:.2f} s after this command was started", flush=True)
    return 0


def roll_back(repository: Path, settings: Settings) -> tuple[int, Serving]:
    """Returns the version that served and what serving.json says now.

    Raises:
        ReleaseRefused: there is no version to go back to.
        RepositoryBusy: another command has changed what serves meanwhile, or is at work for longer.
        ExportError: it is not loaded any more, and cannot be loaded again.
    """
    before = _check_the_way_back(repository)
    after = _switch_back(repository, settings, before)
    if after:
        return before.version, after
    log.info("version %d is not loaded any more; loading it", before.previous)
    from export.release import serve_again

    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            released = serve_again(repository, before.previous, settings, known=True, roll_back_from=before)
            return before.version, released.serving
        except RepositoryBusy:
            if time.monotonic() > until or read_serving(repository) != before:
                raise
            time.sleep(0.1)


def _check_the_way_back(repository: Path) -> Serving:
    before = read_serving(repository)
    if before is None or before.previous is None:
        raise ReleaseRefused(f"{serving_file(repository)} names no version before, so there is none to go back to")
    with in_one_sentence(repository):
        there = version_folder(repository, before.previous).is_dir()
    if not there:
        raise ReleaseRefused(
            f"the folder of version {before.previous} is gone from {repository}; put it back, or export a checkpoint"
        )
    return before


def _switch_back(repository: Path, settings: Settings, before: Serving) -> Serving | None:
    """What serving.json says now; None when the version before is not loaded, or is being let go."""
    with Triton(settings) as triton:
        if not (triton.listens() and triton.is_ready(before.previous)):
            return None
    candidate = before.candidate if before.candidate and before.candidate.version != before.previous else None
    after = Serving(before.previous, before.version, now(), rolled_back=before.version, candidate=candidate)
    # Who lets a version go takes it out of config.pbtxt first, under the lock of serving.json.
    stays = replace_serving(repository, before, after, lambda: before.previous in named_versions(repository))
    return after if stays else None


def follow_in_registry(repository: Path, left: int, serving: int) -> None:
    """Make the registry's Champion the one that serves, if the one that was left is it; never more than a sentence."""
    from training.errors import TrainingError

    number, run = _registered(repository, left)
    if number is None:
        return
    wanted, _ = _registered(repository, serving)
    remedy = "python -m training.registry rollback"
    try:
        from training.registry import Registry
        from training.settings import read_settings as read_training_settings

        registry = Registry(read_training_settings())
        champion = registry.champion()
        if champion is None or (str(champion.number), champion.run_id) != (number, run):
            log.info("the registry's Champion is another than the version that was left, and stays")
            return
        if str(champion.previous_champion) != wanted:
            log.warning(
                "the registry's Champion stays version %s: the one before it, %s, is not the one that serves; promote "
                "the right one with make promote VERSION=…", number, champion.previous_champion or "none",
            )  # fmt: skip
            return
        print(f"version {registry.rollback().number} is the registry's Champion again")
    except TrainingError as exc:
        log.warning("the registry's Champion stays version %s (%s); later: %s", number, exc, remedy)


def _registered(repository: Path, version: int) -> tuple[str | None, str | None]:
    """Its number and run in the registry; None for a version that came from elsewhere."""
    try:
        source = json.loads((version_folder(repository, version) / "manifest.json").read_bytes())["source"]
        return source["registry_version"], source["mlflow_run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.rollback", description=__doc__.splitlines()[0])
    add_repository(parser, settings)
    parser.add_argument("--leaving", type=at_least(1), metavar="N", help="only if version N serves")
    return parser


if __name__ == "__main__":
    sys.exit(main())
