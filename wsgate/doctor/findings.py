"""What is found: lines with a severity, what each resource bears, and which of them binds."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Capacity", "Diagnosis", "Finding", "Severity"]


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    ADVICE = "advice"  # better otherwise
    WARNING = "warning"  # will hurt under load
    BLOCKING = "blocking"  # what is wanted cannot be had


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line.

    Attributes:
        name: Of the setting or the counter.
        severity: How bad it is.
        now: What it is.
        needed: What it should be; empty when it is good.
        why: What it is good for, or what happens.
        fix: The command or the line of configuration that changes it; empty when it is good.
    """

    name: str
    severity: Severity
    now: str
    why: str
    needed: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections one resource bears."""

    resource: str
    connections: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All of it.

    Attributes:
        connections: That were judged: what was asked for, or what fits.
        capacities: Of every resource that has an end, the tightest first: that one binds.
        findings: The worst first.
    """

    connections: int
    capacities: tuple[Capacity, ...]
    findings: tuple[Finding, ...]

    @property
    def binding(self) -> Capacity:
        """What ends first."""
        return self.capacities[0]

    @property
    def is_blocked(self) -> bool:
        """Whether what is wanted cannot be had."""
        return any(finding.severity is Severity.BLOCKING for finding in self.findings)
