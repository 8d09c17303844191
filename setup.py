"""The compiled modules: every `.pyx` below `wsgate/` is one extension module of the same name.

Owns how C is made and compiled; everything else about the package is in pyproject.toml. Rules:
generated C goes to build/cython and never into the source tree or an sdist; Cython runs only when
something is built, so that metadata and sdists need no compiler.
"""

import os
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
        translated = cythonize(
            list(self.extensions),
            build_dir=str(BUILD / "cython"),
            compiler_directives=DIRECTIVES,
            force=bool(self.force),
            nthreads=0,
        )
        sources = {extension.name: extension.sources for extension in translated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        super().build_extensions()


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildReactor})
