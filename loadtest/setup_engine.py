"""Builds the compiled engine in place: ``python loadtest/setup_engine.py build_ext --inplace`` from anywhere.

Generated C and objects are written to build/; only the extension modules are written to loadtest/engine/ (git
ignores them). Set WSGATE_ENGINE_SANITIZE=1 to build with AddressSanitizer and UBSan.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Distribution, Extension  # type: ignore[import-untyped, unused-ignore]

ROOT = Path(__file__).resolve().parents[1]
os.chdir(ROOT)

# No -march=native: the floor is built without it too, and the two are compared.
FLAGS = ["-O2", "-g1", "-Wall", "-Wno-unused-function", "-Wno-sign-compare"]
LINK = []
if os.environ.get("WSGATE_ENGINE_SANITIZE"):
    FLAGS += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    LINK += ["-fsanitize=address,undefined"]

extensions = [
    Extension(
        f"loadtest.engine.{source.stem}",
        [str(source.relative_to(ROOT))],
        extra_compile_args=FLAGS,
        extra_link_args=LINK,
    )
    for source in sorted((ROOT / "loadtest" / "engine").glob("*.pyx"))
]

# Not setup(), which would read the pyproject.toml of the wsgate package.
build = Distribution(
    {
        "name": "wsgate-loadtest-engine",
        "packages": [],
        "ext_modules": cythonize(  # type: ignore[no-untyped-call]
            extensions,
            build_dir="build/loadtest-engine",
            compiler_directives={
                "language_level": 3,
                "autotestdict": False,
                "boundscheck": False,
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": False,
            },
        ),
        "options": {"build": {"build_base": "build/loadtest-engine"}},
    }
)
build.script_name = "setup_engine.py"
build.script_args = sys.argv[1:]
if build.parse_command_line():
    build.run_commands()
