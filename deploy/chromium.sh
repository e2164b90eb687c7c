#!/usr/bin/env bash
# Print the path of a Chromium for the browser tests; as root, install Debian's, and a Korean font, where they are missing.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

browser() {
  command -v chromium || command -v chromium-browser || command -v google-chrome
}

korean_font() {
  command -v fc-list >/dev/null && [[ -n "$(fc-list :lang=ko family)" ]]
}

missing=()
browser >/dev/null || missing+=(chromium)
korean_font || missing+=(fontconfig fonts-noto-cjk)
if ((${#missing[@]})); then
  command -v apt-get >/dev/null ||
    fail "the browser tests need ${missing[*]}, and there is no apt-get to install them; install them and try again"
  ((EUID == 0)) || fail "the browser tests need ${missing[*]}; install them: sudo apt-get install ${missing[*]}"
  {
    apt-get update --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends "${missing[@]}"
  } >&2 || fail "${missing[*]} could not be installed (see above); is the package index reachable?"
fi
browser || fail "no chromium on PATH although its package is installed; add its folder to PATH"
