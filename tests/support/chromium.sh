#!/bin/sh
# Prints the path of a Chromium for the tests of pages. One that is missing is installed with apt-get where
# that is allowed (root, or sudo that asks nothing); else one line says what to install, and it fails.
# Usage: chromium.sh
set -eu

find_chromium() {
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" && return 0
    done
    return 1
}

find_chromium && exit 0

as_root=
if test "$(id -u)" != 0; then
    as_root="sudo -n"
fi
if command -v apt-get >/dev/null && { test -z "$as_root" || $as_root true 2>/dev/null; }; then
    echo "installing: chromium" >&2
    # An update that fails for one source must not stop an installation that works without it.
    $as_root apt-get -q update >&2 || true
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install chromium >&2 || true
fi

if ! find_chromium; then
    echo "please install Chromium, then try again: apt-get install chromium" >&2
    exit 1
fi
