"""The models that were registered, and which of them is the Champion.

    python -m training.registry list
    python -m training.registry register [SEARCH] [--trial TRIAL]     the latest search and its best trial by default
    python -m training.registry promote VERSION [--force]             by the gates of training/promote.py
    python -m training.registry archive VERSION
    python -m training.registry rollback [--leaving VERSION]          to the Champion before; once more undoes it
    python -m training.registry compare VERSION VERSION
    python -m training.registry rebuild                               model_registry.json from MLflow alone

A version is a Candidate, the Champion, or Archived. How that is kept, through crashes too: training/ledger.py.

For programs, ``register`` and ``promote`` take ``--json``: the version as one line, its figures and gates, also when
the gates have refused it (its ``stage`` says so) or when it was done before, so that they may be run twice.
"""

import argparse
import contextlib
import getpass
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from training import tracking
from training.config import DatasetConfig
from training.data import Dataset, open_dataset
from training.errors import GateClosed, RegistryBusy, RegistryError, TrainingError
from training.fetch import fetch
from training.ledger import Ledger, Version
from training.search import (
    CHECKPOINT,
    best_trial,
    latest_search,
    now,
    read_search,
    read_trial,
    search_config,
    trial_folder,
)
from training.settings import Settings, read_settings

if TYPE_CHECKING:
    import pandas as pd

    from training.compare import Comparison
    from training.promote import Evidence

# What asks a model brings torch and transformers along, eight seconds that `list` and `rollback` do without: such
# modules are imported where they are used.

log = logging.getLogger("training.registry")

EVIDENCE = "evidence.json"
TAG_LENGTH = 5000  # the least that any release of MLflow takes
FORCED = ("forced", "forced_by", "forced_at", "forced_gates")


