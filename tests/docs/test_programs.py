"""Every measuring program that a document names exists."""

import re
from pathlib import Path
from typing import Final

import pytest

from loadtest.__main__ import find_programs

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "loadtest" / "README.md"]
COMMAND: Final = re.compile(r"-m loadtest([ .])([\w.]+)")
ROW: Final = re.compile(r"\| `(\w+)(?: [^`]*)?` \|$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_names_only_programs_that_exist(page: Path) -> None:
    programs = find_programs()
    for separator, name in COMMAND.findall(page.read_text(encoding="utf-8")):
        assert separator == " ", f"write `python -m loadtest {name}`"
        assert name in programs


def test_table_of_overload_and_faults_names_only_programs_that_exist() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    names = ROW.findall(text.partition("## Overload, faults and floods")[2])
    assert len(names) >= 10
    assert set(names) <= set(find_programs())
