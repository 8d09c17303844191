"""Run all tests: first those that need the machine for themselves, then the others in parallel.

`make test` calls this. It writes reports/tests.xml, prints how many tests ran, and fails if a test failed
or if none ran. Arguments are given to pytest: `python -m tests.support.run_tests -k renewal`.
"""

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Final

__all__ = ["Count", "count_tests", "merge_reports"]

ROOT: Final = Path(__file__).resolve().parents[2]
REPORTS: Final = ROOT / "reports"
NOTHING_SELECTED: Final = 5
"""The exit code of pytest when no test was selected."""
WORKERS_PER_CORE: Final = 3
"""The tests wait for processes and deadlines more than they compute: one run of 8,739 tests took 2,805 s of
waiting and computing together, of which 640 s were CPU time (`--junitxml`, and `time make test`)."""

Count = dict[str, int]
"""Numbers of `tests`, `failures`, `errors` and `skipped`."""


def main() -> int:
    """Run both parts, whatever the first one's result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=WORKERS_PER_CORE * (os.cpu_count() or 1))
    options, rest = parser.parse_known_args()
    REPORTS.mkdir(exist_ok=True)
    parallel, alone = REPORTS / "tests-parallel.xml", REPORTS / "tests-alone.xml"
    started_s = time.monotonic()
    # worksteal: a worker that has nothing left takes tests from the one that has most.
    spread = ["--numprocesses", str(options.workers), "--dist", "worksteal"]
    # The process that runs first also compiles the tests, and leaves the bytecode to all workers.
    codes = [
        _pytest("alone", alone, rest),
        _pytest("not alone", parallel, [*spread, *rest]),
    ]
    count = merge_reports([parallel, alone], REPORTS / "tests.xml")
    failed = count["failures"] + count["errors"]
    ran = count["tests"] - count["skipped"]
    took_s = time.monotonic() - started_s
    print(f"{ran} tests ran in {took_s:.0f} s, {failed} failed, {count['skipped']} skipped")
    return int(failed > 0 or ran == 0 or any(code not in (0, NOTHING_SELECTED) for code in codes))


def _pytest(marks: str, report: Path, arguments: list[str]) -> int:
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", marks, f"--junitxml={report}", *arguments]
    # Where bytecode is not written, every worker rewrites the assertions of all tests again: 7 s of CPU time
    # each, a minute in a run with six workers (`pytest --collect-only` with and without the variable).
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def merge_reports(reports: list[Path], merged: Path) -> Count:
    """Write several JUnit reports as one, and count; a report that is missing counts as no tests."""
    suites = ElementTree.Element("testsuites")
    for report in reports:
        if report.exists():
            suites.extend(ElementTree.parse(report).getroot().iter("testsuite"))
    ElementTree.ElementTree(suites).write(merged, encoding="utf-8", xml_declaration=True)
    return count_tests(merged)


def count_tests(report: Path) -> Count:
    """Count what a JUnit report contains."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    return {
        name: sum(int(suite.get(name, "0")) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    }


if __name__ == "__main__":
    sys.exit(main())
