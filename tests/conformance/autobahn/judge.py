"""Decide whether results of Autobahn|Testsuite conform; this module is pure.

The suite exits with 0 also if cases failed or nothing ran. So only the results count: every expected case
must be present, and each must be OK.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypedDict

__all__ = [
    "PROFILES",
    "SECTIONS",
    "CaseResult",
    "Deviation",
    "Verdict",
    "judge",
    "parse_deviations",
]

SECTIONS: Final[Mapping[str, int]] = {
    "1": 16,  # framing
    "2": 11,  # pings and pongs
    "3": 7,  # reserved bits
    "4": 10,  # opcodes
    "5": 20,  # fragmentation
    "6": 145,  # UTF-8
    "7": 37,  # close handshake
    "9": 54,  # limits and speed
    "10": 1,  # miscellaneous
    "12": 90,  # compression, payloads
    "13": 126,  # compression, parameters
}
"""Number of cases in each section."""

PROFILES: Final[Mapping[str, tuple[str, ...]]] = {
    "quick": tuple(section for section in SECTIONS if section not in ("9", "12", "13")),
    "full": tuple(SECTIONS),
}

# The suite gives these results for information only: RFC 6455 leaves the behaviour open.
INFORMATIONAL: Final = frozenset({"7.1.6", "7.13.1", "7.13.2"})
# Without permessage-deflate the suite has nothing to check in these sections.
COMPRESSION: Final = frozenset({"12", "13"})

Deviation = tuple[str, str]
"""`(behavior, behaviorClose)` as the suite spells them; in an allow-list `OK/NON-STRICT` means either."""


class CaseResult(TypedDict):
    """One entry of the index.json of the suite."""

    behavior: str
    behaviorClose: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on the results of one run."""

    counts: Mapping[str, int]
    """Number of cases with each behavior."""
    faults: tuple[str, ...]
    """One line for each fault, in the order of the cases; empty if the run conforms."""

    @property
    def conforms(self) -> bool:
        """Whether there is no fault."""
        return not self.faults


def judge(
    results: Mapping[str, CaseResult],
    sections: Iterable[str],
    deviations: Mapping[str, Deviation],
    *,
    is_deflating: bool = False,
) -> Verdict:
    """Return the verdict on the results of one server.

    Args:
        results: The results by case id, as in index.json.
        sections: The sections that were chosen; each must be present with all its cases.
        deviations: Cases that may differ from OK, and must have exactly the listed result.
        is_deflating: Whether the server agrees to permessage-deflate.
    """
    chosen = tuple(sections)
    faults = _count_faults(results, chosen)
    for case in sorted(results, key=_case_order):
        found = (results[case]["behavior"], results[case]["behaviorClose"])
        if case in deviations:
            if not all(map(_is_one_of, found, deviations[case])):
                faults.append(f"{case}: {_show(found)}, but {_show(deviations[case])} is allowed for")
        elif not _is_fine(case, found, is_deflating):
            faults.append(f"{case}: {_show(found)}")
    faults += [
        f"{case}: allowed for, but did not run"
        for case in deviations
        if _section(case) in chosen and case not in results
    ]
    return Verdict(Counter(result["behavior"] for result in results.values()), tuple(faults))


def parse_deviations(text: str) -> dict[str, Deviation]:
    """Parse the allow-list: one case per line with behavior, behaviorClose and a reason, or a `#` comment.

    Raises:
        ValueError: A line is not of that form; a deviation without a reason is not accepted.
    """
    deviations = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split(",", 3)]
        if len(fields) < 4 or not all(fields):
            raise ValueError(f"not a case, its behavior, its behaviorClose and a reason: {line!r}")
        case, behavior, behavior_close, _ = fields
        deviations[case] = (behavior, behavior_close)
    return deviations


def _count_faults(results: Mapping[str, CaseResult], sections: tuple[str, ...]) -> list[str]:
    """Return a line for each section with missing or extra results."""
    found = Counter(map(_section, results))
    expected = {section: SECTIONS[section] for section in sections}
    return [
        f"section {section}: {found[section]} results, expected exactly {expected.get(section, 0)}"
        for section in sorted(expected | found, key=int)
        if found[section] != expected.get(section, 0)
    ]


def _is_one_of(found: str, allowed: str) -> bool:
    return found in allowed.split("/")


def _is_fine(case: str, found: Deviation, is_deflating: bool) -> bool:
    behavior, behavior_close = found
    if case in INFORMATIONAL:
        return behavior in ("OK", "INFORMATIONAL") and behavior_close in ("OK", "INFORMATIONAL")
    if behavior == "UNIMPLEMENTED":
        is_left_out = _section(case) in COMPRESSION and not is_deflating
        return is_left_out and behavior_close in ("OK", "UNIMPLEMENTED")
    return found == ("OK", "OK")


def _show(found: Deviation) -> str:
    return f"behavior {found[0]}, close {found[1]}"


def _section(case: str) -> str:
    return case.partition(".")[0]


def _case_order(case: str) -> tuple[int, ...]:
    return tuple(map(int, case.split(".")))
