"""Check that the planted defects fit the source: each line that a defect replaces exists exactly once."""

from pathlib import Path

import pytest

from tests.support.defects import DEFECTS, PLAIN, SUITES

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", DEFECTS)
def test_line_that_a_defect_replaces_is_in_its_file_exactly_once(name: str) -> None:
    defect = DEFECTS[name]
    assert (ROOT / defect.file).read_text(encoding="utf-8").count(defect.right) == 1
    assert defect.right != defect.wrong


def test_every_defect_has_a_command_that_must_fail_with_that_defect() -> None:
    noticed = set(PLAIN).union(*(names for _, names in SUITES.values()))
    assert noticed == set(DEFECTS)
