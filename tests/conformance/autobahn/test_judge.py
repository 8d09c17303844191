"""Test the check of Autobahn results: only complete and good results conform (P1)."""

from pathlib import Path

import pytest

from tests.conformance.autobahn.judge import (
    PROFILES,
    SECTIONS,
    CaseResult,
    Deviation,
    judge,
    parse_deviations,
)
from tests.conformance.autobahn.runner import RunError, allowed_deviations, run_suite

QUICK = PROFILES["quick"]


def result(behavior: str = "OK", close: str = "OK") -> CaseResult:
    return CaseResult(behavior=behavior, behaviorClose=close)


def results(**changes: CaseResult) -> dict[str, CaseResult]:
    """Return a complete quick run without faults, with changes given as `c7_1_5=...`."""
    cases = {f"{section}.{n}.1": result() for section in QUICK for n in range(1, SECTIONS[section] + 1)}
    return cases | {name[1:].replace("_", "."): change for name, change in changes.items()}


def test_profiles_have_247_and_517_cases() -> None:
    assert sum(SECTIONS[section] for section in QUICK) == 247
    assert sum(SECTIONS[section] for section in PROFILES["full"]) == 517


def test_complete_run_with_only_ok_conforms() -> None:
    verdict = judge(results(), QUICK, {})
    assert verdict.conforms
    assert verdict.counts == {"OK": 247}


@pytest.mark.parametrize(
    "found",
    [
        result("FAILED"),
        result("NON-STRICT"),
        result("UNIMPLEMENTED"),
        result("INFORMATIONAL"),
        result("OK", "FAILED"),
        result("OK", "WRONG CODE"),
        result("OK", "UNCLEAN"),
        result("OK", "INFORMATIONAL"),
    ],
)
def test_result_other_than_ok_is_a_fault_that_names_its_case(found: CaseResult) -> None:
    verdict = judge(results(c6_2_1=found), QUICK, {})
    assert [fault.partition(":")[0] for fault in verdict.faults] == ["6.2.1"]


def test_informational_result_is_allowed_for_three_cases_only() -> None:
    informational = result("INFORMATIONAL", "INFORMATIONAL")
    section = {f"7.2.{n}": result() for n in range(SECTIONS["7"] - 3)}
    allowed = {case: informational for case in ("7.1.6", "7.13.1", "7.13.2")}
    assert judge(section | allowed, ["7"], {}).conforms
    assert not judge(section | allowed | {"7.2.1": informational}, ["7"], {}).conforms
    assert not judge(section | allowed | {"7.1.6": result("FAILED")}, ["7"], {}).conforms


def test_run_without_results_has_a_fault_in_every_section() -> None:
    assert len(judge({}, QUICK, {}).faults) == len(QUICK)


def test_missing_case_and_extra_case_are_faults() -> None:
    missing = results()
    del missing["5.3.1"]
    assert judge(missing, QUICK, {}).faults == ("section 5: 19 results, expected exactly 20",)
    assert not judge(results(c5_99_1=result()), QUICK, {}).conforms
    assert not judge(results(c9_1_1=result()), QUICK, {}).conforms


def test_compression_case_may_be_unimplemented_but_not_failed() -> None:
    cases = {f"12.1.{n}": result("UNIMPLEMENTED") for n in range(90)}
    assert judge(cases, ["12"], {}).conforms
    assert not judge(cases | {"12.1.1": result("FAILED")}, ["12"], {}).conforms


def test_deviation_must_have_exactly_the_listed_result_and_must_have_run() -> None:
    allowed: dict[str, Deviation] = {"3.2.1": ("NON-STRICT", "OK")}
    assert judge(results(c3_2_1=result("NON-STRICT")), QUICK, allowed).conforms
    assert not judge(results(c3_2_1=result("FAILED")), QUICK, allowed).conforms
    assert not judge(results(), QUICK, allowed).conforms, "a listed deviation that did not occur was accepted"
    assert not judge(results(), QUICK, {"3.99.1": ("FAILED", "OK")}).conforms


def test_deviation_with_alternatives_allows_each_of_them_only() -> None:
    allowed: dict[str, Deviation] = {"3.4.1": ("OK/NON-STRICT", "OK")}
    assert judge(results(), QUICK, allowed).conforms
    assert judge(results(c3_4_1=result("NON-STRICT")), QUICK, allowed).conforms
    assert not judge(results(c3_4_1=result("FAILED")), QUICK, allowed).conforms
    assert not judge(results(c3_4_1=result("OK", "FAILED")), QUICK, allowed).conforms


def test_deviation_without_a_reason_raises_value_error() -> None:
    text = "# why\n\n7.1.5, FAILED, WRONG CODE, known, and documented\n"
    assert parse_deviations(text) == {"7.1.5": ("FAILED", "WRONG CODE")}
    for bad in ("7.1.5, FAILED, OK", "7.1.5, FAILED, OK, ", "7.1.5 FAILED OK because"):
        with pytest.raises(ValueError, match=r"7\.1\.5"):
            parse_deviations(bad)


def test_list_of_deviations_of_wsgate_is_empty() -> None:
    assert allowed_deviations("wheel") == {}


def test_run_without_sections_raises_because_the_suite_would_hang(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        run_suite(1, (), report=tmp_path, time_limit_s=1)
