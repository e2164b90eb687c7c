"""A version beside the one that serves: a copy of the traffic (shadow) or a part of it (canary).

    python -m export.candidate start --mode shadow --share 0.2 [--checkpoint FOLDER]   default: the registry's Candidate
    python -m export.candidate promote     it serves from now on; one of the registry has to pass the registry's gates
    python -m export.candidate end
    python -m export.candidate status

It is exported, staged and proven through Triton like a release; serving.json then names it, and the gateways do the
rest. A release meanwhile leaves it loaded.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from export.arguments import add_repository, add_soak, share
from export.build import add_arguments, build, order, stand_back
from export.bundle import read_manifest
from export.errors import ExportError, ReleaseRefused
from export.gateway import Gateway
from export.publish import open_stage
from export.release import load_beside, refuse_second_candidate, serve_again, soak, take_candidate_out
from export.serving import MODES, Candidate, Serving, read_serving, serving_file, version_folder
from export.settings import Settings, read_settings
from export.triton import Triton
from training.errors import TrainingError
from training.settings import read_settings as read_training_settings

if TYPE_CHECKING:
    from training.registry import Registry

log = logging.getLogger("export.candidate")


def main(arguments: list[str] | None = None) -> int:
    try:
        settings = read_settings()
        options = _parser(settings).parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        options.run(options, settings)
    except (ExportError, TrainingError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what served before serves on", file=sys.stderr)
        return 130
    return 0


def start(options: argparse.Namespace, settings: Settings) -> None:
    """Raises:
    ExportError, TrainingError: there is one already, nothing runs, or it cannot be exported or loaded.
    """
    serving = read_serving(options.repository)
    if serving is None:
        raise ReleaseRefused(f"{options.repository} serves nothing yet; run make export first")
    refuse_second_candidate(serving)
    with Triton(settings) as triton:
        if not triton.listens():
            raise ReleaseRefused(f"a candidate wants a running Triton, and none listens at {triton.address}; make up")
    checkpoint = options.checkpoint or _fetch_candidate()
    with open_stage(options.repository) as stage:
        build(stage, checkpoint, order(options))
        load_beside(stage, settings, options.mode, options.share)
    print(f"version {stage.version} is loaded beside version {serving.version}: {options.mode} of {options.share:.0%}")


def promote(options: argparse.Namespace, settings: Settings) -> None:
    """Raises:
    ExportError, TrainingError: there is none, a gate of the registry is closed, or it does not come to serve.
    """
    candidate = _candidate(options.repository)
    source = read_manifest(version_folder(options.repository, candidate.version)).source
    if source.registry_version is None:
        log.info("version %d is not of the registry: its parity gate has to do", candidate.version)
    else:
        _crown(int(source.registry_version), source.mlflow_run)
    released = serve_again(options.repository, candidate.version, settings)
    print(f"version {candidate.version} serves", flush=True)
    if released.live:
        soak(options.repository, settings, released.serving, options.soak)


def end(options: argparse.Namespace, settings: Settings) -> None:
    """Raises:
    ExportError: there is none, or Triton cannot be told.
    """
    print(f"version {take_candidate_out(options.repository, settings)} is the candidate no more")


def status(options: argparse.Namespace, settings: Settings) -> None:
    """serving.json, what Triton has loaded of it, and what the gateway has counted."""
    serving = read_serving(options.repository)
    if serving is None:
        raise ReleaseRefused(f"{serving_file(options.repository)} is not there; run make export first")
    print(json.dumps(json.loads(serving.to_json()), indent=2))
    with Triton(settings) as triton:
        for version in sorted(set(serving.numbers())):
            print(f"version {version} is {'loaded' if triton.is_ready(version) else 'not loaded'}")
    for line in Gateway(settings).about_candidate():
        print(line)


def _candidate(repository: Path) -> Candidate:
    serving: Serving | None = read_serving(repository)
    if serving is None or serving.candidate is None:
        raise ReleaseRefused(f"{serving_file(repository)} names no candidate; start one first")
    return serving.candidate


def _registry() -> "Registry":
    from training.registry import Registry  # brings MLflow along, which takes seconds to import

    return Registry(read_training_settings())


def _fetch_candidate() -> Path:
    registry = _registry()
    candidates = [version for version in registry.versions() if version.stage == "Candidate"]
    if not candidates:
        raise ReleaseRefused(
            f"the registry {registry.settings.registered_model!r} has no Candidate; register one with make register, "
            "or name a folder with --checkpoint"
        )
    log.info("the Candidate is version %d of the registry", candidates[-1].number)
    return registry.fetch(candidates[-1])


def _crown(number: int, run_id: str | None) -> None:
    """Make it the Champion by the gates of the registry, unless it is."""
    registry = _registry()
    version = registry.version(number)
    if version.run_id != run_id:
        raise ReleaseRefused(
            f"version {number} of the registry is of another run than the candidate; end the candidate, and start one "
            "from this registry"
        )
    if version.stage != "Champion":
        registry.promote(number)
        log.info("version %d of the registry is the Champion", number)


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.candidate", description=__doc__.splitlines()[0])
    everywhere = argparse.ArgumentParser(add_help=False)
    add_repository(everywhere, settings)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, what in (
        (start, "load a version beside the one that serves"),
        (promote, "let the candidate serve"),
        (end, "unload the candidate"),
        (status, "show what serving.json, Triton and the gateway say"),
    ):
        command = commands.add_parser(run.__name__, parents=[everywhere], help=what, description=what)
        command.set_defaults(run=run)
        if run is start:
            command.add_argument("--checkpoint", type=Path, help="a folder (default: the registry's newest Candidate)")
            command.add_argument("--mode", choices=MODES, required=True)
            command.add_argument("--share", type=share, required=True, help="of the traffic, above 0 and up to 1")
            add_arguments(command)
        elif run is promote:
            add_soak(command, settings)
    return parser


if __name__ == "__main__":
    stand_back()
    sys.exit(main())
