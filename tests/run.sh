#!/usr/bin/env bash
# `make test`: every test once, and what failed once more.
#
# Two processes take one file after the other: first of the rooms that start small servers of their own, then of those that
# drive a browser or the whole stack (which do not bear Scrapy in their process). What looks at a loaded machine has it alone.
# A test that fails is asked again when nothing else runs: twice is red, once is told.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
# The longest first, so that neither process ends long before the other.
small=(tests/training tests/export tests/gateway tests/server tests/deploy tests/test_house.py tests/test_security.py)
large=(tests/e2e/test_loop.py tests/e2e tests/dags tests/loadtest tests/ui)
# Models of tests are so small that the threads of one operator would mostly wait for each other.
export OMP_NUM_THREADS=1

echo "tests: the tools that some of them need"
deploy/setup.sh airflow
deploy/chromium.sh >/dev/null
deploy/java.sh >/dev/null
deploy/prometheus/install.sh >/dev/null

two_at_a_time() {
  echo "tests: two at a time: $*"
  "$python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
}

status=0
worst() { (($1 <= status)) || status=$1; } # a later group must not cover up how an earlier one ended
two_at_a_time --cache-clear "${small[@]}" || worst $?
two_at_a_time "${large[@]}" || worst $?
echo "tests: all others"
"$python" -m pytest "${small[@]/#/--ignore=}" "${large[@]/#/--ignore=}" || worst $?
((status == 0)) && exit

((status == 1)) || exit "$status" # 1: tests failed; anything else is no matter of luck
echo "tests: what failed, once more"
"$python" -m pytest --last-failed --last-failed-no-failures none --maxfail 3
