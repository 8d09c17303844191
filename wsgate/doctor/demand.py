"""Define the demand on a node and the resources of its processes, as plain numbers."""

from dataclasses import dataclass

__all__ = ["Demand", "Resources"]


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
