"""Under load: real stacks, a judged stream of requests, and figures that are kept.

Short by default; `--full` runs the lengths whose figures the README quotes.  A test records what it measured with the
`figures` fixture; the last figures of each test, short or full, stand in `var/chaos/figures.json` and, as a table, in
`var/chaos/figures.md`.  Figures never decide a test.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.chaos.versions import two_versions
from tests.stack_process import ROOT, Stack, new_stack

FOLDER = ROOT / "var" / "chaos"


class Figures:
    """What the tests of this run measured; each row is kept until the same test measures the same figure again."""

    def __init__(self, full: bool) -> None:
        self.rows: list[dict] = []
        self._run = {
            "form": "full" if full else "short",
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "commit": _commit(),
            "cores": len(os.sched_getaffinity(0)),
        }

    def record(self, scenario: str, figure: str, value: float | str, unit: str = "", note: str = "") -> None:
        row = {"scenario": scenario, "figure": figure, "value": value, "unit": unit, "note": note, **self._run}
        self.rows.append(row)
        kept = _read(FOLDER / "figures.json")
        kept = [each for each in kept if _identity(each) != _identity(row)] + [row]
        kept.sort(key=lambda each: (each["form"], each["scenario"]))
        FOLDER.mkdir(parents=True, exist_ok=True)
        _replace(FOLDER / "figures.json", json.dumps(kept, ensure_ascii=False, indent=1) + "\n")
        _replace(FOLDER / "figures.md", f"{_machine()}\n\n{table(kept)}\n")


@pytest.fixture(scope="session")
def full(request) -> bool:
    """Whether the full lengths were asked for."""
    return request.config.getoption("--full")


@pytest.fixture(scope="session")
def figures(request, full) -> Figures:
    request.config.stash[KEY] = Figures(full)
    return request.config.stash[KEY]


KEY = pytest.StashKey[Figures]()


def pytest_terminal_summary(terminalreporter, config):
    if (figures := config.stash.get(KEY, None)) and figures.rows:
        terminalreporter.section(f"figures ({FOLDER.relative_to(ROOT)}/figures.md)")
        terminalreporter.write_line(f"{_machine()}\n\n{table(figures.rows)}")


def table(rows: list[dict]) -> str:
    lines = ["| scenario | figure | value | note | measured |", "|---|---|---|---|---|"]
    for row in rows:
        value = f"{row['value']:.4g}" if isinstance(row["value"], float) else row["value"]
        run = f"{row['form']}, {row['cores']} cores, {row['commit']}, {row['date']}"
        lines.append(f"| {row['scenario']} | {row['figure']} | {value} {row['unit']} | {row['note']} | {run} |")
    return "\n".join(lines)


@pytest.fixture(scope="session")
def running_stack(tmp_path_factory) -> Iterator[Callable[..., object]]:
    """`with running_stack(repository, NUNCHI_…="…") as stack:` over a copy of that repository, ready to be asked."""

    @contextmanager
    def run(repository: Path = ROOT / "model_repository", **settings: str) -> Iterator[Stack]:
        stack = new_stack(tmp_path_factory.mktemp("stack"), repository, **settings)
        stack.start()
        try:
            stack.wait_ready()
            yield stack
        finally:
            stack.end()

    return run


def _of_a_module_when_full(fixture_name: str, config: pytest.Config) -> str:
    return "module" if config.getoption("--full") else "session"


@pytest.fixture(scope=_of_a_module_when_full)
def shipped_stack(running_stack, tmp_path_factory) -> Iterator[Stack]:
    """Two versions of the shipped model, both loaded; for tests that leave the stack whole. Fresh for each module where
    the figures count, one for all where time does."""
    with running_stack(two_versions(tmp_path_factory.mktemp("shipped") / "models")) as stack:
        yield stack


def _identity(row: dict) -> tuple[str, str, str]:
    return row["form"], row["scenario"], row["figure"]


def _read(file: Path) -> list[dict]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def _replace(file: Path, text: str) -> None:
    draft = file.with_suffix(".new")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return described.stdout.strip() or "no commit"


def _machine() -> str:
    models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")]  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{models[0] if models else 'unknown processor'}, {memory:.0f} GiB; generator and stack share the cores"
