"""Fuzz the compiled readers guided by coverage, with libFuzzer and AddressSanitizer around Python.

    python -m tests.fuzz.guided                        every reader, 60 s each; 1 when one has a fault
    python -m tests.fuzz.guided --seconds 600 codec    one of them for ten minutes
    python -m tests.fuzz.guided codec --again reports/fuzz/codec-crash-...      a fault's input once more

The readers: `pushes` (replies of the bus), `codec` (frames, through a whole reactor), `proxy` (the PROXY
header) and `head` (request heads, through a reactor and the handshake). The result of each input is compared
with that of a slow and simple reader, and the accounts of the reactor with its structures.

The modules under test are compiled once more with clang and instrumented, below build/guided; the
development build does not change. Inputs that reached new code stay in build/guided/corpus, and the next run
starts with them. The input of a fault is kept in reports/fuzz.

The program needs clang and its runtime (Debian: clang-14 and libclang-rt-14-dev), which are installed where
that is allowed. Without them a run fails; with `--if-available` it prints that it is skipped.

The program does not use atheris: an extension that is instrumented for coverage finds its functions only when
the library of atheris is loaded globally, and then atheris starts without its fuzzer (3.0 on CPython 3.11).
"""

import argparse
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.fuzz.guided_readers import READERS
from tests.support.packages import find_program

__all__ = ["build_driver", "build_modules", "find_clang", "fuzz", "main"]

ROOT: Final = Path(__file__).resolve().parents[2]
DRIVER: Final = ROOT / "tests" / "fuzz" / "guided_driver.c"
TRANSLATED: Final = ROOT / "build" / "cython"
BUILD: Final = ROOT / "build" / "guided"
REPORTS: Final = ROOT / "reports" / "fuzz"
CLANGS: Final = ("clang", *(f"clang-{version}" for version in range(20, 13, -1)))
PACKAGES: Final = ("clang-14", "libclang-rt-14-dev")
MOST_BYTES: Final = 4_096
INPUT_LIMIT_S: Final = 10
COMMON_FLAGS: Final = ("-O1", "-g", "-fno-omit-frame-pointer")
MODULE_FLAGS: Final = (
    *("-fsanitize=fuzzer-no-link,address", "-fPIC", "-shared", "-fno-strict-aliasing"),
    "-DWSGATE_EXACT_BLOCKS",  # see wsgate/reactor/memory.pyx
)


def find_clang(*, may_install: bool = True) -> str | None:
    """Return a clang with the runtime of libFuzzer, installed if that is allowed; None without one."""
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


def build_driver(clang: str) -> Path:
    """Compile the program of libFuzzer around a Python interpreter; return its path."""
    BUILD.mkdir(parents=True, exist_ok=True)
    fuzzer, library = BUILD / "fuzzer", Path(sysconfig.get_config_var("LIBDIR"))
    link = [f"-L{library}", f"-Wl,-rpath,{library}", "-lpython" + sysconfig.get_config_var("LDVERSION")]
    include = "-I" + sysconfig.get_path("include")
    # The modules find the sanitizer and the counters in the program, hence -rdynamic.
    command = [clang, *COMMON_FLAGS, include, "-fsanitize=fuzzer,address", "-rdynamic", str(DRIVER), *link]
    subprocess.run([*command, "-o", str(fuzzer)], check=True)
    return fuzzer


def build_modules(clang: str, pattern: str) -> Path:
    """Compile the modules that match the pattern, where their C changed; return their directory.

    The C files are those of the development build, which is updated first.
    """
    translate = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(translate, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    folder = BUILD / "modules" / pattern.removesuffix(".pyx").replace("/", ".").replace("*", "all")
    folder.mkdir(parents=True, exist_ok=True)
    sources = [source.relative_to(ROOT) for source in ROOT.glob(pattern)]
    wanted = {".".join(source.with_suffix("").parts): source for source in sources}
    assert wanted, f"no module matches {pattern}"
    for built in folder.glob("*.so"):
        if built.stem not in wanted:
            built.unlink()

    def compile_one(name: str) -> None:
        source = TRANSLATED / wanted[name].with_suffix(".c")
        built = folder / f"{name}.so"
        if built.exists() and built.stat().st_mtime > source.stat().st_mtime:
            return
        include = "-I" + sysconfig.get_path("include")
        command = [clang, *COMMON_FLAGS, *MODULE_FLAGS, include, "-w", str(source), "-o", str(built)]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, wanted))
    return folder


def fuzz(clang: str, name: str, seconds: int, *, again: Path | None = None, seed: int = 0) -> int:
    """Fuzz one reader; return 0 when no fault was found.

    Args:
        clang: From `find_clang`.
        name: One of `READERS`.
        seconds: The duration, without the time for compiling.
        again: One input to run instead.
        seed: The seed of libFuzzer; 0 for a new one each time.
    """
    reader = READERS[name]
    modules, fuzzer = build_modules(clang, reader.modules), build_driver(clang)
    corpus = BUILD / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(reader.seeds()):
        (corpus / f"seed-{number:04}").write_bytes(data[:MOST_BYTES])
    words = BUILD / f"{name}.words"
    words.write_text("".join(f'"{word}"\n' for word in reader.words))
    REPORTS.mkdir(parents=True, exist_ok=True)
    options = [f"-dict={words}", f"-max_len={MOST_BYTES}", f"-timeout={INPUT_LIMIT_S}", f"-seed={seed}"]
    options += [f"-artifact_prefix={REPORTS}/{name}-", "-print_final_stats=1"]
    what = [str(again)] if again else [f"-max_total_time={seconds}", str(corpus)]
    environ = os.environ | {
        "GUIDED_PYTHON": sys.executable,
        "GUIDED_MODULE": "tests.fuzz.guided_start",
        "GUIDED_MODULES": str(modules),
        "GUIDED_READER": name,
        "PYTHONPATH": str(ROOT),
        # CPython's own allocator would hide an access behind the end of an object from the sanitizer.
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=32",
    }
    code = subprocess.run([str(fuzzer), *options, *what], env=environ, cwd=ROOT, check=False).returncode
    if code < 0:
        print(f"guided {name}: the fuzzer was ended by signal {-code}", flush=True)
    return code


def main(arguments: list[str] | None = None) -> int:
    """Fuzz each reader for a while, or run one input again; return 0 without a fault."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.guided")
    parser.add_argument("readers", nargs="*", choices=[[], *READERS], help="all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--again", type=Path, help="an input that showed a fault, for the one reader named")
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer; another one each time by default")
    parser.add_argument("--if-available", action="store_true", help="without clang: say so, and end with 0")
    options = parser.parse_args(arguments)
    names = options.readers or list(READERS)
    if options.again and len(names) != 1:
        parser.error("--again needs the name of one reader")
    clang = find_clang()
    if clang is None:
        missing = "there is no clang with libFuzzer on this machine, and it cannot be installed"
        print(f"guided: {'SKIPPED' if options.if_available else 'FAILED'}: {missing}", file=sys.stderr)
        return 0 if options.if_available else 1
    faulty = []
    for name in names:
        print(f"guided {name}: {options.seconds} s", flush=True)
        if fuzz(clang, name, options.seconds, again=options.again, seed=options.seed):
            faulty.append(name)
        print(f"guided {name}: {'FAULT' if name in faulty else 'sound'}", flush=True)
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
