"""What a version must show before it becomes the Champion: three gates, each with its figures and a sentence.

better      It is right more often than the rival on the same test rows, by McNemar's exact test at 5 %. Or it is not
            worse (the 95 % interval of the paired difference stays above -0.5 points) and cheaper: its exported
            artifact takes at most 90 % of the rival's time per text, or of its bytes.
behaviour   The suite of training/behaviour.tsv: at least 80 % of all cases and 70 % of each kind; of irony, which small
            models read poorly, nothing. And neither in all nor in any kind, irony included, significantly fewer
            cases than the rival. Shipped version 1 passes 89 % in all, 64 % of irony and 81 % of slang.
latency     The exported artifact answers one text alone in at most 100 ms on this machine. A bigger and better model
            may be slower than its rival: the ratio is in the evidence, and decides only what "cheaper" means above.

The rival is the Champion; while there is none, the bundle that the model repository serves; else nobody. When the
rival was tested on other rows, it is asked the candidate's test rows now, and the evidence says so.
"""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.behaviour import Case, Predictor, count_by_kind, read_cases, run_cases
from training.errors import RegistryError
from training.evaluate import PairedComparison, mcnemar
from training.examination import examine, names, same_rows
from training.predict import SentimentPredictor, served_bundle
from training.search import now
from training.settings import ROOT

if TYPE_CHECKING:
    from training.registry import Registry, Version

log = logging.getLogger(__name__)

SIGNIFICANT = 0.05
WORSE_AT_MOST = 0.005
CHEAPER_FROM = 0.9
ALL_CASES_FLOOR = 0.8
KIND_FLOOR = 0.7
KINDS_WITHOUT_FLOOR = {"irony"}
MILLISECONDS_ALONE = 100.0
OUTPUT_LINES = 20


@dataclass(frozen=True)
class Gate:
    """``name`` is better, behaviour or latency; ``figures`` are what the sentence was made from."""

    name: str
    passed: bool
    sentence: str
    figures: dict

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'failed'}: {self.sentence}"


@dataclass(frozen=True)
class Evidence:
    """``rival`` names whom ``version`` was compared with, ``rival_version`` its number where the registry has it."""

    version: int
    rival: str | None
    rival_version: int | None
    dataset: str
    judged: str
    gates: list[Gate]

    @property
    def failed(self) -> list[str]:
        return [gate.name for gate in self.gates if not gate.passed]

    def as_dict(self) -> dict:
        return {**asdict(self), "passed": not self.failed}


@dataclass(frozen=True)
class Rival:
    """``version`` is None for the served bundle; ``bundle`` is None for a Champion that has not been exported."""

    name: str
    version: "Version | None"
    predictor: Predictor
    bundle: Path | None


def judge(registry: "Registry", version: "Version") -> Evidence:
    """Every gate is judged, also after one has failed: a person decides on the whole picture.

    Raises:
        TrainingError: a model or the test rows cannot be read.
    """
    rival = find_rival(registry)
    log.info("judging version %d against %s", version.number, rival.name if rival else "nobody: there is no Champion")
    checkpoint = registry.fetch(version)
    latency = measure_latency(checkpoint, rival.bundle if rival else None)
    gates = [
        judge_on_test(registry, version, rival, latency),
        judge_on_sentences(SentimentPredictor(checkpoint), rival),
        judge_latency(latency),
    ]
    for gate in gates:
        log.info("  %-9s %s", gate.name, gate)
    return Evidence(
        version=version.number,
        rival=rival.name if rival else None,
        rival_version=rival.version.number if rival and rival.version else None,
        dataset=version.metrics["dataset"],
        judged=now(),
        gates=gates,
    )


def find_rival(registry: "Registry") -> Rival | None:
    champion = registry.champion()
    repository = registry.settings.model_repository
    if champion is not None:
        name = f"the Champion, version {champion.number}"
        predictor = SentimentPredictor(registry.fetch(champion))
        return Rival(name, champion, predictor, _bundle_of(champion, repository))
    if not (repository / "serving.json").is_file():
        return None
    bundle = served_bundle(registry.settings)
    return Rival(f"the served bundle, version {bundle.name}", None, SentimentPredictor(bundle), bundle)


