"""Define the input of every check, and the function that makes its finding."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wsgate.doctor.demand import Demand, Resources
from wsgate.doctor.findings import Capacity, Finding, Severity
from wsgate.doctor.kernel import Kernel

__all__ = ["Case", "Check", "judged"]


@dataclass(frozen=True, slots=True)
class Case:
    """The input of a check: the numbers of the machine, and the demand on it."""

    kernel: Kernel
    have: Resources
    want: Demand  # `connections` is the number that is checked
    capacities: tuple[Capacity, ...]

    @property
    def fanout(self) -> int:
        """The number of connections that receive one publication."""
        return min(self.want.fanout or self.want.connections, self.want.connections)


Check = Callable[[Case], Iterator[Finding]]
"""A check: it yields findings about one resource, or none when its number cannot be read."""


def judged(
    name: str, bad: Severity, *, is_good: bool, now: str, why: str, needed: str, fix: str
) -> Iterator[Finding]:
    """Yield one finding: OK when `is_good`, else of severity `bad`, with the needed value and the fix."""
    if is_good:
        yield Finding(name=name, severity=Severity.OK, now=now, why=why)
    else:
        yield Finding(name=name, severity=bad, now=now, why=why, needed=needed, fix=fix)
