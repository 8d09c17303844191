#!/bin/sh
# Ensure that the given interpreter can make environments and compile: it needs a C compiler, the headers of the C
# library and of Python, and the module venv. Missing packages are installed with apt-get where that is allowed
# (root, or sudo without a password). Otherwise print one line with the packages to install, and fail.
# Usage: system_packages.sh PYTHON
set -eu
python=$1

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "wsgate needs CPython 3.11 or later, and '$python' is not: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

missing_packages() {
    packages=
    "$python" -c 'import venv, ensurepip' 2>/dev/null || packages="$packages python$version-venv"
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    test -f "$headers/Python.h" || packages="$packages python$version-dev"
    command -v "${CC:-cc}" >/dev/null || packages="$packages gcc"
    # gcc alone does not install the headers of the C library.
    echo '#include <stdlib.h>' | "${CC:-cc}" -E - >/dev/null 2>&1 || packages="$packages libc6-dev"
    echo $packages
}

missing=$(missing_packages)
test -n "$missing" || exit 0

# Packages of Debian are for the interpreter of Debian only.
base=$("$python" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')
case "$missing" in
*python*)
    if test "$base" != /usr; then
        echo "'$python' lacks its headers or its venv module; take a complete one: make PYTHON=..." >&2
        exit 1
    fi ;;
esac

sh "$(dirname "$0")/install_packages.sh" $missing

missing=$(missing_packages)
if test -n "$missing"; then
    echo "still missing after the installation: $missing" >&2
    exit 1
fi
