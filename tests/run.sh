#!/usr/bin/env bash
# `make test`: every test once, and what failed once more.
#
# Rooms whose tests start small servers of their own run in two processes; what looks at a loaded machine, drives a browser or
# starts the whole stack runs alone. A test that fails is asked again when nothing else runs: twice is red, once is told.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
together=(tests/test_house.py tests/test_security.py tests/deploy tests/export tests/gateway tests/server tests/training)

echo "tests: the tools that some of them need"
deploy/setup.sh airflow
deploy/chromium.sh >/dev/null
deploy/java.sh >/dev/null
deploy/prometheus/install.sh >/dev/null

echo "tests: ${together[*]}"
status=0
"$python" -m pytest --cache-clear --numprocesses 2 --dist loadfile "${together[@]}" || status=$?
echo "tests: all others"
"$python" -m pytest "${together[@]/#/--ignore=}" || status=$?
((status == 0)) && exit

((status == 1)) || exit "$status" # 1: tests failed; anything else is no matter of luck
echo "tests: what failed, once more"
"$python" -m pytest --last-failed --last-failed-no-failures none --maxfail 3
