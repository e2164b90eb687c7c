#!/usr/bin/env bash
# Prints the folder that holds `prometheus` and `promtool`: the one on PATH, else the Debian package unpacked under
# var/tools (needs no root: the two programs want nothing but libc).
set -euo pipefail
cd "$(dirname "$0")/../.."
target="$(realpath -m "${NUNCHI_VAR:-var}")/tools/prometheus"

fail() {
  echo "error: $*" >&2
  exit 2
}

if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
  dirname "$(command -v prometheus)"
  exit 0
fi
if [[ ! -x "$target/usr/bin/promtool" ]]; then
  command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    fail "neither prometheus nor apt-get is on PATH; install Prometheus 2.42 or newer and put prometheus and promtool on PATH"
  mkdir -p "$(dirname "$target")"
  work=$(mktemp -d "$target.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  (cd "$work" && apt-get download prometheus >apt.log 2>&1) ||
    fail "apt-get could not download prometheus ($(grep -m 1 '^E:' "$work/apt.log" || tail -1 "$work/apt.log")); run apt-get update as root, or put prometheus and promtool on PATH"
  dpkg --extract "$work"/prometheus_*.deb "$work/root"
  rm -rf "$target"
  mv "$work/root" "$target"
fi
echo "$target/usr/bin"
