"""Both ways of one bus, whatever it is made of: one server, what sentinels name, or a cluster."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from wsgate.bus.appender import Appender, AppenderOptions
from wsgate.bus.backlog import Backlog
from wsgate.bus.cluster import ClusterListener, ClusterPublisher, ClusterSubscriber, Topology
from wsgate.bus.publisher import Publisher
from wsgate.bus.subscriber import Subscriber, SubscriberOptions
from wsgate.bus_address import BusAddress

__all__ = ["Bus", "BusPublisher", "BusSubscriber", "Part", "make_bus", "make_publisher"]

BusSubscriber = Subscriber | ClusterSubscriber
BusPublisher = Publisher | ClusterPublisher


class Part(Protocol):
    """Something that has to run."""

    def run(self) -> Coroutine[Any, Any, None]:
        """Until cancelled."""


@dataclass(frozen=True, slots=True)
class Bus:
    """The two ends; `parts` is what has to run for them, until cancelled."""

    address: BusAddress
    subscriber: BusSubscriber
    publisher: BusPublisher
    parts: tuple[Part, ...]
    topology: Topology | None = None

    def appenders(
        self, streams: Sequence[bytes], options: AppenderOptions, on_failed: Callable[[str], None]
    ) -> list[Appender]:
        """One for each stream; on one server they are all the same one. Each has to run."""
        topology = self.topology
        if topology is None:
            return [Appender(lambda: self.address, options, on_failed)] * len(streams)
        return [
            Appender(partial(topology.server_of, stream), options, on_failed, topology.refresh)
            for stream in streams
        ]


def make_bus(
    address: BusAddress,
    prefix: bytes,
    listener: ClusterListener,
    backlog: Backlog,
    options: SubscriberOptions,
) -> Bus:
    """A bus that is not connected yet.

    Args:
        address: Where it is.
        prefix: What channel names start with on it.
        listener: Who is told.
        backlog: Where publications go.
        options: For its connections; publishes have the same time for an answer.
    """
    if not address.is_cluster:
        subscriber = Subscriber(address, prefix, listener, backlog, options)
        publisher = Publisher(
            address,
            connect_timeout_s=options.connect_timeout_s,
            command_timeout_s=options.reply_timeout_s,
            on_failed=listener.on_failed,
        )
        return Bus(address, subscriber, publisher, (subscriber, publisher))
    topology = Topology(address, options.connect_timeout_s, listener.on_failed)
    sharded = ClusterSubscriber(topology, prefix, listener, backlog, options)
    speaking = ClusterPublisher(
        topology,
        connect_timeout_s=options.connect_timeout_s,
        command_timeout_s=options.reply_timeout_s,
        on_failed=listener.on_failed,
    )
    return Bus(address, sharded, speaking, (topology, sharded, speaking), topology)


def make_publisher(
    address: BusAddress,
    *,
    connect_timeout_s: float,
    command_timeout_s: float,
    on_failed: Callable[[str], None],
) -> tuple[BusPublisher, tuple[Part, ...]]:
    """Only the way out, and what has to run for it."""
    if not address.is_cluster:
        publisher = Publisher(
            address,
            connect_timeout_s=connect_timeout_s,
            command_timeout_s=command_timeout_s,
            on_failed=on_failed,
        )
        return publisher, (publisher,)
    topology = Topology(address, connect_timeout_s, on_failed)
    speaking = ClusterPublisher(
        topology,
        connect_timeout_s=connect_timeout_s,
        command_timeout_s=command_timeout_s,
        on_failed=on_failed,
    )
    return speaking, (topology, speaking)
