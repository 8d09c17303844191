#!/bin/sh
# Run Python with the compiled modules under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#     sh tests/support/sanitize.sh <python> -m pytest tests/unit
#     WSGATE_DEFECT=length sh tests/support/sanitize.sh <python> ...      one planted, see defects.py
#
# It runs in a copy of the files of git, so that the development build does not change. CPython allocates with
# malloc here, because its own allocator would hide an access behind the end of an object from the sanitizer.
# Leaks are not detected, because the interpreter leaves much memory at its end; the tests count the memory of
# the reactor.
set -eu
python=$1
shift
root=$PWD
copy=$root/build/sanitize${WSGATE_DEFECT:+-$WSGATE_DEFECT}
asan=$(gcc -print-file-name=libasan.so)
ubsan=$(gcc -print-file-name=libubsan.so)
if [ ! -e "$asan" ] || [ ! -e "$ubsan" ]; then
    echo "sanitize: gcc has no libasan or no libubsan here" >&2
    exit 1
fi
case $python in
/*) ;;
*) python=$root/$python ;;
esac

# A copy for a defect begins as the sanitized build, where there is one: only the defect is compiled.
if [ ! -e "$copy" ] && [ -d "$root/build/sanitize" ]; then
    cp -a "$root/build/sanitize" "$copy"
fi
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --preserve=timestamps -t "$copy"
cd "$copy"
if [ -n "${WSGATE_DEFECT:-}" ]; then
    "$python" -m tests.support.defects --plant "$WSGATE_DEFECT"
fi
WSGATE_SANITIZE=1 "$python" setup.py --quiet build_ext --inplace >build.log 2>&1 || {
    cat build.log >&2
    exit 1
}
export PYTHONMALLOC=malloc LD_PRELOAD="$asan $ubsan"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:handle_segv=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:abort_on_error=1
# The modules must be the sanitized ones, or nothing was tested.
"$python" -c "
import pathlib, wsgate.reactor.loop
file = pathlib.Path(wsgate.reactor.loop.__file__)
assert pathlib.Path.cwd() in file.parents, file
assert 'libasan' in pathlib.Path('/proc/self/maps').read_text()
"
exec "$python" "$@"