class Registry:
    """Raises, in every method: TrackingError when MLflow cannot be reached."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.ledger = Ledger(settings)

    def versions(self) -> list[Version]:
        """In the order of their numbers; none while nothing was ever registered."""
        return self.ledger.versions()

    def version(self, number: int) -> Version:
        """Raises:
        RegistryError: there is no such version.
        """
        return self.ledger.version(number)

    def champion(self) -> Version | None:
        return self.ledger.champion()

    def register(self, search_folder: Path, trial: str | None = None) -> Version:
        """Make the best trial, or the one named, a Candidate. It answers test once, and its answers are kept.

        Raises:
            CollapsedModel, RegistryError: the model is refused, or is registered already.
            SearchError, DatasetError: its search or its data cannot be read.
        """
        search = read_search(search_folder)
        chosen = read_trial(trial_folder(search_folder, trial)) if trial else best_trial(search_folder)
        if chosen.state == "running":
            raise RegistryError(
                f"trial {chosen.name} has not ended, and a model that has read test must not learn on; let it end, or "
                f"resume the search with python -m training.tune --resume {search.name}"
            )
        config = search_config(search)
        tracking.upload(search_folder, self.settings, trusting=True)
        run_id = tracking.run_id_of(search_folder, chosen.name, self.settings)
        self.ledger.refuse_registered(run_id)
        checkpoint = trial_folder(search_folder, chosen.name) / CHECKPOINT
        dataset = self._dataset(config.dataset, search.dataset_fingerprint)
        metrics = self._measure_on_test(run_id, checkpoint, dataset)
        if metrics["f1"] < config.train.register_threshold:
            raise RegistryError(
                f"test F1 is {metrics['f1']:.4f} and train.register_threshold {config.train.register_threshold}; "
                "train longer or on more reviews, or lower the threshold"
            )
        tags = {
            "metrics": json.dumps(metrics),
            "labels": json.dumps(list(dataset.labels)),
            "dataset_config": config.dataset.model_dump_json(),
            "dataset": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
            "encoder": config.model.encoder,
            "search": search.name,
            "trial": chosen.name,
        }
        return self.ledger.create(tracking.log_model(run_id, checkpoint, self.settings), run_id, tags)

    def promote(self, number: int, *, force: bool = False) -> Version:
        """Judge the version by the gates and, if they are open or ``force`` is set, make it the Champion.

        The evidence goes to ``evidence.json`` of its run and, a sentence per gate, to its tags, either way.

        Raises:
            GateClosed: a gate is closed.
            RegistryError: it is the Champion already, or another became the Champion meanwhile.
        """
        from training.promote import judge

        version = self.version(number)
        if version.stage == "Champion":
            raise RegistryError(f"version {number} is the Champion already")
        if not version.metrics:
            raise RegistryError(f"version {number} has no test figures: register its search with this command instead")
        evidence = judge(self, version)
        with tracking.asking(f"MLflow has not taken the evidence on version {number}"):
            self.ledger.client.log_dict(version.run_id, evidence.as_dict(), EVIDENCE)
        self.ledger.tag(f"judge {number}", number, _evidence_tags(evidence))
        failed = " and ".join(evidence.failed)
        if failed and not force:
            raise GateClosed(
                f"version {number} is not promoted: {failed} failed; mend it, or promote it all the same with --force "
                f"({EVIDENCE} of MLflow run {version.run_id} has the figures)"
            )
        mark = dict.fromkeys(FORCED)
        if failed:
            mark = {"forced": "true", "forced_by": _user(), "forced_at": now(), "forced_gates": failed}
        return self.ledger.crown(f"promote {number}", number, instead_of=evidence.rival_version, tags=mark)

    def archive(self, number: int) -> Version:
        """Raises:
        RegistryError: it is the Champion, or archived already.
        """
        return self.ledger.archive(number)

    def rollback(self) -> Version:
        """Make the Champion before the Champion again; the one that steps down is then the one before.

        Raises:
            RegistryError: there is none to go back to.
        """
        champion = self.champion()
        if champion is None:
            raise RegistryError("the registry has no Champion, so there is nothing to roll back; promote a version")
        before = champion.previous_champion
        if before is None:
            raise RegistryError(f"version {champion.number} is the first Champion; there is none to go back to")
        return self.ledger.crown(f"roll back to {before}", before, instead_of=champion.number)

    def compare(self, first: int, second: int) -> "Comparison":
        """By the answers that were kept at registration: test is not asked again."""
        from training.compare import compare

        if first == second:
            raise RegistryError(f"both are version {first}; name two versions")
        return compare(self, self.version(first), self.version(second))

    def rebuild(self) -> Path:
        """Write model_registry.json from MLflow alone, whatever it holds; tags and aliases are put in order as well."""
        return self.ledger.rebuild()

    def repair(self) -> None:
        """Finish, or find never begun, what a command that was killed has left pending.

        While another command is writing there is nothing to repair, and one that only reads need not wait for it.
        """
        with contextlib.suppress(RegistryBusy), self.ledger.lock(seconds=0):
            pass

    def fetch(self, version: Version) -> Path:
        """The checkpoint of a version, as a folder under ``var/registry`` (training/fetch.py)."""
        return fetch(version, self.settings)

    def examination(self, version: Version) -> "pd.DataFrame":
        """The answers to test that were kept when the version was registered (training/examination.py)."""
        from training.examination import FILE, read_kept

        with tracking.asking(f"the answers of version {version.number} to test cannot be read from MLflow"):
            kept = read_kept(self.ledger.client, version.run_id)
        if kept is None:
            raise RegistryError(
                f"MLflow run {version.run_id} has lost {FILE}, the answers of version {version.number} to test; "
                "put it back, or archive the version"
            )
        return kept

    def dataset(self, version: Version) -> Dataset:
        """What the version was trained and tested on.

        Raises:
            RegistryError: the files have changed since.
        """
        config = DatasetConfig.model_validate(json.loads(version.tags["dataset_config"]))
        return self._dataset(config, version.tags["dataset_fingerprint"])

    def _dataset(self, config: DatasetConfig, fingerprint: str) -> Dataset:
        dataset = open_dataset(config, cache=self.settings.var / "data")
        if dataset.fingerprint != fingerprint:
            raise RegistryError(
                f"{dataset.name} has the fingerprint {dataset.fingerprint} now, and had {fingerprint} when the model "
                "was trained; put the old files back, or train again on the new ones"
            )
        return dataset

    def _measure_on_test(self, run_id: str, checkpoint: Path, dataset: Dataset) -> dict:
        """Ask the model the test rows, unless its answers are kept already; the figures go to its run.

        They go there also when the model is refused: test has been read by then.
        """
        from training.evaluate import measure, refuse_collapsed
        from training.examination import examine, keep, read_kept
        from training.predict import SentimentPredictor

        with tracking.asking("MLflow cannot be asked whether the model has read test already"):
            answers = read_kept(self.ledger.client, run_id)
        if answers is None:
            predictor = SentimentPredictor(checkpoint)
            if tuple(predictor.labels) != tuple(dataset.labels):
                raise RegistryError(
                    f"the model answers {', '.join(predictor.labels)} and {dataset.name} is labelled "
                    f"{', '.join(dataset.labels)}; train it on that dataset"
                )
            answers = examine(predictor, dataset.test())
            with tracking.asking("MLflow has not taken the model's answers to test; register again"):
                keep(self.ledger.client, run_id, answers)
        labels, predicted = answers.label.to_numpy(), answers.predicted.to_numpy()
        metrics = measure(f"{dataset.name} test", labels, predicted, len(dataset.labels))
        log.info("%s", metrics)
        with tracking.asking("MLflow has not taken the model's figures on test; register again"):
            for name in ("accuracy", "f1"):
                self.ledger.client.log_metric(run_id, f"test_{name}", getattr(metrics, name))
        refuse_collapsed(predicted, labels)
        return metrics.as_dict()


def _evidence_tags(evidence: "Evidence") -> dict[str, str]:
    gates = {f"gate.{gate.name}": str(gate)[:TAG_LENGTH] for gate in evidence.gates}
    return {"judged": evidence.judged, "judged_against": evidence.rival or "nobody", **gates}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return f"user {os.getuid()}"


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        registry = Registry(read_settings())
        registry.repair()
        options.run(registry, options)
    except TrainingError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.registry", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.set_defaults(run=run)
        return added

    command("list", _list, "show every version, its figures and its stage")
    register = command("register", _register, "ask a trial's model the test rows, once, and make it a Candidate")
    register.add_argument("search", nargs="?", help="name or folder of a search (default: the latest)")
    register.add_argument("--trial", help="its name (default: the best by dev F1)")
    register.add_argument("--json", action="store_true", help="print the version as JSON, also if it is one already")
    promote = command("promote", _promote, "judge a version by the gates and make it the Champion")
    promote.add_argument("version", type=int)
    promote.add_argument("--force", action="store_true", help="past closed gates; the version keeps a mark of it")
    promote.add_argument("--json", action="store_true", help="print the version and its gates as JSON, also if refused")
    command("archive", _archive, "set a Candidate aside").add_argument("version", type=int)
    rollback = command("rollback", _rollback, "make the Champion before the Champion again")
    rollback.add_argument("--leaving", type=int, metavar="VERSION", help="only if that is the Champion")
    compare = command("compare", _compare, "two versions on the test rows they answered at registration")
    compare.add_argument("first", type=int)
    compare.add_argument("second", type=int)
    command("rebuild", _rebuild, "write model_registry.json from MLflow alone")
    return parser


def _list(registry: Registry, options: argparse.Namespace) -> None:
    versions = registry.versions()
    if not versions:
        name = registry.settings.registered_model
        print(f"the registry {name!r} is empty; run make train, then python -m training.registry register")
        return
    table = Table("version", "stage", "macro F1", "accuracy (95 % interval)", "test", "encoder", "registered", "notes")
    for version in versions:
        table.add_row(str(version.number), version.stage, *_figures(version), version.created[:16], _notes(version))
    console().print(table)


def _figures(version: Version) -> list[str]:
    if not version.metrics:
        return ["", "", "", ""]
    low, high = version.metrics["accuracy_interval"]
    accuracy = f"{version.metrics['accuracy']:.4f} ({low:.4f}-{high:.4f})"
    test = f"{version.metrics['dataset']}, {version.metrics['rows']:,} rows"
    return [f"{version.metrics['f1']:.4f}", accuracy, test, version.tags["encoder"]]


def _notes(version: Version) -> str:
    notes = []
    if version.stage == "Champion" and "champion_since" in version.tags:
        before = f", before it {version.previous_champion}" if version.previous_champion else ""
        notes.append(f"since {version.tags['champion_since'][:16]}{before}")
    if version.forced:
        by, at, gates = (version.tags[key] for key in ("forced_by", "forced_at", "forced_gates"))
        notes.append(f"FORCED past {gates} by {by}, {at[:16]}")
    return "; ".join(notes)


def console() -> Console:
    """As wide as the terminal; wide enough for a row per line where there is none."""
    return Console(width=None if sys.stdout.isatty() else 180)


def _register(registry: Registry, options: argparse.Namespace) -> None:
    searches = registry.settings.searches
    if options.search is None:
        folder = latest_search(searches)
    else:
        folder = next((found for found in (searches / options.search, Path(options.search)) if found.is_dir()), None)
        if folder is None:
            raise RegistryError(
                f"{options.search!r} is neither a search under {searches} nor a folder; name one that is"
            )
    if options.json:
        trial = options.trial or best_trial(folder).name
        of_trial = {"search": folder.name, "trial": trial}
        before = [each for each in registry.versions() if of_trial.items() <= each.tags.items()]
        print(_as_json(before[0] if before else registry.register(folder, trial)))
        return
    version = registry.register(folder, options.trial)
    print(f"version {version.number} is a Candidate; next: make promote VERSION={version.number}")


def _promote(registry: Registry, options: argparse.Namespace) -> None:
    if options.json:
        version = registry.version(options.version)
        with contextlib.suppress(GateClosed):
            if version.stage != "Champion":
                registry.promote(version.number, force=options.force)
        print(_as_json(registry.version(version.number)))
        return
    version = registry.promote(options.version, force=options.force)
    mark = f", forced past {version.tags['forced_gates']}" if version.forced else ""
    print(f"version {version.number} is the Champion{mark}; next: make export")


def _as_json(version: Version) -> str:
    named = ("encoder", "search", "trial", "judged_against")
    facts = {name: version.tags[name] for name in named if name in version.tags}
    gates = {tag.removeprefix("gate."): said for tag, said in version.tags.items() if tag.startswith("gate.")}
    numbers = {"version": version.number, "stage": version.stage, "run": version.run_id}
    return json.dumps({**numbers, **facts, "forced": version.forced, "metrics": version.metrics, "gates": gates})


def _archive(registry: Registry, options: argparse.Namespace) -> None:
    print(f"version {registry.archive(options.version).number} is archived")


def _rollback(registry: Registry, options: argparse.Namespace) -> None:
    champion = registry.champion()
    if champion and options.leaving not in (None, champion.number):
        print(f"version {champion.number} is the Champion, not version {options.leaving}: nothing to roll back")
        return
    version = registry.rollback()
    print(
        f"version {version.number} is the Champion again; rollback once more brings back version "
        f"{version.previous_champion}; next: make export"
    )


def _compare(registry: Registry, options: argparse.Namespace) -> None:
    from training.compare import show

    show(registry, registry.compare(options.first, options.second), console())


def _rebuild(registry: Registry, options: argparse.Namespace) -> None:
    print(f"{registry.rebuild()} is written from MLflow: {len(registry.versions())} version(s)")


if __name__ == "__main__":
    sys.exit(main())
