#!/usr/bin/env bash
# `make audit`: the known vulnerabilities of every package in requirements.lock, asked of osv.dev, or of the OSV API named
# as the one argument. Exit status 1 when there is one, 2 when nothing could be asked: silence is never good news.
set -euo pipefail
cd "$(dirname "$0")/.."
words=$(mktemp)
trap 'rm -f "$words"' EXIT
status=0
.venv/bin/python -m pip_audit --vulnerability-service osv ${1:+--osv-url "$1"} \
  --requirement requirements.lock --no-deps --disable-pip --progress-spinner off 2>"$words" || status=$?
if grep -q '^Traceback' "$words"; then
  echo "error: could not ask the vulnerability service ($(tail -n 1 "$words")); nothing is known" >&2
  exit 2
fi
cat "$words" >&2
exit "$status"
