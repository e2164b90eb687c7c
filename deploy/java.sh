#!/usr/bin/env bash
# Print the path of a Java for TorchServe, 17 or newer; as root, install Debian's where it is missing.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

new_enough() {
  command -v java >/dev/null || return 1
  local version
  version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -1)
  ((${version:-0} >= 17))
}

package=openjdk-17-jre-headless
if ! new_enough; then
  command -v apt-get >/dev/null || fail "TorchServe needs Java 17 or newer, and there is no apt-get to install it; install it"
  ((EUID == 0)) || fail "TorchServe needs Java 17 or newer; install it: sudo apt-get install $package"
  {
    apt-get update --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends "$package"
  } >&2 || fail "$package could not be installed (see above); is the package index reachable?"
fi
new_enough || fail "the java on PATH is older than 17 although $package is installed; put its folder first on PATH"
command -v java
