"""The table of check ids in docs/testing.md has one line for each id that code, tests or documents cite."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "testing.md"
FOLDERS: Final = ("wsgate", "tests", "loadtest", "protocols")
FILES: Final = ("docs/security.md", "SECURITY.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
SUFFIXES: Final = frozenset({".py", ".pyx", ".pxd", ".pyi", ".md", ".lua", ".sh", ".mjs", ".js"})

# Not behind a dash or an equals sign: -O1 is an option of a compiler.
CITED: Final = re.compile(r"(?<![\w./=#-])([ADFIOPRS]\d{1,2})\b")
TEST: Final = re.compile(r"def (test_\w+)")
NAMED: Final = re.compile(r"_([adfioprs]\d{1,2})(?=_|$)")
ROW: Final = re.compile(r"^\| ([A-Z]\d+) \| (.+) \|$", re.MULTILINE)


def ids_in(text: str) -> set[str]:
    """Return the ids that a text cites, also those in the names of tests."""
    named = {each.upper() for name in TEST.findall(text) for each in NAMED.findall(name)}
    return set(CITED.findall(text)) | named


def cited_ids() -> set[str]:
    return {each for path in _files() for each in ids_in(path.read_text(encoding="utf-8"))}


def _files() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SUFFIXES and path.is_file() and path != Path(__file__).resolve():
                yield path
    yield from (ROOT / name for name in FILES)


def test_every_cited_id_has_one_line_and_every_line_is_cited() -> None:
    rows = [found[0] for found in ROW.findall(PAGE.read_text(encoding="utf-8"))]
    assert len(rows) == len(set(rows))
    assert set(rows) == cited_ids()


def test_ids_are_found_in_texts_and_in_names_of_tests() -> None:
    assert ids_in('"""Covers S20 (a token) and S22, R12."""') == {"S20", "S22", "R12"}
    assert ids_in("def test_a_slow_bus_r8() -> None:") == {"R8"}
    assert ids_in("def test_a_s31_s33_queue() -> None:") == {"S31", "S33"}


def test_options_curves_and_rules_are_no_ids() -> None:
    assert ids_in("flags -O2, curve P-256, P256, rule S311, path x/S1, colour #A1") == set()
