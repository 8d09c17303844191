"""Make all parts of one shard and connect them; the process drives them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from wsgate.admission import BusLedger
from wsgate.bus import Backlog, Names, RevocationKeeper, SubscriberOptions, make_bus
from wsgate.log import Log
from wsgate.reactor import Reactor
from wsgate.shard.access import Access
from wsgate.shard.backend_events import make_events
from wsgate.shard.bus_events import BusEvents
from wsgate.shard.bus_memory import BusMemory
from wsgate.shard.capacity import CapacityReporter
from wsgate.shard.commands import Commands
from wsgate.shard.control import Control
from wsgate.shard.gaps import Gaps, spread_ms_for
from wsgate.shard.handover import Siblings
from wsgate.shard.handshakes import HandshakePolicy
from wsgate.shard.http_pages import CLIENT_PAGE
from wsgate.shard.hub import Hub
from wsgate.shard.lease import NodeLease
from wsgate.shard.login import LoginParts, Logins
from wsgate.shard.members import Members, now_ms
from wsgate.shard.membership import Membership
from wsgate.shard.newcomers import Newcomers
from wsgate.shard.options import ShardOptions, Shared
from wsgate.shard.pacing import Pacer
from wsgate.shard.pausing import Pauses
from wsgate.shard.probe import Probe
from wsgate.shard.publication_encoder import PublicationEncoder
from wsgate.shard.replies import Replies
from wsgate.shard.reporter import ReportedParts, StatisticsReporter
from wsgate.shard.subscriptions import Subscriptions
from wsgate.shard.tokens import Tokens
from wsgate.shard.users import Users

__all__ = ["Hooks", "Parts"]

CACHE_PART: Final = 8
"""The token cache may take one in so many bytes of a shard's budget, permission sets included."""
ENVELOPE_ROOM_BYTES: Final = 4 * 1024
"""What an envelope may add to the largest payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """The functions of the process that the parts of a shard call.

    Attributes:
        count: Adds to a counter of the shard, by its name.
        wake: Requests a pass at once.
        wake_soon: Requests a pass within a millisecond.
        clock_s: Returns the time of the event loop in seconds.
    """

    count: Callable[[str, int], None]
    wake: Callable[[], None]
    wake_soon: Callable[[], None]
    clock_s: Callable[[], float]


class Parts:
    """All parts of one shard, connected with each other.

    Args:
        options: Of the shard.
        shared: Memory and sockets that the processes of the node share.
        log: The log of the shard.
        counts: The shard's own counters, by name.
        hooks: What the parts call in the process.
    """

    def __init__(
        self, options: ShardOptions, shared: Shared, log: Log, counts: dict[str, int], hooks: Hooks
    ) -> None:
        self._options = options
        self._shared = shared
        self._block = shared.block
        self._region = shared.block.shard(options.number)
        self._log = log
        self._hooks = hooks
        names = Names(options.bus_prefix)
        self._make_clients_side(counts)
        self._make_bus_side(names)
        self._make_logins(names)
        self._make_control_side(names)
        self._make_reports(counts)

    def _make_clients_side(self, counts: dict[str, int]) -> None:
        """Make the reactor, and what decides about newcomers and publications."""
        options, count = self._options, self._hooks.count
        self.reactor = Reactor(
            replace(options.reactor, page_response=CLIENT_PAGE),
            now_ms=now_ms(),
            gap_encoder=self._encode_slow,
            addresses=self._shared.addresses,
            shard=options.number,
        )
        self.siblings = Siblings(options.number, self._shared.handovers, self._block, self.reactor, count)
        self.access = Access(options.channels, options.any_channel)
        self.tokens = Tokens(
            tuple(source.make(is_checked=True) for source in options.keys),
            options.tokens,
            options.token_cache_entries,
            count,
            cache_bytes=options.gate.memory_bytes // CACHE_PART,
            is_fetching=options.is_fetching_keys,
            log=self._log,
        )
        self.handshakes = HandshakePolicy(options, self.tokens, self._log.info)
        self.newcomers = Newcomers(
            options,
            self.reactor,
            self.handshakes,
            self._block,
            self._log,
            count=count,
            refusals=lambda: counts["tokens_refused"],
            wake=self._hooks.wake,
        )
        self.encoder = PublicationEncoder(options.compression_threshold_bytes, count)
        variants = len(options.reactor.variant_opcodes)
        self.gaps = Gaps(self.reactor, self.encoder, count, self._gap_spread_ms, now_ms, variants=variants)
        self.hub = Hub(self.reactor, self.access, self.encoder, self.gaps, count)

    def _make_bus_side(self, names: Names) -> None:
        """Make the connections to the bus, what they report to, and what comes from them."""
        options, hooks = self._options, self._hooks
        self.backlog = Backlog(options.bus_backlog_bytes)
        self.bus_events = BusEvents(
            str(options.bus),
            self._region,
            self._log,
            count=hooks.count,
            wake=hooks.wake,
            clock_s=hooks.clock_s,
        )
        self.pacer = Pacer(self.backlog, self.hub, self.reactor, self.bus_events.on_publication_fault)
        timing = SubscriberOptions(
            connect_timeout_s=options.bus_connect_timeout_s,
            reply_timeout_s=options.bus_command_timeout_s,
            payload_limit_bytes=_payload_limit_bytes(options),
        )
        self.bus = make_bus(options.bus, names.channels, self.bus_events, self.backlog, timing)
        self.publisher, self.subscriber = self.bus.publisher, self.bus.subscriber
        self.hub.attach(self.subscriber)
        self.hub.limit_unconfirmed(options.reactor.max_subscriptions)
        self.events = make_events(
            options, names, self.bus, self.bus_events.on_failed, self.reactor.public_id, hooks.count
        )
        self.bus_memory = BusMemory(
            BusLedger(options.bus_shares),
            self.reactor,
            self.publisher,
            self._block,
            options.number,
            names.channels,
            self._log,
        )
        self.hub.takes_name = self.bus_memory.takes_name
        self.events.has_room = self.bus_memory.takes_message
        self.bus_memory.appenders = self.events.appenders

    def _make_logins(self, names: Names) -> None:
        """Make what logs connections in and runs the commands of clients."""
        options, hooks = self._options, self._hooks
        self.users = Users(
            options.user_limits,
            self.reactor,
            self.publisher,
            names,
            self._shared.owners,
            hooks.count,
            hooks.wake_soon,
        )
        self.members = Members(options, self.reactor, self.tokens.permissions, self.events)
        self.replies = Replies(options, self.reactor, self.events, hooks.count)
        self.subscriptions = Subscriptions(
            options, self.reactor, self.hub, self.access, self.replies, self.events, hooks.count
        )
        self.hub.on_taken = self.subscriptions.on_forbidden
        self._login_parts = LoginParts(
            reactor=self.reactor,
            hub=self.hub,
            access=self.access,
            tokens=self.tokens,
            users=self.users,
            events=self.events,
            members=self.members,
            replies=self.replies,
            subscriptions=self.subscriptions,
            pauses=Pauses(self.reactor),
            verify_later=self.newcomers.verify_later,
        )
        self.logins = Logins(options, self._login_parts)
        self.newcomers.attach(self.logins)
        self.commands = Commands(
            options,
            self._login_parts,
            self.logins,
            self.publisher,
            names,
            count=hooks.count,
            wake=hooks.wake,
            unheard=self.bus_events.on_unheard,
        )

    def _make_control_side(self, names: Names) -> None:
        """Make what backends control, and what registers and probes this shard on the bus."""
        options = self._options
        self.lease = NodeLease(self.publisher, names.node(options.node), options.node_lease, self._log)
        self.membership = Membership(self.publisher, names, f"{options.node}/{options.number}")
        self.revocations = RevocationKeeper(
            self.publisher, names, self.tokens.revocations, self._learn_revocation, self._hooks.count
        )
        self.control = Control(
            self._login_parts,
            self.logins,
            self.users.owner,
            self._hooks.count,
            reply=self.membership.reply,
            keeper=self.revocations,
        )
        self.probe = Probe(
            names.probe(options.node, options.number),
            self.publisher,
            self.subscriber,
            options.probe_interval_ms,
            self.bus_events.on_echo,
            self.bus_events.on_unheard,
        )
        self.bus_events.attach(
            self.hub,
            self.publisher,
            self.subscriber,
            control=self.control,
            control_names=names.control(options.node),
            membership=self.membership,
            probe=self.probe,
            revocations=self.revocations,
            users=self.users,
        )

    def _make_reports(self, counts: dict[str, int]) -> None:
        """Make what reports the shard's memory, state and numbers."""
        reported = ReportedParts(
            reactor=self.reactor,
            tokens=self.tokens,
            logins=self.logins,
            subscriptions=self.subscriptions,
            commands=self.commands,
            newcomers=self.newcomers,
            members=self.members,
            users=self.users,
            revocations=self.revocations,
            hub=self.hub,
            backlog=self.backlog,
            events=self.events,
            publisher=self.publisher,
            subscriber=self.subscriber,
        )
        self.capacity = CapacityReporter(
            self._region, self.reactor, reported.outside_bytes, self._hooks.count, self._log
        )
        self.reporter = StatisticsReporter(self._region, reported, self.capacity, counts)

    def renew(self, options: ShardOptions) -> None:
        """Use these options in every part from now on; no connection is closed for them.

        Raises:
            WsgateError: A key or a limit is not valid. Nothing was changed.
        """
        keys = tuple(source.make(is_checked=True) for source in options.keys)
        self.reactor.renew(options.reactor)
        self._options = options
        self.tokens.renew(keys, options.tokens, options.token_cache_entries)
        self.access.renew(options.channels, options.any_channel)
        self.newcomers.renew(options)
        self.members.renew(options)
        self.replies.renew(options)
        self.subscriptions.renew(options)
        self.logins.renew(options)
        self.commands.renew(options)
        self.hub.limit_unconfirmed(options.reactor.max_subscriptions)
        self.users.renew(options.user_limits)
        self.subscriber.limit_payload(_payload_limit_bytes(options))
        self.encoder.threshold_bytes = options.compression_threshold_bytes

    def forget(self, conn: int) -> None:
        """Drop what the parts keep for a connection that is closed."""
        self.logins.forget(conn)
        self.subscriptions.forget(conn)
        self.replies.forget(conn)
        self.commands.forget(conn)
        self.newcomers.forget(conn)
        self.members.forget(conn)

    def _encode_slow(self, variant: int, name: bytes, first: int, last: int) -> bytes:
        return self.gaps.encode_slow(variant, name, first, last)

    def _gap_spread_ms(self) -> int:
        """Return within how many milliseconds the clients of this node load again what they missed."""
        shards = range(self._block.shards)
        connections = sum(self._block.shard(number)["now_connections"] for number in shards)
        return self._options.gap_spread_ms or spread_ms_for(connections)

    def _learn_revocation(self, user: str, before_s: float) -> None:
        """Apply a revocation that was read from the bus and is new to this shard."""
        self.control.learn(user, before_s)
        self._hooks.wake()


def _payload_limit_bytes(options: ShardOptions) -> int:
    """Return the size in bytes of the largest publication in its envelope: what the bus may send."""
    rules = [*options.channels.values(), *filter(None, [options.any_channel])]
    return max((each.max_publish_bytes for each in rules), default=0) + ENVELOPE_ROOM_BYTES
