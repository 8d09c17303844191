"""Check what `make test` counts and when it fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import run_tests
from tests.support.run_tests import count_tests, main, merge_reports

REPORT = (
    '<testsuites><testsuite name="pytest" tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'
)


def write(path: Path, *numbers: int) -> Path:
    path.write_text(REPORT.format(*numbers))
    return path


def test_counts_of_merged_reports_are_their_sums(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.xml", 10, 1, 2, 3), write(tmp_path / "2.xml", 5, 0, 0, 1)
    merged = tmp_path / "merged.xml"
    expected = {"tests": 15, "failures": 1, "errors": 2, "skipped": 4}
    assert merge_reports([first, second, tmp_path / "missing.xml"], merged) == expected
    assert count_tests(merged) == expected


@pytest.mark.parametrize(
    ("parallel", "alone", "code"),
    [
        ((0, (8, 0, 0, 1)), (0, (2, 0, 0, 0)), 0),
        ((0, (8, 0, 0, 1)), (5, (0, 0, 0, 0)), 0),  # no test that runs alone was selected
        ((1, (8, 1, 0, 1)), (0, (2, 0, 0, 0)), 1),
        ((0, (8, 0, 0, 1)), (1, (2, 0, 1, 0)), 1),
        ((0, (8, 1, 0, 1)), (0, (2, 0, 0, 0)), 1),  # the report contains a failure
        ((3, None), (0, (2, 0, 0, 0)), 1),  # the first part ended without a report
        ((5, (0, 0, 0, 0)), (5, (0, 0, 0, 0)), 1),  # nothing ran
        ((0, (4, 0, 0, 4)), (0, (1, 0, 0, 1)), 1),  # everything was skipped
    ],
)
def test_test_run_fails_if_a_part_fails_or_no_test_ran(
    parallel: tuple[int, tuple[int, ...] | None],
    alone: tuple[int, tuple[int, ...] | None],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    parts = iter((alone, parallel))
    seen = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        result, numbers = next(parts)
        (report,) = (Path(each.split("=")[1]) for each in command if each.startswith("--junitxml="))
        assert not report.exists()
        if numbers is not None:
            write(report, *numbers)
        seen.append(command)
        return subprocess.CompletedProcess(command, result)

    monkeypatch.setattr(run_tests, "REPORTS", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["run_tests", "-k", "renewal"])
    (tmp_path / "tests-parallel.xml").write_text("of an earlier run")
    assert main() == code
    assert [command[command.index("-m", 3) + 1] for command in seen] == ["alone", "not alone"]
    assert all(command[-2:] == ["-k", "renewal"] for command in seen)
