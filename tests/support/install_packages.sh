#!/bin/sh
# Install Debian packages where that is allowed (root, or sudo without a password). Otherwise print one line with
# the packages to install, and fail. Progress goes to standard error.
# Usage: install_packages.sh PACKAGE...
set -eu

as_root=
if test "$(id -u)" != 0; then
    as_root="sudo -n"
fi
if command -v apt-get >/dev/null && { test -z "$as_root" || $as_root true 2>/dev/null; }; then
    # An update that fails for one source must not stop an installation that works without it.
    $as_root apt-get -q -o DPkg::Lock::Timeout=300 update >&2 || true
    echo "installing: $*" >&2
    # RUNLEVEL=1: no service that comes with a package is started.
    $as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "$@" >&2 && exit 0
fi
echo "please install, then try again: $*" >&2
exit 1
