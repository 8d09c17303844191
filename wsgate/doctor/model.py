"""Define the values of an examination: the demand, the resources, the input of a check, and the findings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from wsgate.doctor.kernel import Kernel

__all__ = ["Capacity", "Case", "Check", "Demand", "Diagnosis", "Finding", "Resources", "Severity", "judged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The load that the node should serve.

    Attributes:
        connections: Open connections at the same time; 0: as many as possible.
        rate_per_s: New connections a second, when all clients reconnect.
        message_bytes: The size of one publication.
        fanout: The connections that receive one publication; 0: all.
    """

    connections: int = 0
    rate_per_s: int = 1_000
    message_bytes: int = 1_024
    fanout: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The resources that the processes of the node may use.

    Attributes:
        shards: The number of shards.
        cores: The cores that the shards may use, by affinity and control groups.
        descriptors: The limit of open files of one process.
        reserve_descriptors: The descriptors of one process that are not for connections.
        memory_bytes: The memory for the connections of all shards together.
        backlog: The length of each accept queue that the gateway requests.
        send_buffer_bytes: The send buffer that the gateway sets for each connection.
        drain_s: The longest time for draining, in seconds.
        stop_timeout_s: The time after which the service manager kills a stopping service; None: not known.
        bus_round_trip_s: The measured round trip to the bus; None: the bus is private, and was not measured.
        cpu_quota: The CPU quota of the control groups, in cores; 0: no limit.
        memory_source: The origin of the memory limit: a setting, a control group, the machine.
    """

    shards: int
    cores: int
    descriptors: int
    reserve_descriptors: int
    memory_bytes: int
    backlog: int
    send_buffer_bytes: int
    drain_s: float
    stop_timeout_s: float | None = None
    bus_round_trip_s: float | None = None
    cpu_quota: float = 0.0
    memory_source: str = "the machine's memory"


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
