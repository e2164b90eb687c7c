"""The gates, each with figures worked out by hand: open, closed, and at their limits."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from tests.bundles import write_bundle
from training import promote
from training.behaviour import Case
from training.evaluate import PairedComparison, mcnemar
from training.promote import (
    MILLISECONDS_ALONE,
    Evidence,
    Gate,
    cost_ratios,
    find_rival,
    judge_behaviour,
    judge_comparison,
    judge_latency,
    measure_latency,
)


def measured(milliseconds: float, size: int, rival: tuple[float, int] | None = (2.0, 1000)) -> dict:
    against = rival and {"milliseconds_per_text": {"1": rival[0], "32": 1.0}, "bytes": rival[1]}
    return {
        "milliseconds_per_text": {"1": milliseconds, "32": 1.0},
        "bytes": size,
        "precision": "int8",
        "parity": {},
        "against": against,
    }


def compared(only_first: int, only_second: int, rows: int = 50_000) -> PairedComparison:
    first = np.zeros(rows, bool)
    second = np.zeros(rows, bool)
    first[:only_first] = True
    second[only_first : only_first + only_second] = True
    return mcnemar(first, second)


SAME_COST, CHEAPER_TIME, CHEAPER_BYTES = measured(2.0, 1000), measured(1.8, 1000), measured(2.4, 900)


@pytest.mark.parametrize(
    "only_first, only_second, latency, passed, word",
    [
        (600, 400, SAME_COST, True, "better: +0.40 points to the Champion on the same 50,000 test rows"),
        (600, 400, measured(50.0, 90_000), True, "better"),  # better may cost more
        (505, 500, SAME_COST, False, "neither better"),
        (505, 500, CHEAPER_TIME, True, "not worse and cheaper"),
        (500, 505, CHEAPER_BYTES, True, "1.20 of its time and 0.90 of its bytes"),
        (500, 505, measured(1.82, 950), False, "neither better"),  # 0.91 and 0.95: not cheap enough
        (400, 600, CHEAPER_TIME, False, "-0.40 points"),  # lower bound -0.52: too uncertain
        (400, 500, CHEAPER_TIME, True, "at least -0.32"),
        (5, 0, SAME_COST, False, "p = 0.062"),
        (6, 0, SAME_COST, True, "p = 0.031"),
        (505, 500, measured(1.0, 10, rival=None), False, "as the Champion is not in the model repository: make export"),
        (505, 500, {"error": "no ONNX"}, False, "of unknown cost, as it could not be exported and timed"),
    ],
)
def test_better_or_not_worse_and_cheaper(only_first, only_second, latency, passed, word):
    gate = judge_comparison(compared(only_first, only_second), "the Champion", latency)
    assert (gate.name, gate.passed) == ("better", passed), gate.sentence
    assert word in gate.sentence
    assert (gate.figures["only_first"], gate.figures["limits"]["difference"]) == (only_first, -0.005)


def test_the_limit_of_not_worse_is_half_a_point_below():
    def low(difference):
        return PairedComparison(1000, 10, 10, 1.0, 0.0, (difference, 0.01))

    assert judge_comparison(low(-0.0049), "it", CHEAPER_TIME).passed
    assert not judge_comparison(low(-0.0051), "it", CHEAPER_TIME).passed


def test_latency_has_one_limit_and_tells_the_ratio():
    gate = judge_latency(measured(3.0, 2000))
    assert gate.passed
    assert "1.50 of the rival's time, 2.00 of its bytes" in gate.sentence
    assert judge_latency(measured(MILLISECONDS_ALONE, 1)).passed
    gate = judge_latency(measured(MILLISECONDS_ALONE + 1, 1, rival=None))
    assert not gate.passed
    assert "101.00 ms for one text alone, 100 are allowed" in gate.sentence
    assert gate.figures["cost_ratios"] is cost_ratios(measured(1, 1, rival=None)) is None


def suite(passed: dict[str, int], total: int = 20) -> tuple[list[Case], np.ndarray]:
    cases = [Case(kind, f"{kind} {number}", "positive", "") for kind in passed for number in range(total)]
    return cases, np.array([number < passed[kind] for kind in passed for number in range(total)])


def test_behaviour_has_a_floor_for_all_cases_and_for_each_kind_but_irony():
    cases, passed = suite({"plain": 20, "slang": 14, "irony": 14})  # 48 of 60 is 80 %, 14 of 20 is 70 %
    assert judge_behaviour(cases, passed, None, None).passed
    cases, passed = suite({"plain": 20, "slang": 13, "irony": 20})
    gate = judge_behaviour(cases, passed, None, None)
    assert not gate.passed
    assert gate.sentence == "53 of 60 cases; too few: slang 13 of 20, 70% are asked for"
    assert gate.figures["kinds"]["slang"] == {"passed": 13, "cases": 20, "floor": 0.7}
    assert gate.figures["failed_cases"][0]["text"] == "slang 13"
    cases, passed = suite({"plain": 20, "slang": 20, "irony": 7})
    assert "all 47 of 60, 80% are asked for" in judge_behaviour(cases, passed, None, None).sentence


def test_behaviour_must_not_fall_behind_the_rival_in_irony_either():
    cases, passed = suite({"plain": 20, "slang": 20, "irony": 10})
    _, rival = suite({"plain": 20, "slang": 20, "irony": 15})  # five of five: p = 0.0625
    assert judge_behaviour(cases, passed, "the Champion", rival).passed
    _, rival = suite({"plain": 20, "slang": 20, "irony": 16})  # six of six: p = 0.03125
    gate = judge_behaviour(cases, passed, "the Champion", rival)
    assert not gate.passed
    assert "irony 10 of 20 against 16 of the Champion" in gate.sentence
    assert "(56 by the Champion)" in gate.sentence
    assert judge_behaviour(cases, rival, "the Champion", passed).passed


def test_a_checkpoint_that_cannot_be_exported_closes_the_latency_gate_with_the_reason(tmp_path):
    latency = measure_latency(tmp_path / "nothing", None)
    assert str(tmp_path / "nothing") in latency["error"]
    gate = judge_latency(latency)
    assert not gate.passed
    assert gate.sentence.startswith("the checkpoint could not be exported and timed: ")
    assert "\n" not in gate.sentence
    assert "export.latency ended" not in gate.sentence  # it is a refusal of its own
    assert cost_ratios(latency) is None


@pytest.mark.parametrize(
    "module, code, reason",
    [
        (
            "export/latency.py",
            "raise ImportError('libcudart.so.13: cannot open shared object file')",
            r"python -m export\.latency ended with status 1: ImportError: libcudart\.so\.13: cannot open",
        ),
        (
            "sitecustomize.py",
            "import os, sys; sys.stderr.write('timing on 2 thread(s)\\n'); os.kill(os.getpid(), 9)",
            r"python -m export\.latency was killed by SIGKILL, perhaps for want of memory",
        ),
    ],
)
def test_where_the_command_itself_cannot_run_the_sentence_carries_why(module, code, reason, tmp_path, monkeypatch):
    (tmp_path / module).parent.mkdir(exist_ok=True)
    (tmp_path / module).write_text(code + "\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(promote, "ROOT", tmp_path)  # the working folder comes before PYTHONPATH
    latency = measure_latency(tmp_path / "checkpoint", None)
    gate = judge_latency(latency)
    assert re.search(reason, gate.sentence)
    assert not gate.passed
    assert latency["output"]


def test_without_a_champion_the_served_bundle_is_the_rival_and_without_one_nobody(tmp_path):
    registry = SimpleNamespace(champion=lambda: None, settings=SimpleNamespace(model_repository=tmp_path))
    assert find_rival(registry) is None
    bundle = write_bundle(tmp_path)
    rival = find_rival(registry)
    assert (rival.name, rival.version, rival.bundle) == ("the served bundle, version 1", None, bundle)
    low, high = rival.predictor.probabilities(["싫다", "좋다"])[:, 1]
    assert low < 0.5 < high


def test_evidence_is_json_and_names_what_failed():
    gates = [Gate("better", True, "better: …", {"p_value": 0.01}), Gate("latency", False, "slow", {})]
    evidence = Evidence(3, "the Champion, version 1", 1, "NSMC test", "2026-11-22T12:00:00+00:00", gates)
    assert evidence.failed == ["latency"]
    document = json.loads(json.dumps(evidence.as_dict()))
    assert document["passed"] is False
    assert document["gates"][0] == {
        "name": "better",
        "passed": True,
        "sentence": "better: …",
        "figures": {"p_value": 0.01},
    }
