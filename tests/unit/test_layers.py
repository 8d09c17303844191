"""Imports go down only (architecture, section 3).

A room is a module or package directly below `wsgate`. Each needs its line in `ARROWS`; a room without
one fails, so that nobody adds a room without deciding where it stands.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

# What a room may import, directly or through its arrows. Rooms on one level have no arrow between them.
ARROWS: Final[dict[str, tuple[str, ...]]] = {
    "__main__": ("cli",),
    "cli": ("config", "node", "doctor", "client", "log"),
    "node": ("config", "admin", "shard", "log", "output"),
    "doctor": ("node", "bus"),
    "client": ("errors", "reasons", "bus_address"),
    "config": ("errors", "reasons", "bus_address"),
    "admin": ("bus", "auth", "statistics", "log", "output"),
    "shard": ("bus", "admission", "auth", "dialects", "handshake", "deflate", "log", "output"),
    "bus": ("reactor", "payload", "bus_address", "turns"),
    "admission": ("reactor",),
    "auth": ("reactor",),
    "dialects": ("reactor", "payload"),
    "handshake": ("reactor",),
    "deflate": ("reactor",),
    "reactor": ("statistics",),
    "statistics": ("errors", "reasons"),
    "payload": (),
    "turns": (),
    "log": ("output",),
    "log_events": (),
    "output": (),
    "bus_address": ("errors",),
    "errors": (),
    "reasons": (),
    "__init__": (),
}

# These rooms know no event loop, no Redis and no clock: time is passed in.
PURE: Final = ("reactor", "handshake", "deflate", "dialects", "auth", "payload", "bus_address", "turns")
IMPURE_MODULES: Final = frozenset({"asyncio", "uvloop", "redis", "valkey", "hiredis", "time", "datetime"})

# Cython is not Python, so its import lines are read line by line.
CYTHON_IMPORT: Final = re.compile(
    r"^\s*(?:from\s+(?P<source>[\w.]+)\s+)?c?import\s+(?P<names>.+)$", re.MULTILINE
)


def source_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".pyi", ".pyx", ".pxd"))


def imported_modules(path: Path, text: str) -> set[str]:
    """Dotted names of everything a file imports; `from a import b` gives `a` and `a.b`."""
    package = path.relative_to(ROOT).parent.parts
    found = _python_imports(text) if path.suffix in (".py", ".pyi") else _cython_imports(text)
    return {name for level, source, names in found for name in _dotted(package, level, source, names)}


def _python_imports(text: str) -> Iterator[tuple[int, str, list[str]]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


def _cython_imports(text: str) -> Iterator[tuple[int, str, list[str]]]:
    # An import list in parentheses may go over several lines.
    joined = re.sub(r"\(([^()]*)\)", lambda match: match[1].replace("\n", " "), text)
    for match in CYTHON_IMPORT.finditer(joined):
        names = [name.split()[0] for name in match["names"].split("#")[0].split(",") if name.split()]
        source = match["source"]
        if source is None:
            yield from ((0, name, []) for name in names)
        else:
            level = len(source) - len(source.lstrip("."))
            yield level, source.lstrip("."), names


def _dotted(package: tuple[str, ...], level: int, source: str, names: Iterable[str]) -> Iterator[str]:
    base = [*package[: len(package) - level + 1], *filter(None, [source])] if level else [source]
    yield ".".join(base)
    yield from (".".join([*base, name]) for name in names)


def reachable(room: str) -> set[str]:
    """Every room below this one."""
    below: set[str] = set()
    for next_room in ARROWS[room]:
        below |= {next_room} | reachable(next_room)
    return below


def violations(path: Path, text: str) -> list[str]:
    """What a file of wsgate imports although its room must not."""
    room = Path(path.relative_to(ROOT / "wsgate").parts[0]).stem
    rooms = {Path(child).stem for child in ARROWS}
    faults = []
    for name in sorted(imported_modules(path, text)):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top in ("tests", "loadtest", "protocols") or (room in PURE and top in IMPURE_MODULES):
            faults.append(name)
        elif top == "wsgate" and target in rooms - {room} and target not in reachable(room):
            faults.append(name)
    return faults


FILES: Final = source_files(ROOT / "wsgate")


def test_every_room_has_a_line() -> None:
    rooms = {Path(path.relative_to(ROOT / "wsgate").parts[0]).stem for path in FILES}
    assert rooms, "no room found: the test looks in the wrong place"
    assert rooms <= set(ARROWS), f"rooms without a line: {sorted(rooms - set(ARROWS))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_rooms_never_ask_for_the_wall_clock(path: Path) -> None:
    room = Path(path.relative_to(ROOT / "wsgate").parts[0]).stem
    assert room not in PURE or "CLOCK_REALTIME" not in path.read_text(encoding="utf-8")


def test_the_load_engine_shares_nothing_with_wsgate() -> None:
    folder = ROOT / "loadtest" / "engine"
    for path in source_files(folder):
        imported = imported_modules(path, path.read_text(encoding="utf-8"))
        assert not [name for name in imported if name.partition(".")[0] == "wsgate"], path


def test_there_are_no_cycles() -> None:
    for room in ARROWS:
        assert room not in reachable(room)


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("reactor/x.py", "import asyncio", "asyncio"),
        ("reactor/x.py", "def f():\n    from redis.asyncio import Redis", "redis.asyncio"),
        ("reactor/x.py", "from wsgate import handshake", "wsgate.handshake"),
        ("reactor/x.py", "from ..shard import hub", "wsgate.shard"),
        ("reactor/x.pyx", "from wsgate.handshake import (\n    accept,\n    parse_head)", "wsgate.handshake"),
        ("reactor/x.pyx", "cimport wsgate.shard.hub as hub, libc.stdlib", "wsgate.shard.hub"),
        ("reactor/x.pxd", "from ..bus.envelope cimport Envelope  # why", "wsgate.bus.envelope"),
        ("handshake.py", "import time", "time"),
        ("handshake.py", "from wsgate.dialects import wsgate_v1", "wsgate.dialects"),
        ("client/x.py", "import wsgate.reactor.loop", "wsgate.reactor.loop"),
        ("errors.py", "from wsgate.reasons import Reason", "wsgate.reasons"),
        ("shard/x.py", "import loadtest.engine", "loadtest.engine"),
    ],
)
def test_a_wrong_import_is_found(file: str, text: str, fault: str) -> None:
    assert fault in violations(ROOT / "wsgate" / file, text)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("reactor/x.pyx", '"""From a docstring."""\nfrom wsgate.reactor.structs cimport (Core,\n    Frame)'),
        ("reactor/x.py", "from .settings import Settings\nfrom wsgate import reasons"),
        ("handshake.py", "import hashlib\nfrom wsgate.errors import InternalError"),
        ("shard/x.py", "import asyncio\nfrom wsgate.reactor import Reactor"),
    ],
)
def test_a_right_import_passes(file: str, text: str) -> None:
    assert violations(ROOT / "wsgate" / file, text) == []
