"""Build the wheel from the sdist and install it into an environment of its own, as a user gets it.

Tests of this wheel cannot use the source tree by accident. Everything is under .cache/wheel and is made
again only when a file of the wheel has changed.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["InstalledWheel", "clean_environment", "installed_wheel"]

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "wheel"
SUFFIXES: Final = frozenset({".py", ".pyx", ".pxd", ".pyi", ".typed", ".html", ".css", ".js", ".ts", ".json"})
PACKAGING: Final = ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md")


@dataclass(frozen=True, slots=True)
class InstalledWheel:
    """One build of the tree, and the environment with it."""

    sdist: Path
    wheel: Path
    python: Path
    """The interpreter of an environment with only the wheel and its dependencies."""


def installed_wheel() -> InstalledWheel:
    """Build and install the wheel of the present tree.

    Costs a full compilation when the sources changed since the last call, else a few milliseconds.
    One process builds at a time; others wait for it.

    Raises:
        RuntimeError: The build or the installation failed; the text is the output of the tools.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home = CACHE / _digest()
        if not (home / "complete").exists():
            _make(home)
    return InstalledWheel(
        sdist=_only(home / "dist", "*.tar.gz"),
        wheel=_only(home / "dist", "*.whl"),
        python=home / "environment" / "bin" / "python",
    )


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that would lead a child's Python to the source tree."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


def _digest() -> str:
    """Return the hash of all files of the wheel and of the interpreter."""
    digest = hashlib.sha256(f"{sys.version} {sys.executable}".encode())
    sources = (p for p in (ROOT / "wsgate").rglob("*") if p.suffix in SUFFIXES)
    packaging = (p for p in map(ROOT.joinpath, PACKAGING) if p.exists())
    for path in sorted([*sources, *packaging]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _make(home: Path) -> None:
    """Build and install into `home`; delete older builds, which no call uses again."""
    for old in CACHE.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    # No isolation: the tools are those of the development environment, so nothing is downloaded.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(home / "dist"), str(ROOT))
    _run(sys.executable, "-m", "venv", str(home / "environment"))
    wheel = _only(home / "dist", "*.whl")
    python = home / "environment" / "bin" / "python"
    _run(str(python), "-m", "pip", "install", "--quiet", str(wheel))
    (home / "complete").touch()


def _only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def _run(*command: str) -> None:
    result = subprocess.run(
        command,
        cwd=CACHE,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with {result.returncode}:\n{result.stdout[-8000:]}")
