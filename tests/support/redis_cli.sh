#!/bin/sh
# Prints the path of a redis-cli or valkey-cli for tests of the bus. One that is missing is installed with
# apt-get where that is allowed (root, or sudo that asks nothing); else one line says what to install, and
# it fails.
# Usage: redis_cli.sh
set -eu

find_cli() {
    for name in redis-cli valkey-cli; do
        command -v "$name" && return 0
    done
    return 1
}

find_cli && exit 0

as_root=
if test "$(id -u)" != 0; then
    as_root="sudo -n"
fi
if command -v apt-get >/dev/null && { test -z "$as_root" || $as_root true 2>/dev/null; }; then
    # Newer distributions have it under the other name.
    for package in redis-tools valkey-tools; do
        echo "installing: $package" >&2
        # An update that fails for one source must not stop an installation that works without it.
        $as_root apt-get -q update >&2 || true
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$package" >&2 \
            && break
    done
fi

if ! find_cli; then
    echo "please install redis-cli, then try again: apt-get install redis-tools" >&2
    exit 1
fi
