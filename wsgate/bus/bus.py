"""Make the subscriber and the publisher of a bus: for one server, servers behind sentinels, or a cluster."""

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
    """An object of the bus whose `run` must be a running task, such as a `Subscriber` or a `Topology`."""

    def run(self) -> Coroutine[Any, Any, None]:
        """Keep the connections of this part until the task is cancelled."""


@dataclass(frozen=True, slots=True)
class Bus:
    """The subscriber and the publisher of one bus, with the parts that must run for both.

    Attributes:
        address: The address from the configuration.
        subscriber: Receives publications.
        publisher: Sends publications and commands.
        parts: The objects whose `run` the caller starts, each as a task.
        topology: The map of the cluster; None when the bus is no cluster.
    """

    address: BusAddress
    subscriber: BusSubscriber
    publisher: BusPublisher
    parts: tuple[Part, ...]
    topology: Topology | None = None

    def appenders(
        self, streams: Sequence[bytes], options: AppenderOptions, on_failed: Callable[[str], None]
    ) -> list[Appender]:
        """Make the appenders for streams of events.

        Args:
            streams: The keys of the streams.
            options: The limits and times of every appender.
            on_failed: Called with a reason for the log when an appender cannot reach the bus or is refused.

        Returns:
            One appender for each stream, in the order of `streams`. When the bus is no cluster, all entries
            are the same appender. The caller runs each distinct appender.
        """
        topology = self.topology
        if topology is None:
            return [Appender(lambda: self.address, options, on_failed)] * len(streams)
        return [
            Appender(partial(topology.server_of, stream), options, on_failed, topology.on_moved)
            for stream in streams
        ]


def make_bus(
    address: BusAddress,
    prefix: bytes,
    listener: ClusterListener,
    backlog: Backlog,
    options: SubscriberOptions,
) -> Bus:
    """Make the subscriber and the publisher of a shard; both connect when their `run` starts.

    Args:
        address: The address of the bus.
        prefix: The bytes before every channel name on the bus.
        listener: Receives the subscriber's calls, and the failures of the publisher.
        backlog: Receives the publications.
        options: The options of the subscriber. The publisher uses the same time limits for connecting and for
            replies.
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
    """Make a publisher without a subscriber, for a process that receives no publications.

    Args:
        address: The address of the bus.
        connect_timeout_s: Time for connecting, in seconds.
        command_timeout_s: Time from sending a command to its reply, in seconds.
        on_failed: Called with a reason for the log when the bus cannot be reached, refuses, or is lost
            with commands that were not answered.

    Returns:
        The publisher, and the parts whose `run` the caller starts.
    """
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
