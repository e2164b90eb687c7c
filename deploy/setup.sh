#!/usr/bin/env bash
# `make setup`: .venv with exactly what requirements.lock names. Does nothing when that is so already.
# `deploy/setup.sh airflow`: besides, .venv-airflow with what dags/requirements.lock names, for `make airflow`.
#
# torch comes from a folder of wheels where PIP_FIND_LINKS names one that holds it; otherwise uv picks the build that fits
# the machine: CUDA where there is a GPU, the CPU build where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
uv_version=0.13.9

fail() {
  echo "error: $*" >&2
  exit 2
}

[[ "$(uname -s)-$(uname -m)" == Linux-x86_64 ]] ||
  fail "this machine is $(uname -s) on $(uname -m), and the embedded Triton runs on Linux x86-64 only; use such a machine, or a virtual one"

python=""
for candidate in python3.11 python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[[ -n "$python" ]] || fail "no Python 3.11 on PATH; install it (Debian and Ubuntu: apt-get install python3.11 python3.11-venv libpython3.11)"

install_airflow() {
  local lock=dags/requirements.lock
  if cmp -s "$lock" .venv-airflow/installed.lock; then
    return
  fi
  echo "setup: making .venv-airflow, the $(wc -l <"$lock") packages of $lock"
  .venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv-airflow ||
    fail ".venv-airflow could not be made; see above"
  .venv/bin/uv pip install --quiet --python .venv-airflow/bin/python --no-deps --compile-bytecode --requirement "$lock" ||
    fail "the packages of $lock could not be installed; see above, then try again"
  cp "$lock" .venv-airflow/installed.lock
}

if cmp -s requirements.lock .venv/installed.lock; then
  [[ "${1:-}" != airflow ]] || install_airflow
  exit 0
fi

if [[ ! -x .venv/bin/uv ]]; then
  echo "setup: making .venv with $($python --version)"
  rm -rf .venv
  "$python" -m venv .venv 2>/dev/null || fail "$python cannot make a virtual environment; install its venv package (Debian: apt-get install python3.11-venv)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version" ||
    fail "uv could not be installed; is the package index reachable?"
fi

torch=$(grep '^torch==' requirements.lock)
torch_source=(--torch-backend=auto)
for folder in ${PIP_FIND_LINKS:-}; do
  export UV_FIND_LINKS="${UV_FIND_LINKS:+$UV_FIND_LINKS,}$folder"
  if compgen -G "$folder/${torch/==/-}*.whl" >/dev/null; then
    torch_source=()
  fi
done
echo "setup: installing $torch"
.venv/bin/uv pip install --quiet --python .venv/bin/python "${torch_source[@]}" "$torch" ||
  fail "$torch could not be installed; put its wheel into a folder and name that folder in PIP_FIND_LINKS"
echo "setup: installing the other $(($(wc -l <requirements.lock) - 1)) packages of requirements.lock"
# The lock is complete, so nothing is resolved again; compiled once here, no process compiles at start-up.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --compile-bytecode --requirement requirements.lock ||
  fail "the packages of requirements.lock could not be installed; see above, then try again"
cp requirements.lock .venv/installed.lock
[[ "${1:-}" != airflow ]] || install_airflow