def measure_latency(checkpoint: Path, against: Path | None) -> dict:
    """The JSON of ``python -m export.latency``; or, when it failed, the reason and the end of what it said.

    That is ``{"error": sentence, "output": lines}``: the checkpoint cannot be exported, or the command cannot run here.
    """
    command = [sys.executable, "-m", "export.latency", "--checkpoint", str(checkpoint)]
    if against is not None:
        command += ["--against", str(against)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": _why_it_failed(done.returncode, lines), "output": lines[-OUTPUT_LINES:]}
    return json.loads(done.stdout.splitlines()[-1])


def _why_it_failed(status: int, lines: list[str]) -> str:
    """Its own refusal; else the exception that ended it: at the left, below the last traceback; else how it ended."""
    last = lines[-1] if lines else ""
    if last.startswith("error: "):
        return last.removeprefix("error: ")
    if status < 0:
        killer = signal.Signals(-status).name
        return f"python -m export.latency was killed by {killer}, perhaps for want of memory; free some, then try again"
    tracebacks = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
    raised = [line for line in lines[tracebacks[-1] + 1 :] if line and not line[0].isspace()] if tracebacks else []
    return f"python -m export.latency ended with status {status}: {raised[0] if raised else last or 'it said nothing'}"


def judge_comparison(comparison: PairedComparison, rival: str, latency: dict) -> Gate:
    """The gate ``better``: ``comparison`` has the candidate first."""
    ratios = cost_ratios(latency)
    low = comparison.interval[0]
    found = (
        f"{comparison.difference * 100:+.2f} points to {rival} on the same {comparison.rows:,} test rows "
        f"({comparison.only_first:,} right alone against {comparison.only_second:,}, p = {comparison.p_value:.2g})"
    )
    better = comparison.difference > 0 and comparison.p_value < SIGNIFICANT
    not_worse = low > -WORSE_AT_MOST
    cheaper = ratios is not None and min(ratios.values()) <= CHEAPER_FROM
    if ratios is not None:
        cost = f"{ratios['time']:.2f} of its time and {ratios['bytes']:.2f} of its bytes"
    elif "error" in latency:
        cost = "of unknown cost, as it could not be exported and timed"
    else:
        cost = f"of unknown cost, as {rival} is not in the model repository: make export puts it there, then try again"
    if better:
        sentence = f"better: {found}"
    elif not_worse and cheaper:
        sentence = f"not worse and cheaper: {found}, at least {low * 100:+.2f}; {cost}"
    else:
        sentence = (
            f"neither better (p below {SIGNIFICANT}) nor not worse (at least {-WORSE_AT_MOST * 100:+.2f} points) and "
            f"cheaper (at most {CHEAPER_FROM}): {found}, at least {low * 100:+.2f}; {cost}"
        )
    figures = {**comparison.as_dict(), "limits": {"p_value": SIGNIFICANT, "difference": -WORSE_AT_MOST}}
    figures |= {"cost_ratios": ratios, "cheaper_from": CHEAPER_FROM}
    return Gate("better", better or (not_worse and cheaper), sentence, figures)


def cost_ratios(latency: dict) -> dict[str, float] | None:
    """Candidate over rival: time per text alone, and bytes of the model file. None when either was not measured."""
    rival = latency.get("against")
    if not rival:
        return None
    time = latency["milliseconds_per_text"]["1"] / rival["milliseconds_per_text"]["1"]
    return {"time": round(time, 3), "bytes": round(latency["bytes"] / rival["bytes"], 3)}


def judge_behaviour(
    cases: Sequence[Case], passed: np.ndarray, rival: str | None, rival_passed: np.ndarray | None
) -> Gate:
    """The gate ``behaviour``; both arrays BOOL [cases], the rival's None where there is nobody to compare with."""
    counts = {"all": (int(passed.sum()), len(cases)), **count_by_kind(cases, passed)}
    reasons, kinds = [], {}
    for kind, (fine, total) in counts.items():
        floor = ALL_CASES_FLOOR if kind == "all" else 0.0 if kind in KINDS_WITHOUT_FLOOR else KIND_FLOOR
        kinds[kind] = {"passed": fine, "cases": total, "floor": floor}
        if fine < floor * total:
            reasons.append(f"{kind} {fine} of {total}, {floor:.0%} are asked for")
        if rival_passed is None:
            continue
        chosen = np.array([kind in ("all", case.kind) for case in cases])
        comparison = mcnemar(passed[chosen], rival_passed[chosen])
        kinds[kind] |= {"rival": int(rival_passed[chosen].sum()), "p_value": comparison.p_value}
        if comparison.difference < 0 and comparison.p_value < SIGNIFICANT:
            reasons.append(f"{kind} {fine} of {total} against {kinds[kind]['rival']} of {rival}")
    share = f"{counts['all'][0]} of {counts['all'][1]} cases"
    against = "" if rival_passed is None else f" ({kinds['all']['rival']} by {rival})"
    sentence = f"{share}{against}" + (f"; too few: {'; '.join(reasons)}" if reasons else "")
    failed_cases = [asdict(case) for case, fine in zip(cases, passed, strict=True) if not fine]
    return Gate("behaviour", not reasons, sentence, {"kinds": kinds, "failed_cases": failed_cases})


def judge_latency(latency: dict) -> Gate:
    figures = {**latency, "limit_milliseconds_alone": MILLISECONDS_ALONE}
    if "error" in latency:
        return Gate("latency", False, f"the checkpoint could not be exported and timed: {latency['error']}", figures)
    alone = latency["milliseconds_per_text"]["1"]
    ratios = cost_ratios(latency)
    sentence = (
        f"{alone:.2f} ms for one text alone, {MILLISECONDS_ALONE:g} are allowed; {latency['precision']}, "
        f"{latency['bytes'] / 1e6:.1f} MB"
    )
    if ratios is not None:
        sentence += f"; {ratios['time']:.2f} of the rival's time, {ratios['bytes']:.2f} of its bytes"
    figures["cost_ratios"] = ratios
    return Gate("latency", alone <= MILLISECONDS_ALONE, sentence, figures)


def judge_on_test(registry: "Registry", version: "Version", rival: Rival | None, latency: dict) -> Gate:
    if rival is None:
        return Gate("better", True, "there is no Champion and no served bundle to compare with", {})
    if set(rival.predictor.labels) != set(version.labels):
        sentence = (
            f"{rival.name} answers {', '.join(rival.predictor.labels)} and version {version.number} "
            f"{', '.join(version.labels)}: nothing to compare; keep models of other labels in a registry of their own "
            "(NUNCHI_REGISTERED_MODEL, NUNCHI_MODEL_REPOSITORY), or --force"
        )
        return Gate("better", False, sentence, {})
    own = registry.examination(version)
    theirs = registry.examination(rival.version) if rival.version else None
    asked_now = theirs is None or not same_rows(own, theirs)
    if asked_now:
        theirs = examine(rival.predictor, registry.dataset(version).test())
        if not same_rows(own, theirs):
            raise RegistryError(
                f"{version.metrics['dataset']} has other rows than when version {version.number} was registered; "
                "put the old files back, or train again on the new ones"
            )
    truth = names(version.labels, own.label)
    comparison = mcnemar(
        names(version.labels, own.predicted) == truth, names(rival.predictor.labels, theirs.predicted) == truth
    )
    gate = judge_comparison(comparison, rival.name, latency)
    gate.figures["rival_answers"] = "asked now" if asked_now else "kept since its registration"
    return gate


def judge_on_sentences(predictor: Predictor, rival: Rival | None) -> Gate:
    cases = read_cases()
    try:
        passed = run_cases(cases, predictor)
    except RegistryError as refusal:
        return Gate("behaviour", False, str(refusal), {})
    try:
        rival_passed = run_cases(cases, rival.predictor) if rival else None
    except RegistryError:  # it answers other labels, which the gate `better` says
        rival_passed = None
    return judge_behaviour(cases, passed, rival.name if rival else None, rival_passed)


def _bundle_of(champion: "Version", repository: Path) -> Path | None:
    """The exported artifact of a registered version, if the model repository holds one."""
    for manifest in sorted(repository.glob("*/*/manifest.json")):
        try:
            source = json.loads(manifest.read_text(encoding="utf-8"))["source"]
            found = (source["mlflow_run"], str(source["registry_version"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # whoever serves it says what is wrong with it
        if found == (champion.run_id, str(champion.number)):
            return manifest.parent
    return None
