"""Write the numbers of one shard into the statistics block, and add up the memory that its parts hold."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from wsgate.bus import Backlog, BusPublisher, BusSubscriber, RevocationKeeper
from wsgate.output import dropped_lines, waiting_bytes
from wsgate.reactor import GateLimits, Reactor
from wsgate.reactor.metric_names import COUNTER_NAMES, REASON_NAMES
from wsgate.shard.backend_events import Events
from wsgate.shard.capacity import CapacityReporter
from wsgate.shard.commands import Commands
from wsgate.shard.hub import Hub
from wsgate.shard.login import Logins
from wsgate.shard.members import Members
from wsgate.shard.newcomers import Newcomers
from wsgate.shard.subscriptions import Subscriptions
from wsgate.shard.tokens import Tokens
from wsgate.shard.users import Users
from wsgate.statistics import Region

__all__ = ["ReportedParts", "StatisticsReporter"]

BLOCKS_LOOKS: Final = 60
"""Reports after which the blocks of the heap are counted in any case: once a minute."""
LEASE_BYTES: Final = 256
"""Memory of one user's lease of messages, with its entry in the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedParts:
    """The parts of a shard whose numbers and memory are reported."""

    reactor: Reactor
    tokens: Tokens
    logins: Logins
    subscriptions: Subscriptions
    commands: Commands
    newcomers: Newcomers
    members: Members
    users: Users
    revocations: RevocationKeeper
    hub: Hub
    backlog: Backlog
    events: Events
    publisher: BusPublisher
    subscriber: BusSubscriber

    def outside_bytes(self) -> int:
        """Return the memory that the parts hold outside the reactor, in bytes."""
        rates = self.users.rates
        return (
            self.tokens.cached_bytes
            + self.tokens.permissions.bytes_held
            + self.tokens.revoked_bytes
            + self.logins.waiting_bytes
            + self.subscriptions.waiting_bytes
            + self.commands.waiting_bytes
            + self.newcomers.waiting_bytes
            + self.members.waiting_bytes
            + self.publisher.waiting_bytes
            + self.subscriber.held_bytes
            + self.hub.waiting_bytes
            + self.commands.budget.bytes_estimate
            + self.backlog.held_bytes
            + sum(each.memory_bytes for each in set(self.events.appenders))
            + self.users.waiting_bytes
            + self.revocations.waiting_bytes
            + (rates.users * LEASE_BYTES if rates else 0)
            + waiting_bytes()
        )


class StatisticsReporter:
    """Writes everything that a shard counts into its region of the statistics block.

    Args:
        region: The region of the shard.
        parts: The parts whose numbers are written.
        capacity: Reports the memory, the state and the headroom of the shard.
        counts: The shard's own counters, by name.
    """

    def __init__(
        self, region: Region, parts: ReportedParts, capacity: CapacityReporter, counts: dict[str, int]
    ) -> None:
        self._region = region
        self._parts = parts
        self._capacity = capacity
        self._counts = counts
        self._written: Mapping[str, int] = {}  # the reactor's numbers that stand in the region
        self._blocks_of = -1  # connections when the blocks of the heap were counted
        self._looks = 0

    def write(self, numbers: Mapping[str, int], gate: GateLimits, listener_fd: int) -> None:
        """Write everything that is counted; call once a second.

        Args:
            numbers: The reactor's counters and gauges.
            gate: The limits of the shard's gate.
            listener_fd: The listener, whose queue is measured; below 0: it is closed.
        """
        parts, region = self._parts, self._region
        if numbers != self._written:  # equal in a resting shard, where comparing is all it costs
            self._written = numbers
            for name in COUNTER_NAMES:
                region[name] = numbers[name]
            for name in REASON_NAMES[1:]:
                region["ended_" + name] = numbers["ended_" + name]
            for name in numbers:
                if name.startswith("now_"):
                    region[name] = numbers[name]
        for name, value in self._counts.items():
            if not name.startswith("ended_"):
                region[name] = value
        held = parts.reactor.bytes_held()
        for name, value in held.items():
            region["held_" + name] = value
        self._capacity.look(numbers, gate, held, listener_fd)
        region["token_cache_entries"] = parts.tokens.cached
        region["permission_sets"] = len(parts.tokens.permissions)
        region["permission_sets_bytes"] = parts.tokens.permissions.bytes_held
        region["revoked_users"] = parts.tokens.revoked
        region["subscriptions_pending"] = parts.hub.pending
        region["backlog_publications"] = len(parts.backlog)
        region["backlog_bytes"] = parts.backlog.held_bytes
        region["bus_received_bytes"] = parts.subscriber.held_bytes
        self._counts["publications_dropped"] = parts.backlog.dropped
        self._count_blocks(numbers["now_connections"])
        region["log_lines_dropped"] = dropped_lines()
        self._write_events(parts.events)

    def _count_blocks(self, connections: int) -> None:
        """Write the number of blocks of the heap, when connections came or went and once a minute.

        The interpreter walks its whole heap for this number. That takes 0.05 ms, and 20 ms where the kernel
        has moved the pages of a resting process away.
        """
        if connections != self._blocks_of or self._looks % BLOCKS_LOOKS == 0:
            self._blocks_of = connections
            self._region["python_blocks"] = sys.getallocatedblocks()
        self._looks += 1

    def _write_events(self, events: Events) -> None:
        region, appenders = self._region, events.appenders
        region["events_appended"] = sum(each.appended for each in appenders)
        region["events_repeated"] = sum(each.repeated for each in appenders)
        region["events_trimmed"] = sum(each.trimmed for each in appenders)
        region["events_waiting"] = sum(each.held for each in appenders)
        region["events_waiting_bytes"] = sum(each.held_bytes for each in appenders)
        region["events_streams_refusing"] = events.refusing_streams
