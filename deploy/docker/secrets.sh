#!/usr/bin/env bash
# Gives each secret of docker-compose.yml that .env does not have yet a random value there; run it before the first
# `docker compose up`, as often as you like.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 077
touch .env
[[ -z "$(tail -c 1 .env)" ]] || echo >>.env # a last line without its end

for name in $(grep -o '\${NUNCHI_[A-Z_]*:?' docker-compose.yml | tr -d '${:?' | sort -u); do
  if ! grep -q "^$name=" .env; then
    echo "$name=$(od -An -N 24 -tx1 /dev/urandom | tr -d ' \n')" >>.env
    echo "$name is new"
  fi
done
grep -q '^COMPOSE_PROFILES=' .env || echo 'COMPOSE_PROFILES=cpu' >>.env
