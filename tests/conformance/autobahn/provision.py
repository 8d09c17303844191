"""Install Autobahn|Testsuite and the CPython 2.7 that it needs under .cache/autobahn, once.

This module owns the source of the old interpreter and the packages for it. Nothing is installed on the
system, every package has a pinned version and hash, and a second call uses the result of the first one.

The suite needs Python 2. The module looks for one in this order: WSGATE_PYTHON27, `python2.7` on PATH, the
versions of pyenv, and the packages of Debian 11, which it downloads from the mirror that apt uses on this
machine and unpacks into a private directory.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

__all__ = ["ProvisionError", "Suite", "provision"]

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[2]
CACHE: Final = ROOT / ".cache" / "autobahn"
TOOL: Final = HERE / "requirements-tool.txt"
SUITE: Final = HERE / "requirements-suite.txt"

# On Python 2 only `site` reads the .pth files that make namespace packages of directories.
LAUNCH: Final = (
    "import site, sys; site.addsitedir(sys.argv.pop(1)); sys.argv[0] = 'wstest';"
    "from autobahntestsuite.wstest import run; run()"
)

# Debian 11, the last release with CPython 2.7: the interpreter, its headers (one package of the suite
# is compiled) and the two libraries that Debian 12 no longer has.
DEBIAN_SUITE: Final = "bullseye"
DEBIAN_PACKAGES: Final = (
    "python2.7-minimal",
    "libpython2.7-minimal",
    "libpython2.7-stdlib",
    "libpython2.7-dev",
    "libssl1.1",
    "libffi7",
)


class ProvisionError(Exception):
    """The suite cannot be installed on this machine; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class Suite:
    """An installed Autobahn|Testsuite."""

    digest: str
    """Hash of every file that decides which packages are installed."""
    python: str
    """The CPython 2.7 that runs it."""
    site: str
    """The directory of its packages."""
    environment: dict[str, str]
    """Environment variables that the interpreter needs."""

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of `wstest` with these arguments."""
        return [self.python, "-s", "-c", LAUNCH, self.site, *arguments]

    def environ(self) -> dict[str, str]:
        """Return the present environment without the variables for the present Python."""
        return _without_python(os.environ) | self.environment


def provision() -> Suite:
    """Return the suite, which the first call installs in about 20 s.

    Raises:
        ProvisionError: No CPython 2.7 was found, or an installation failed.
    """
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in (Path(__file__), TOOL, SUITE))).hexdigest()
    record = CACHE / "suite.json"
    if record.exists():
        suite = Suite(**json.loads(record.read_text()))
        if suite.digest == digest and Path(suite.python).exists() and Path(suite.site).exists():
            return suite
        record.unlink()
    CACHE.mkdir(parents=True, exist_ok=True)
    python, environment = _find_python27()
    suite = Suite(digest, python, str(CACHE / "site"), environment)
    _install(suite)
    record.write_text(json.dumps(asdict(suite), indent=2) + "\n")
    return suite


def _find_python27() -> tuple[str, dict[str, str]]:
    """Return the path of a working CPython 2.7 and the environment that it needs."""
    for candidate in _candidates():
        path = _python27_path(candidate)
        if path is not None:
            return path, {}
    return _debian_python27()


def _candidates() -> Iterator[str]:
    """Yield the places where CPython 2.7 may be, the best first; a place may not exist."""
    if chosen := os.environ.get("WSGATE_PYTHON27"):
        yield chosen
    yield shutil.which("python2.7") or ""
    roots = [os.environ.get("PYENV_ROOT", ""), _output("pyenv", "root"), str(Path.home() / ".pyenv")]
    for root in dict.fromkeys(filter(None, roots)):
        for version in sorted(Path(root, "versions").glob("2.7.*"), reverse=True):
            yield str(version / "bin" / "python2.7")


def _python27_path(candidate: str) -> str | None:
    """The interpreter behind a candidate (which may be a shim), or None if it is not one that works."""
    probe = "import sys, ssl, zlib; print('%d.%d %s' % (sys.version_info[:2] + (sys.executable,)))"
    version, _, path = _output(candidate, "-c", probe).partition(" ") if candidate else ("", "", "")
    return path if version == "2.7" else None


def _output(*command: str) -> str:
    """Return the stripped output of a command; empty if it fails or does not exist."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=_without_python(os.environ)
        )
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _without_python(environment: "os._Environ[str]") -> dict[str, str]:
    return {key: value for key, value in environment.items() if not key.startswith("PYTHON")}


