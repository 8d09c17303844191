"""No old name of docs/renamed.json is left in the repository."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = "docs/renamed.json"
RENAMED: Final[dict[str, Any]] = json.loads((ROOT / PAGE).read_text(encoding="utf-8"))
CODE: Final = frozenset({".py", ".pyi", ".pyx", ".pxd"})


def texts() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    found = {}
    for name in listed.stdout.splitlines():
        if name not in (PAGE, str(Path(__file__).relative_to(ROOT))) and (ROOT / name).is_file():
            found[name] = (ROOT / name).read_text(encoding="utf-8", errors="replace")
    return found


TEXTS: Final = texts()


def places_of(
    old: str, prefixes: tuple[str, ...] = ("",), suffixes: frozenset[str] | None = None
) -> list[str]:
    """Return the files below the prefixes in which the word stands."""
    word = re.compile(rf"(?<![\w/]){re.escape(old)}(?!\w)")
    return [
        name
        for name, text in TEXTS.items()
        if name.startswith(prefixes)
        and (suffixes is None or Path(name).suffix in suffixes)
        and old in text
        and word.search(text)
    ]


@pytest.mark.parametrize("old", RENAMED["files"])
def test_no_old_file_is_there_or_is_named(old: str) -> None:
    assert not (ROOT / old).exists()
    assert places_of(old) == []


@pytest.mark.parametrize("new", RENAMED["files"].values())
def test_every_new_file_is_there(new: str) -> None:
    assert all((ROOT / each).exists() for each in new.split(", "))


@pytest.mark.parametrize("old", [*RENAMED["metrics"], *RENAMED["log_events"]])
def test_no_old_metric_or_log_event_is_named(old: str) -> None:
    assert places_of(old) == []


@pytest.mark.parametrize("row", RENAMED["names"], ids=lambda row: f"{row['old']}-{row['in'][0]}")
def test_no_old_name_is_left_in_the_code(row: dict[str, Any]) -> None:
    assert places_of(row["old"], tuple(row["in"]), CODE) == []
    assert places_of(row["new"], tuple(row["in"]), CODE) != []


def test_an_old_name_would_be_found() -> None:
    assert places_of("HandshakePolicy", ("wsgate/",), CODE)
