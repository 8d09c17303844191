"""Define the result of an examination: findings with a severity, and the capacity of each resource."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Capacity", "Diagnosis", "Finding", "Severity"]


class Severity(StrEnum):
    """The severity of a finding, from good to impossible."""

    OK = "ok"
    ADVICE = "advice"  # another value would be better
    WARNING = "warning"  # causes trouble under load
    BLOCKING = "blocking"  # the demand cannot be served


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of a check of one setting, counter or resource.

    Attributes:
        name: The name of the setting, counter or resource.
        severity: The severity.
        now: The present value.
        needed: The value that is needed; empty when the present one is good.
        why: The purpose of the setting, or the consequence of the value.
        fix: The command or the line of configuration that changes the value; empty when it is good.
    """

    name: str
    severity: Severity
    now: str
    why: str
    needed: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The number of connections that one resource allows."""

    resource: str
    connections: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The complete result of an examination.

    Attributes:
        connections: The number of connections that was checked: the demand, or as many as possible.
        capacities: The capacity of every limited resource, the smallest first.
        findings: The findings, the worst first.
    """

    connections: int
    capacities: tuple[Capacity, ...]
    findings: tuple[Finding, ...]

    @property
    def binding(self) -> Capacity:
        """The capacity of the resource that is exhausted first."""
        return self.capacities[0]

    @property
    def is_blocked(self) -> bool:
        """Whether a finding says that the demand cannot be served."""
        return any(finding.severity is Severity.BLOCKING for finding in self.findings)
