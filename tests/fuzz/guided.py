"""Coverage-guided fuzzing of a compiled reader: libFuzzer and AddressSanitizer around a Python interpreter.

    python -m tests.fuzz.guided --seconds 600          the bus reader; ends with 1 when it has a fault

The module is compiled once more with clang and instrumented, below build/guided; the development build stays
as it is. The inputs that reached something new stay in build/guided/corpus and are where the next run begins.
A fault's input is kept in reports/fuzz, and shown again by

    python -m tests.fuzz.guided reports/fuzz/pushes-crash-...

Needs clang and its runtime (Debian: clang-14 and libclang-rt-14-dev), which are installed where that is
allowed. Why not atheris: an extension that is instrumented for coverage finds what it calls only when the
library of atheris is loaded for everybody, and then atheris starts without its fuzzer (3.0 on CPython 3.11).
"""

import argparse
import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from Cython.Build import cythonize

from tests.fuzz.pushes import seeds
from tests.support.packages import find_program
from tests.support.resp import BOUNDS, hostile_reply

__all__ = ["build", "find_clang", "fuzz", "main"]

ROOT: Final = Path(__file__).resolve().parents[2]
DRIVER: Final = ROOT / "tests" / "fuzz" / "guided_driver.c"
BUILD: Final = ROOT / "build" / "guided"
REPORTS: Final = ROOT / "reports" / "fuzz"
CLANGS: Final = ("clang", *(f"clang-{version}" for version in range(20, 13, -1)))
PACKAGES: Final = ("clang-14", "libclang-rt-14-dev")
MOST_BYTES: Final = 4_096
INPUT_LIMIT_S: Final = 10
GENERATED: Final = 300
WORDS: Final = (
    *("message", "smessage", "subscribe", "ssubscribe", "unsubscribe", "sunsubscribe", "pong"),
    *(r"\x0d\x0a", "*3", "*2", "$", ":", "+", "-", "$-1", "wsgate:ch:"),
)


def find_clang(*, may_install: bool = True) -> str | None:
    """A clang with libFuzzer's runtime, installed when there is none and that is allowed; else None."""
    for name in CLANGS:
        program = find_program(name)
        if program is not None and _can_fuzz(program):
            return program
    if may_install:
        installer = ROOT / "tests" / "support" / "install_packages.sh"
        subprocess.run(["sh", str(installer), *PACKAGES], check=False)
        return find_clang(may_install=False)
    return None


def _can_fuzz(program: str) -> bool:
    source = "int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n > 9 ? 0 : 0; }"
    command = [program, "-fsanitize=fuzzer,address", "-x", "c", "-", "-o", os.devnull]
    return subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode == 0


def build(clang: str) -> tuple[Path, Path]:
    """Compile the reader and the driver; their paths."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source = BUILD / "push.pyx"
    source.write_bytes((ROOT / "wsgate" / "bus" / "push.pyx").read_bytes())
    cythonize([str(source)], language_level=3, quiet=True, force=True)  # type: ignore[no-untyped-call]
    extension, fuzzer = BUILD / "push.so", BUILD / "fuzzer"
    include = "-I" + sysconfig.get_path("include")
    library = Path(sysconfig.get_config_var("LIBDIR"))
    common = ["-O1", "-g", "-fno-omit-frame-pointer", include]
    instrumented = ["-fsanitize=fuzzer-no-link,address", "-fPIC", "-shared", "-fno-strict-aliasing"]
    link = [f"-L{library}", f"-Wl,-rpath,{library}", "-lpython" + sysconfig.get_config_var("LDVERSION")]
    commands = (
        [clang, *common, *instrumented, str(source.with_suffix(".c")), "-o", str(extension)],
        # The extension finds the sanitizer and the counters in the program.
        [clang, *common, "-fsanitize=fuzzer,address", "-rdynamic", str(DRIVER), *link, "-o", str(fuzzer)],
    )
    for command in commands:
        subprocess.run(command, check=True)
    return extension, fuzzer


def fuzz(clang: str, seconds: int, *, again: Path | None = None, seed: int = 0) -> int:
    """Fuzz the bus reader; 0 when nothing was found.

    Args:
        clang: From `find_clang`.
        seconds: How long.
        again: One input to run instead.
        seed: Of libFuzzer; 0: another one each time.
    """
    extension, fuzzer = build(clang)
    corpus = BUILD / "corpus"
    corpus.mkdir(exist_ok=True)
    dice = random.Random(1)
    generated = [hostile_reply(dice, (b"wsgate:ch:n", b"other")) for _ in range(GENERATED)]
    for number, wire in enumerate([*seeds(), *generated]):
        (corpus / f"seed-{number:04}").write_bytes(wire[:MOST_BYTES])
    words = BUILD / "words"
    words.write_text("".join(f'"{word}"\n' for word in (*WORDS, *map(str, BOUNDS))))
    REPORTS.mkdir(parents=True, exist_ok=True)
    options = [f"-dict={words}", f"-max_len={MOST_BYTES}", f"-timeout={INPUT_LIMIT_S}", f"-seed={seed}"]
    options += [f"-artifact_prefix={REPORTS}/pushes-", "-print_final_stats=1"]
    what = [str(again)] if again else [f"-max_total_time={seconds}", str(corpus)]
    environ = os.environ | {
        "GUIDED_PYTHON": sys.executable,
        "GUIDED_MODULE": "tests.fuzz.guided_pushes",
        "GUIDED_EXTENSION": str(extension),
        "PYTHONPATH": str(ROOT),
        # CPython's own allocator would hide an access behind the end of an object from the sanitizer.
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=32",
    }
    return subprocess.run([str(fuzzer), *options, *what], env=environ, cwd=ROOT, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    """Fuzz for a while, or run one input again."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.guided")
    parser.add_argument("again", nargs="?", type=Path, help="an input that showed a fault")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer; another one each time by default")
    options = parser.parse_args(arguments)
    clang = find_clang()
    if clang is None:
        print("guided: there is no clang with libFuzzer here, and it cannot be installed", file=sys.stderr)
        return 1
    return 1 if fuzz(clang, options.seconds, again=options.again, seed=options.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
