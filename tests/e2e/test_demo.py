"""`make demo`: the whole loop, from the bundled reviews to an answer of the served model, by the commands of a user."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy import demo
from deploy.settings import StartError

ROOT = Path(__file__).resolve().parent.parent.parent


def checkout() -> dict[str, float]:
    return {str(file): file.stat().st_mtime for file in (ROOT / "model_repository").rglob("*")}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(the folder it left, what it printed, the checkout's own model before)."""
    before = checkout()
    var = tmp_path_factory.mktemp("demo")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUNCHI_")}
    done = subprocess.run(
        [sys.executable, "-m", "deploy.demo"],
        cwd=ROOT,
        env={**inherited, "NUNCHI_VAR": str(var), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return var / "demo", done.stdout, before


@pytest.mark.timeout(1500)
def test_the_best_trial_of_the_search_becomes_the_champion(ran):
    folder, *_ = ran
    search = json.loads((folder / "searches" / "demo" / "search.json").read_text(encoding="utf-8"))
    registry = json.loads((folder / "model_registry.json").read_text(encoding="utf-8"))
    champion = next(version for version in registry["versions"] if version["stage"] == "Champion")
    assert search["best"] and search["finished"]
    assert champion["number"] == 1
    assert champion["metrics"]["f1"] > 0.7


def test_what_is_exported_is_that_champion(ran):
    folder, *_ = ran
    registry = json.loads((folder / "model_registry.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "model_repository/sentiment/1/manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"]["registry_version"] == "1"
    assert manifest["source"]["mlflow_run"] == registry["versions"][0]["run_id"]
    assert manifest["metrics"]["f1"] == registry["versions"][0]["metrics"]["f1"]


def test_the_served_model_answers_in_korean(ran):
    _, printed, _ = ran
    answers = dict(re.findall(r"^(긍정|부정) 0\.\d\d  (.+?) *$", printed, re.MULTILINE))
    assert set(answers) == {"긍정", "부정"}
    assert len(re.findall(r"^(?:긍정|부정) 0\.\d\d  ", printed, re.MULTILINE)) == len(demo.SENTENCES)


def test_it_ends_with_a_table_of_its_steps_and_where_to_look(ran):
    folder, printed, _ = ran
    table = printed[printed.index("the whole loop in") :]
    for step in ("search", "register", "promote", "export", "serve and predict"):
        assert re.search(rf"^│ {step} +│ +\d+ │", table, re.MULTILINE), step
    assert str(folder / "model_registry.json") in table
    assert "make mlflow" in table and "make up" in table


def test_it_leaves_no_process_behind(ran):
    folder, *_ = ran
    mine = [p for p in psutil.process_iter(["cmdline", "environ"]) if _belongs_to(p, str(folder))]
    assert mine == []


def test_the_checkout_keeps_its_own_model(ran):
    before, after = ran[2], checkout()
    assert after == before


def test_a_step_that_fails_ends_it_and_names_the_command(tmp_path):
    run = demo.Demo(tmp_path, dict.fromkeys(demo.PORTS, 1))
    with pytest.raises(StartError, match=r"python -m training\.registry promote 7 ended with status 2"):
        run.run("training.registry", "promote", "7")


def _belongs_to(process: psutil.Process, folder: str) -> bool:
    environment = process.info["environ"] or {}
    return process.status() != psutil.STATUS_ZOMBIE and environment.get("NUNCHI_VAR") == folder
