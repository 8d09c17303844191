"""What is wanted of a node, and what the node has for it. Numbers only; whoever asks finds them out."""

from dataclasses import dataclass

__all__ = ["Demand", "Resources"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the node is to bear.

    Attributes:
        connections: Held at once; 0: as many as fit.
        rate_per_s: New connections a second, when everybody comes back.
        message_bytes: Of one publication.
        fanout: Connections that one publication goes to; 0: all.
    """

    connections: int = 0
    rate_per_s: int = 1_000
    message_bytes: int = 1_024
    fanout: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the processes of the node may use.

    Attributes:
        shards: How many.
        cores: That they may run on, no more than the control groups pay for.
        descriptors: Of one process: the hard limit.
        reserve_descriptors: Of those, not for connections.
        memory_bytes: For the connections of all shards together.
        backlog: Of each listener, as the gateway asks for it.
        send_buffer_bytes: Of each connection, as the gateway sets it.
        drain_s: How long leaving may take.
        stop_timeout_s: After which whoever stops the service kills it; None: not known.
        bus_round_trip_s: Measured; None: there was no bus to ask.
        cpu_quota: Cores that the control groups pay for; 0: no limit.
        memory_source: What the memory is a part of: a setting, a control group, the machine.
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
