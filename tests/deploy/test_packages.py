"""The groups of pyproject.toml: what a room imports, and no more than it should have to carry into its container."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
LOCK = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
}
ROOMS = ["training", "export", "server", "gateway", "ui", "loadtest", "deploy"]
LIGHT = ["server", "gateway", "ui", "loadtest", "deploy"]
HEAVY = {"torch", "transformers", "mlflow", "mlflow-skinny", "scikit-learn", "triton", "nvidia-cudnn-cu12"}
INSIDE_TRITON = {"triton_python_backend_utils"}  # what Triton's stub brings along


def requirements(group: str) -> Iterator[Requirement]:
    for each in GROUPS[group]:
        if isinstance(each, dict):
            yield from requirements(each["include-group"])
        else:
            yield Requirement(each)


def brings(group: str) -> set[str]:
    """The canonical names of all distributions that installing the group installs, by what is installed here."""
    found: set[tuple[str, str]] = set()
    waiting = list(requirements(group))
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in found:
                found.add((name, extra))
                needs = map(Requirement, metadata.requires(name) or [])
                waiting += [each for each in needs if not each.marker or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def imported(room: str) -> set[str]:
    """The top-level names that the room imports, anywhere, from outside of the standard library and this project.

    Not those of loadtest/peers: the programs there are run by their paths, in environments of others.
    """
    names = set()
    for file in {*(ROOT / room).rglob("*.py")} - {*(ROOT / "loadtest" / "peers").iterdir()}:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - set(ROOMS) - INSIDE_TRITON


@pytest.mark.parametrize("room", ROOMS)
def test_the_group_of_a_room_brings_everything_the_room_imports(room):
    there = brings(room)
    by_module = metadata.packages_distributions()
    missing = {
        module
        for module in imported(room)
        if not there & {canonicalize_name(each) for each in by_module.get(module, [])}
    }
    assert missing == set()


@pytest.mark.parametrize("room", LIGHT)
def test_no_serving_room_carries_torch_transformers_or_mlflow(room):
    assert brings(room) & HEAVY == set()
    assert brings("training") & HEAVY  # so that the names above are still what they are called


def test_the_lock_pins_what_the_groups_bring_and_nothing_else():
    everything = set().union(*map(brings, GROUPS))
    assert everything - set(LOCK) == set()
    assert set(LOCK) - everything == set()
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.+]*", version) for version in LOCK.values())
    assert brings("dev") == everything  # which is what `make lock` asks for
