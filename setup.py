"""The compiled modules: every `.pyx` below `wsgate/` is one extension module of the same name.

Owns how C is made and compiled; everything else about the package is in pyproject.toml. Rules:
generated C goes to build/cython and never into the source tree or an sdist; Cython runs only when
something is built, so that metadata and sdists need no compiler.
"""

import os
import threading
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILD = Path("build")

# Bounds, wrap-around and uninitialised views are the code's own care: it works on pointer and length.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}
# Warnings are for our code. What Cython generates by rule is switched off by name: parameters that CPython's
# calling conventions pass and a function does not need, casts of its method tables, and their initialisers.
WARNING_FLAGS = [
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
]
# Checked libc calls and stack canaries; no measurable cost beside system calls and cache misses.
HARDENING_FLAGS = ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3", "-fstack-protector-strong"]
# -g1: line tables, so that perf and a core dump can name the line; no measurable cost.
COMPILE_FLAGS = ["-O3", "-g1", "-fvisibility=hidden", *WARNING_FLAGS, *HARDENING_FLAGS]
LINK_FLAGS = ["-Wl,-z,relro,-z,now"]
# WSGATE_SANITIZE=1, for `make sanitize`: every bad access and all undefined behaviour ends the process.
SANITIZE_FLAGS = [
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fvisibility=hidden",
    "-DWSGATE_EXACT_BLOCKS",  # see wsgate/reactor/memory.pyx
]
IS_SANITIZED = os.environ.get("WSGATE_SANITIZE") == "1"


def extensions() -> list[Extension]:
    """One extension for each .pyx; a .pxd without a .pyx holds declarations only."""
    return [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            extra_compile_args=SANITIZE_FLAGS if IS_SANITIZED else COMPILE_FLAGS,
            extra_link_args=["-fsanitize=address,undefined"] if IS_SANITIZED else LINK_FLAGS,
        )
        for source in sorted(Path("wsgate").rglob("*.pyx"))
    ]


class Progress:
    """Says how far a step is, every few modules: a build of a minute must not look like one that hangs.

    Args:
        what: What happens to a module.
        total: How many modules there are.
    """

    EVERY = 5

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._done = self._changed = 0
        self._lock = threading.Lock()  # modules are compiled by several threads

    def note(self, *, is_changed: bool) -> None:
        """One module more is done; a build that finds everything up to date says nothing."""
        with self._lock:
            self._done += 1
            self._changed += is_changed
            if self._changed and (self._done % self.EVERY == 0 or self._done == self._total):
                print(f"  {self._what} {self._done} of {self._total} modules", flush=True)
                self._changed = 0


def changed_at(path: str | Path) -> float:
    """When a file was last written; 0 when there is none."""
    return Path(path).stat().st_mtime if Path(path).exists() else 0.0


class BuildReactor(build_ext):
    """Runs Cython out of the tree, and keeps what in-place builds made for the next one."""

    def finalize_options(self) -> None:
        """Give editable and in-place builds one lasting directory, so that they share their results."""
        if self.inplace or self.editable_mode:
            self.build_lib = str(BUILD / "inplace")
            self.build_temp = str(BUILD / "inplace-objects")
        super().finalize_options()
        if not self.parallel:
            self.parallel = os.cpu_count()

    def get_source_files(self) -> list[str]:
        """What an sdist ships: the .pyx and .pxd files."""
        return sorted(str(path) for path in Path("wsgate").rglob("*.p[yx][xdi]"))

    def build_extensions(self) -> None:
        """Translate what changed to C, then compile it."""
        progress = Progress("translated to C:", len(self.extensions))
        for extension in self.extensions:
            written = (BUILD / "cython" / extension.sources[0]).with_suffix(".c")
            before = changed_at(written)
            [translated] = cythonize(
                [extension],
                build_dir=str(BUILD / "cython"),
                compiler_directives=DIRECTIVES,
                force=bool(self.force),
                nthreads=0,
                quiet=True,
            )
            extension.sources = translated.sources
            progress.note(is_changed=changed_at(written) != before)
        self._progress = Progress("compiled:", len(self.extensions))
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Compile one module, when its C is newer than what was made of it."""
        path = self.get_ext_fullpath(ext.name)
        before = changed_at(path)
        super().build_extension(ext)
        self._progress.note(is_changed=changed_at(path) != before)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildReactor})