def _debian_python27() -> tuple[str, dict[str, str]]:
    """Unpack CPython 2.7 from the packages of Debian 11 below the cache."""
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise ProvisionError(
            "Autobahn|Testsuite needs CPython 2.7, which is neither on PATH nor in pyenv: "
            "install it (for example `pyenv install 2.7.18`) and set WSGATE_PYTHON27 to its path"
        )
    root = CACHE / "debian"
    shutil.rmtree(root, ignore_errors=True)
    for package in _download_packages(CACHE / "apt"):
        _run("dpkg", "-x", str(package), str(root))
    libraries = sorted((root / "usr" / "lib").glob("*-linux-gnu"))
    environment = {
        "PYTHONHOME": str(root / "usr"),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "CFLAGS": f"-I{root}/usr/include/python2.7 -I{root}/usr/include",
    }
    return str(root / "usr" / "bin" / "python2.7"), environment


def _download_packages(work: Path) -> list[Path]:
    """The packages as files, by a private apt that verifies them and changes nothing of the system's."""
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("state/lists/partial", "cache/archives/partial", "packages"):
        (work / folder).mkdir(parents=True)
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    (work / "sources.list").write_text(
        f"deb [signed-by={keyring}] {_debian_mirror()} {DEBIAN_SUITE} main\n", encoding="ascii"
    )
    (work / "status").touch()
    config = work / "apt.conf"
    config.write_text(
        f'Dir::State "{work}/state";\nDir::State::status "{work}/status";\nDir::Cache "{work}/cache";\n'
        f'Dir::Etc::sourcelist "{work}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        # Otherwise a private directory of root's is not readable for the user apt downloads as.
        'APT::Sandbox::User "root";\n'
    )
    _run("apt-get", "-c", str(config), "-q", "update")
    _run("apt-get", "-c", str(config), "-q", "download", *DEBIAN_PACKAGES, cwd=work / "packages")
    return sorted((work / "packages").glob("*.deb"))


def _debian_mirror() -> str:
    """Return the Debian mirror of this machine."""
    targets = _output("apt-get", "indextargets", "--format", "$(SITE)|$(ORIGIN)|$(LABEL)")
    for line in targets.splitlines():
        site, origin, label = line.split("|", 2)
        if (origin, label) == ("Debian", "Debian"):
            return site
    raise ProvisionError(
        "Autobahn|Testsuite needs CPython 2.7, which is neither on PATH nor in pyenv, and apt has no "
        "Debian mirror with an index (`apt-get update`): install it and set WSGATE_PYTHON27 to its path"
    )


def _install(suite: Suite) -> None:
    """The suite's packages into `suite.site`, by the last pip for Python 2, itself never installed."""
    tool = CACHE / "tool"
    for folder in (tool, CACHE / "tool-wheels", Path(suite.site)):
        shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
    pip += ["--only-binary=:all:", "--python-version=2.7", "--implementation=py", "--abi=none"]
    _run(*pip, "--platform=any", f"--dest={CACHE / 'tool-wheels'}", f"--requirement={TOOL}")
    for wheel in sorted((CACHE / "tool-wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tool)
    # Without isolation: what is compiled ships its C, and the tools to do it are pinned in `tool`.
    pip27 = [suite.python, "-s", "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
    pip27 += ["--no-build-isolation", "--no-warn-script-location", "--disable-pip-version-check"]
    pip27 += ["--target", suite.site, "--requirement", str(SUITE)]
    _run(*pip27, env=suite.environ() | {"PYTHONPATH": str(tool), "PYTHONWARNINGS": "ignore"})


def _run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command to its end; print its output only if it fails."""
    result = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode != 0:
        raise ProvisionError(f"{' '.join(command)}\nfailed with {result.returncode}:\n{result.stdout}")


if __name__ == "__main__":
    try:
        print(" ".join(provision().command()))
    except ProvisionError as error:
        sys.exit(str(error))
