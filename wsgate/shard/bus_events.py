"""Pass on what the shard's connections to the bus report: state, confirmations, refusals, control commands.

Publications do not come this way: the bus reader puts them into the backlog, and the pacer takes them out.
"""

from collections.abc import Callable
from typing import Final

from wsgate.bus import BusPublisher, BusSubscriber, Covers, RevocationKeeper
from wsgate.bus.names import INBOX_MARK
from wsgate.log import Log
from wsgate.shard.control import Control
from wsgate.shard.hub import Hub
from wsgate.shard.membership import Membership
from wsgate.shard.probe import Probe
from wsgate.shard.users import Users
from wsgate.statistics import Region

__all__ = ["BusEvents"]

RENEW_S: Final = 1.0
"""Least time between two reconnections that are made because the bus has no receiver."""


class BusEvents:
    """The listener of one shard's bus connections.

    Args:
        bus: The address of the bus, for log lines.
        region: The statistics of the shard.
        log: Records when the bus is lost and when it is back.
        count: Adds to a counter of the shard, by its name.
        wake: Requests a pass.
        clock_s: Returns a monotonic time in seconds.
    """

    def __init__(
        self,
        bus: str,
        region: Region,
        log: Log,
        *,
        count: Callable[[str, int], None],
        wake: Callable[[], None],
        clock_s: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._region = region
        self._log = log
        self._count = count
        self._wake = wake
        self._clock_s = clock_s
        self._renew_after_s = 0.0
        self.is_ending = False
        """Whether the shard is about to close its connections, so that their end is not reported."""

    def attach(
        self,
        hub: Hub,
        publisher: BusPublisher,
        subscriber: BusSubscriber,
        *,
        control: Control,
        control_names: tuple[bytes, ...],
        membership: Membership,
        probe: Probe,
        revocations: RevocationKeeper,
        users: Users,
    ) -> None:
        """Name the parts that are notified; they are made after the connections, which need a listener."""
        self._hub = hub
        self._publisher = publisher
        self._subscriber = subscriber
        self._control = control
        self._control_names = control_names
        self._membership = membership
        self._probe = probe
        self._revocations = revocations
        self._users = users

    def on_up(self, covers: Covers | None = None) -> None:
        """Subscribe again to every channel that a new subscriber connection covers."""
        self._count("bus_connects", 1)
        self._log.info("bus_up", bus=self._bus)
        for name in self._control_names:
            self._subscriber.subscribe_control(name)
        self._hub.on_up(covers)
        self._publisher.resume()
        self._probe.on_up()
        self._users.on_up()
        self._membership.on_up()

    def on_down(self, covers: Covers | None = None) -> None:
        """Fail publishes and subscriptions until the bus is back; the clients stay connected."""
        if self.is_ending:
            return
        self._count("bus_failures", 1)
        self._log.warning("bus_down", bus=self._bus)
        self._region["bus_up"] = 0
        self._region["probe_due_ms"] = 0
        self._hub.on_down(covers)
        self._probe.on_down()
        self._wake()

    def on_failed(self, why: str) -> None:
        """Log why a connection to the bus was lost or could not be opened."""
        if not self.is_ending:
            self._log.warning("bus_failed", bus=self._bus, why=why)

    def on_publication_fault(self, fault: Exception) -> None:
        """Log a fault of ours that has cost one publication."""
        self._log.exception("publication_failed", fault)

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        """Run a control command or take a probe; None: the subscription to the name is confirmed."""
        if name not in self._control_names:
            self._probe.on_control(name, payload)
        elif payload is not None:
            self._control.run(payload)
            self._wake()
        elif name == self._control_names[0]:
            # Read the stored revocations only now: one that is made between reading them and this
            # confirmation would be missed.
            self._revocations.on_up()

    def on_subscribed(self, name: bytes) -> bool:
        """Notify the connections that wait for a channel; return False if some are still to be notified."""
        return self._hub.on_subscribed(name)

    def on_refused(self, name: bytes) -> bool:
        """Give up a channel that the bus forbids; return False if the connection is of no use without it.

        A bus that forbids an inbox is of no use, because no backend can reach the user.
        """
        if name.startswith(INBOX_MARK.encode()):
            return False
        why = "the ACL of the bus forbids a channel: give the gateway's user every channel below the prefix"
        self._log.warning("bus_forbids_channel", bus=self._bus, why=why)
        self._hub.on_refused(name)
        self._wake()
        return True

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        """Subscribe again to a channel whose slot of the cluster has moved."""
        self._hub.on_lost(name, was_asked=was_asked)

    def on_reassigned(self, covers: Covers) -> None:
        """Subscribe again to every channel whose slot moved between servers that are both connected."""
        self._hub.on_reassigned(covers)
        self._wake()

    def on_unserved(self, covers: Covers) -> None:
        """Fail subscriptions to channels whose slots have moved to a server that is not connected yet.

        The shard stays ready, because a planned move concerns all nodes at the same moment. If the server
        cannot be reached, the probe of the server is missing.
        """
        self._hub.on_down(covers)
        self._wake()

    def on_moved(self) -> None:
        """Use the map of the cluster that was read again."""
        self._hub.on_moved()
        self._probe.on_up()  # the servers to be probed may be others now
        self._wake()

    def on_pass(self) -> None:
        """Have a pass hand on what the bus reader has received."""
        self._hub.resubscribe()
        self._wake()

    def on_unheard(self, name: bytes) -> None:
        """Reconnect, because the bus reports no receiver for a name that this shard is subscribed to.

        Both connections reconnect, at most once a second, even if the bus always reports this.
        """
        if self._clock_s() < self._renew_after_s or not self._subscriber.is_up:
            return  # both connections reconnect already
        self._renew_after_s = self._clock_s() + RENEW_S
        self._log.warning("bus_silent", bus=self._bus)
        self._publisher.renew("the bus has no receiver", name)
        self._subscriber.renew("the bus has no receiver", name)

    def on_echo(self, took_us: int, due_ms: int) -> None:
        """Note that a probe returned through the bus, so that the shard is ready until the next is due.

        Args:
            took_us: Time that the probe took, in microseconds.
            due_ms: Monotonic time by which each server must echo again; 0: a server has not echoed any since
                it was lost.
        """
        if not self._subscriber.is_up:  # the probe was under way when a connection was lost
            return
        if due_ms:
            self._region["bus_up"] = 1
        self._region["probe_due_ms"] = due_ms
        self._region.observe("probe_us", took_us)
        self._count("probes_echoed", 1)
