"""Check the packages: the sdist has all that a build needs, the wheel all that a run needs."""

import itertools
import subprocess
import tarfile
import threading
import tomllib
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.support.wheel import InstalledWheel, clean_environment, installed_wheel

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "wsgate").rglob("*.pyx"))
PAGE = sorted(
    str(path.relative_to(ROOT))
    for folder in (ROOT / "wsgate" / "admin" / "page", ROOT / "wsgate" / "client" / "js")
    for path in folder.iterdir()
)

pytestmark = pytest.mark.slow
START_S = 60

# Runs in the interpreter that has the wheel, from an empty directory.
ECHO = """
import socket, sys, time
import wsgate.reactor, wsgate.reactor.loop
from wsgate.handshake import accept, parse_head

def now_ms():
    return time.monotonic_ns() // 1_000_000

HEAD = (b"GET /ws HTTP/1.1\\r\\nHost: localhost\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n")
HELLO = bytes.fromhex("8185000000006865 6c6c6f")  # "hello" with a zero mask
ours, theirs = socket.socketpair()
theirs.setblocking(False)
reactor = wsgate.reactor.Reactor(now_ms=now_ms())
reactor.adopt(theirs.detach(), now_ms=now_ms())
ours.settimeout(10)
ours.sendall(HEAD + HELLO)
received = b""
while not received.endswith(b"\\x81\\x05hello"):
    for kind, conn, value in reactor.poll(now_ms()):
        if kind == 3:
            reactor.upgrade(conn, accept(parse_head(value)).response)
        elif kind == 1:
            reactor.send(conn, value)
    reactor.flush(now_ms())
    try:
        received += ours.recv(4096, socket.MSG_DONTWAIT)
    except BlockingIOError:
        continue
print(wsgate.reactor.loop.__file__)
print(received.split(b"\\r\\n")[0].decode())
"""


@pytest.fixture(scope="module")
def built() -> InstalledWheel:
    return installed_wheel()


def wheel_names(built: InstalledWheel) -> list[PurePosixPath]:
    with zipfile.ZipFile(built.wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


def sdist_names(built: InstalledWheel) -> list[PurePosixPath]:
    """Return the paths in the sdist below its top directory."""
    with tarfile.open(built.sdist) as archive:
        return [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()]


def test_installed_wheel_runs_a_reactor_from_another_directory(built: InstalledWheel, tmp_path: Path) -> None:
    done = subprocess.run(
        [built.python, "-c", ECHO],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    module, status_line = done.stdout.splitlines()
    assert "site-packages" in Path(module).parts
    assert status_line == "HTTP/1.1 101 Switching Protocols"


def test_installed_wheel_serves_its_page_from_another_directory(
    built: InstalledWheel, tmp_path: Path
) -> None:
    command = [str(built.python.parent / "wsgate"), "serve", "--dev", "--port", "0", "--admin-port", "0"]
    environment = clean_environment() | {"RUNTIME_DIRECTORY": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        limit = threading.Timer(START_S, process.kill)
        limit.start()
        try:
            assert process.stdout is not None
            lines = list(itertools.takewhile(lambda line: line != "ready\n", process.stdout))
            assert process.poll() is None, lines
            (address,) = [line.split()[1] for line in lines if line.split()[0] == "page"]
            served = (Path(path) for path in PAGE if "admin" in path and not path.endswith(".html"))
            for name in ("", *(path.name for path in served)):
                with urllib.request.urlopen(address + name, timeout=10) as answer:
                    assert answer.status == 200
        finally:
            limit.cancel()
            process.terminate()


def test_wheel_contains_only_the_wsgate_package_and_no_sources_of_compiled_modules(
    built: InstalledWheel,
) -> None:
    tops = {name.parts[0] for name in wheel_names(built)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wsgate"}
    assert not [name for name in wheel_names(built) if name.suffix in (".c", ".pyx", ".o", ".pyc")]


def test_wheel_contains_every_compiled_module_its_types_and_the_page(built: InstalledWheel) -> None:
    names = [str(name) for name in wheel_names(built)]
    compiled = {PurePosixPath(name).name.partition(".")[0] for name in names if name.endswith(".so")}
    assert compiled == set(MODULES)
    assert {"wsgate/py.typed", *PAGE} <= set(names)
    for path in (ROOT / "wsgate").rglob("*.p[yx][id]"):
        assert str(path.relative_to(ROOT)) in names


def test_sdist_contains_all_sources_and_no_generated_file(built: InstalledWheel) -> None:
    names = {str(name) for name in sdist_names(built)}
    for path in (ROOT / "wsgate").rglob("*"):
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".typed"):
            assert str(path.relative_to(ROOT)) in names
    assert {"pyproject.toml", "setup.py", "LICENSE", *PAGE} <= names
    assert not [name for name in names if name.endswith((".c", ".so", ".o", ".pyc"))]
    assert not [name for name in names if name.partition("/")[0] in ("tests", "loadtest", "build", ".cache")]


def test_source_folders_contain_no_generated_c_or_html() -> None:
    assert not list((ROOT / "wsgate").rglob("*.c"))
    assert not [path for path in (ROOT / "wsgate").rglob("*.html") if str(path.relative_to(ROOT)) not in PAGE]


def test_version_of_the_module_equals_that_of_the_package_metadata(built: InstalledWheel) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    probe = "import wsgate, importlib.metadata as m; print(wsgate.__version__, m.version('wsgate'))"
    command = [str(built.python), "-I", "-c", probe]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    in_module, in_metadata = done.stdout.split()
    assert in_module == in_metadata
