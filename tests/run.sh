#!/usr/bin/env bash
# `make test`: every test once, and what failed once more.
#
# Two processes take one file after the other, the longest first; what looks at a loaded machine (tests/chaos) has it alone.
# A test that fails is asked again when nothing else runs: twice is red, once is told.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python

echo "tests: the tools that some of them need"
deploy/setup.sh airflow
deploy/chromium.sh >/dev/null
deploy/java.sh >/dev/null
deploy/prometheus/install.sh >/dev/null

status=0
echo "tests: two at a time"
"$python" -m pytest --cache-clear --numprocesses 2 --dist loadfile --no-loadscope-reorder --ignore=tests/chaos || status=$?
echo "tests: tests/chaos, alone"
"$python" -m pytest tests/chaos || status=$?
((status == 0)) && exit

((status == 1)) || exit "$status" # 1: tests failed; anything else is no matter of luck
echo "tests: what failed, once more"
"$python" -m pytest --last-failed --last-failed-no-failures none --maxfail 3
