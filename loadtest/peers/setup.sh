#!/usr/bin/env bash
# `make bench-peers`: .venv-peers with infinity, whose packages do not go together with ours. Does nothing when it is so.
set -euo pipefail
cd "$(dirname "$0")/../.."
lock=loadtest/peers/requirements.lock

if cmp -s "$lock" .venv-peers/installed.lock; then
  exit 0
fi
for folder in ${PIP_FIND_LINKS:-}; do
  export UV_FIND_LINKS="${UV_FIND_LINKS:+$UV_FIND_LINKS,}$folder"
done
torch=$(grep '^torch==' "$lock")
source=(--torch-backend=cpu)
for folder in ${PIP_FIND_LINKS:-}; do
  if compgen -G "$folder/${torch/==/-}*.whl" >/dev/null; then
    source=()
  fi
done
echo "setup: making .venv-peers"
.venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv-peers
.venv/bin/uv pip install --quiet --python .venv-peers/bin/python "${source[@]}" "$torch"
.venv/bin/uv pip install --quiet --python .venv-peers/bin/python --no-deps --compile-bytecode --requirement "$lock"
cp "$lock" .venv-peers/installed.lock
