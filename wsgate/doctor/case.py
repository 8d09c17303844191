"""What every check is given, and how it says its line."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wsgate.doctor.demand import Demand, Resources
from wsgate.doctor.findings import Capacity, Finding, Severity
from wsgate.doctor.kernel import Kernel

__all__ = ["Case", "Check", "judged"]


@dataclass(frozen=True, slots=True)
class Case:
    """What there is, and what is wanted of it."""

    kernel: Kernel
    have: Resources
    want: Demand  # with the number of connections that is judged
    capacities: tuple[Capacity, ...]

    @property
    def fanout(self) -> int:
        """Connections that one publication goes to."""
        return min(self.want.fanout or self.want.connections, self.want.connections)


Check = Callable[[Case], Iterator[Finding]]
"""Lines about one thing; none when there is nothing to read."""


def judged(
    name: str, bad: Severity, *, is_good: bool, now: str, why: str, needed: str, fix: str
) -> Iterator[Finding]:
    """The line: as it is when it is good, with what to do when it is not."""
    if is_good:
        yield Finding(name=name, severity=Severity.OK, now=now, why=why)
    else:
        yield Finding(name=name, severity=bad, now=now, why=why, needed=needed, fix=fix)
