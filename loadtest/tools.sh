#!/usr/bin/env bash
# Prints the folder that holds `wrk` and `perf_analyzer`, load generators that nobody here wrote. They are unpacked under
# var/tools (needs no root): wrk from Debian's package, perf_analyzer from the last wheel of tritonclient whose binary
# runs on Debian 12. Each is a small script that finds the libraries it came with.
set -euo pipefail
cd "$(dirname "$0")/.."
target="$(realpath -m "${NUNCHI_VAR:-var}")/tools/generators"
libraries="$PWD/.venv/lib/python3.11/site-packages/nvidia_pytriton.libs"

fail() {
  echo "error: $*" >&2
  exit 2
}

script() { # name, library path, program
  printf '#!/usr/bin/env bash\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$2" "$3" >"$1"
  chmod +x "$1"
}

if [[ ! -x "$target/wrk" ]]; then
  command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    command -v wrk >/dev/null || fail "neither wrk nor apt-get is on PATH; install wrk"
  mkdir -p "$target"
  if command -v wrk >/dev/null; then
    ln -sf "$(command -v wrk)" "$target/wrk"
  else
    work=$(mktemp -d "$target.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && apt-get download wrk libluajit-5.1-2 libluajit-5.1-common >apt.log 2>&1) ||
      fail "apt-get could not download wrk ($(grep -m 1 '^E:' "$work/apt.log" || tail -1 "$work/apt.log")); run apt-get update as root, or put wrk on PATH"
    for package in "$work"/*.deb; do
      dpkg --extract "$package" "$work/root"
    done
    rm -rf "$target/wrk-root"
    mv "$work/root" "$target/wrk-root"
    script "$target/wrk" "$target/wrk-root/usr/lib/x86_64-linux-gnu" "$target/wrk-root/usr/bin/wrk"
  fi
fi
if [[ ! -x "$target/perf_analyzer" ]]; then
  mkdir -p "$target/wheel" "$target/libraries"
  .venv/bin/python -m pip download --quiet --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$target/wheel" tritonclient==2.51.0 >&2 || fail "tritonclient 2.51.0 could not be downloaded; is the package index reachable?"
  .venv/bin/python -m zipfile --extract "$target"/wheel/tritonclient-2.51.0-*.whl "$target/wheel"
  program="$target/wheel/tritonclient-2.51.0.data/data/bin/perf_analyzer"
  chmod +x "$program"
  ln -sf "$libraries"/libb64-*.so.0d "$target/libraries/libb64.so.0d"
  ln -sf "$libraries"/libcudart-*.so.12.* "$target/libraries/libcudart.so.12"
  script "$target/perf_analyzer" "$target/libraries" "$program"
fi
echo "$target"
