"""The house as README.md, Makefile and .env.example describe it is the house that is there."""

import re
import subprocess
from pathlib import Path

import dags.settings
import deploy.settings
import export.settings
import gateway.settings
import loadtest.settings
import server.settings
import training.settings
import ui.settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ["training", "export", "server", "gateway", "ui", "loadtest", "dags", "deploy"]
SETTINGS = [room.settings.Settings for room in (training, export, server, gateway, ui, loadtest, dags, deploy)]


def tree() -> set[str]:
    """The paths that the tree of the README names."""
    block = re.search(r"## The house\n\n```\n(.*?)```", README, re.DOTALL)[1]
    paths, folders = set(), []
    for line in block.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name.rstrip("/")]
        paths.add("/".join(folders))
    return paths


def test_the_readme_names_every_module_and_nothing_that_is_not_there():
    modules = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if path.name not in ("__init__.py", "settings.py", "errors.py")
    }
    named = tree()
    assert modules - named == set()
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_every_make_verb_in_the_readme_is_in_the_makefile_and_listed_by_make():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    verbs = set(re.findall(r"^  make (\w+) ", listed, re.MULTILINE))
    contract = "setup up down demo train promote export rollback triton gateway ui mlflow airflow collect test lint"
    assert set(contract.split()) <= verbs
    assert set(re.findall(r"^\$? ?make (\w+)", README, re.MULTILINE)) <= verbs


def test_the_env_example_lists_every_setting_of_every_room_with_its_default():
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^# ((?:NUNCHI|RAY|SLACK)_[A-Z_]+)=(\S*)", example, re.MULTILINE))
    known: dict[str, str] = {}
    for settings in SETTINGS:
        for name, field in settings.model_fields.items():
            variable = name.upper() if field.validation_alias else f"NUNCHI_{name.upper()}"
            known[field.validation_alias or variable] = "" if field.default is None else str(field.default)
    containers = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    known = dict.fromkeys(re.findall(r"\$\{(NUNCHI_\w+):\?", containers), "") | known
    assert set(shown) == set(known)
    for variable, default in known.items():
        assert shown[variable] in (default, default.removesuffix(".0")), variable


def test_the_same_setting_has_the_same_default_in_every_room():
    defaults: dict[str, set[str]] = {}
    for settings in SETTINGS:
        for name, field in settings.model_fields.items():
            defaults.setdefault(name, set()).add(str(field.default))
    assert {name: values for name, values in defaults.items() if len(values) > 1} == {}


def test_shell_scripts_stop_at_the_first_error():
    for script in (ROOT / ".ci" / "run", *(ROOT / "deploy").rglob("*.sh")):
        assert "set -euo pipefail" in script.read_text(encoding="utf-8")
