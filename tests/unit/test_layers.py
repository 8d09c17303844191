"""Imports go down only: between rooms by the table below, and inside a room without a circle.

A room is a module or package directly below `wsgate`. Each has its line in `ARROWS`. A room without one
fails, so that a new room needs a decision about its place. docs/architecture.md says what each room owns.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

# The rooms that each room imports, no more and no less.
ARROWS: Final[dict[str, tuple[str, ...]]] = {
    "__main__": ("cli",),
    "cli": ("auth", "bus", "client", "config", "doctor", "errors", "log", "node"),
    "node": (
        "admin",
        "admission",
        "auth",
        "bus",
        "bus_address",
        "config",
        "errors",
        "log",
        "output",
        "reactor",
        "shard",
        "statistics",
    ),
    "doctor": ("bus", "bus_address", "config", "errors", "node", "reactor", "shard"),
    "client": ("bus_address", "errors"),
    "config": ("bus_address", "errors"),
    "admin": ("auth", "bus", "errors", "log", "output", "payload", "reasons", "statistics"),
    "shard": (
        "admission",
        "auth",
        "bus",
        "client",
        "deflate",
        "dialects",
        "errors",
        "handshake",
        "log",
        "output",
        "payload",
        "reactor",
        "reasons",
        "statistics",
        "turns",
    ),
    "bus": ("bus_address", "errors", "payload", "turns"),
    "admission": (),
    "auth": ("errors", "reasons"),
    "dialects": ("payload", "reasons"),
    "handshake": ("errors",),
    "deflate": (),
    "reactor": ("errors",),
    "statistics": ("errors",),
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
# Files of another room that a room reads by their path, where no import shows the arrow.
READS: Final = {("shard/http_pages.py", "client"): "the JavaScript client, which a shard serves"}

# These rooms know no event loop, no Redis and no clock: time is passed in.
PURE: Final = (
    "reactor",
    "handshake",
    "deflate",
    "dialects",
    "auth",
    "admission",
    "payload",
    "bus_address",
    "turns",
)
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


def room_of(path: Path) -> str:
    return Path(path.relative_to(ROOT / "wsgate").parts[0]).stem


def rooms_of(names: Iterable[str]) -> set[str]:
    """Return the rooms among dotted names of modules."""
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "wsgate" and len(part) > 1 and part[1] in ARROWS}


def violations(path: Path, text: str) -> list[str]:
    """Return what a file of wsgate imports although its room must not."""
    room = room_of(path)
    faults = []
    for name in sorted(imported_modules(path, text)):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top in ("tests", "loadtest", "protocols") or (room in PURE and top in IMPURE_MODULES):
            faults.append(name)
        elif top == "wsgate" and target in set(ARROWS) - {room} and target not in ARROWS[room]:
            faults.append(name)
    return faults


def module_of(path: Path) -> str:
    """Return the dotted name of a file; the files of one compiled module count as one."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circle_in(arrows: Mapping[str, Set[str]]) -> list[str]:
    """Return the modules of one circle, in order; none: an empty list."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for target in sorted(arrows.get(module, ())):
            if found := walk(target, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(arrows) if (found := walk(module, []))), [])


def arrows_inside(room: str) -> dict[str, set[str]]:
    """Return which modules of a room import which others of it; a package's own `__init__` is left out."""
    paths = [path for path in FILES if room_of(path) == room]
    modules = {module_of(path) for path in paths} - {f"wsgate.{room}"}
    arrows: dict[str, set[str]] = {}
    for path in paths:
        module = module_of(path)
        if module in modules:
            imported = imported_modules(path, path.read_text(encoding="utf-8"))
            arrows.setdefault(module, set()).update((imported & modules) - {module})
    return arrows


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


def test_there_are_no_circles_between_rooms() -> None:
    assert circle_in({room: set(arrows) for room, arrows in ARROWS.items()}) == []


@pytest.mark.parametrize("room", ARROWS)
def test_every_arrow_of_the_table_exists(room: str) -> None:
    paths = [path for path in FILES if room_of(path) == room]
    imported = {name for path in paths for name in imported_modules(path, path.read_text(encoding="utf-8"))}
    read = {target for file, target in READS if file.startswith(f"{room}/")}
    assert (rooms_of(imported) - {room}) | read == set(ARROWS[room])


@pytest.mark.parametrize(("file", "target"), READS)
def test_every_file_that_is_read_by_its_path_is_named_there(file: str, target: str) -> None:
    assert f'"{target}"' in (ROOT / "wsgate" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("room", sorted({room_of(path) for path in FILES if path.parent != ROOT / "wsgate"}))
def test_no_circle_inside_a_room(room: str) -> None:
    """An import for type checkers counts, and so does a cimport."""
    arrows = arrows_inside(room)
    assert sum(map(len, arrows.values())) > 0, "no import is found: the test looks in the wrong place"
    assert circle_in(arrows) == []


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


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
        ("reactor/x.py", "from .settings import Settings\nfrom wsgate import errors"),
        ("handshake.py", "import hashlib\nfrom wsgate.errors import InternalError"),
        ("shard/x.py", "import asyncio\nfrom wsgate.reactor import Reactor"),
    ],
)
def test_a_right_import_passes(file: str, text: str) -> None:
    assert violations(ROOT / "wsgate" / file, text) == []
