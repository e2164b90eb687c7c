"""`make setup` on a machine it cannot serve: one sentence with the remedy, and nothing touched."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "deploy" / "setup.sh"


def run_setup(path: str, *what: str) -> subprocess.CompletedProcess:
    return subprocess.run([SETUP, *what], env={**os.environ, "PATH": path}, capture_output=True, text=True)


def test_a_set_up_checkout_is_left_alone_at_once():
    done = run_setup(os.environ["PATH"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_airflow_has_an_environment_of_its_own_left_alone_too():
    first = run_setup(os.environ["PATH"], "airflow")  # made here where nothing else has made it yet
    assert (first.returncode, first.stderr) == (0, "")
    again = run_setup(os.environ["PATH"], "airflow")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    frozen = subprocess.run(
        [ROOT / ".venv/bin/uv", "pip", "freeze", "--python", ROOT / ".venv-airflow/bin/python"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert frozen.stdout.splitlines() == (ROOT / "dags/requirements.lock").read_text(encoding="utf-8").splitlines()


def test_another_platform_is_one_sentence(tmp_path):
    uname = tmp_path / "uname"
    uname.write_text('#!/bin/sh\n[ "$1" = -s ] && echo Darwin || echo arm64\n')
    uname.chmod(0o755)
    done = run_setup(f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: this machine is Darwin on arm64, and the embedded Triton runs on Linux x86-64"
    )
    assert done.stderr.count("\n") == 1


def test_a_machine_without_python_3_11_is_one_sentence_that_says_what_to_install(tmp_path):
    for tool in ("bash", "env", "uname", "dirname", "cmp", "sed"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # a Python of another version fails the question for 3.11 the same way
    old.chmod(0o755)
    done = run_setup(str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no Python 3.11 on PATH; install it (")
