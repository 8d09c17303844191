"""What a shard is told at its start, frozen. Made by the node from the configuration."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from wsgate.admission import NO_BYTE_RATES, BusShares, ByteRates
from wsgate.auth import NO_PERMISSIONS, Identity, KeySource, OriginPolicy, TokenPolicy
from wsgate.bus import BusAddress
from wsgate.reactor import GateLimits, Settings, SharedAddresses
from wsgate.shard.shares import NO_NODE_LIMITS, NodeLimits
from wsgate.statistics import Board, StatisticsBlock

__all__ = [
    "ANONYMOUS",
    "ANONYMOUS_MEMBER",
    "DESCRIPTORS_OF_OURS",
    "NO_EVENTS",
    "NO_USER_LIMITS",
    "Boards",
    "ChannelRules",
    "EventOptions",
    "ShardOptions",
    "Shared",
    "UserLimits",
]

ANONYMOUS = Identity(user="", permissions=NO_PERMISSIONS, expires_at_s=0)
"""The identity of a client without a token, where none is needed. One object for all such clients."""
ANONYMOUS_MEMBER = ANONYMOUS.member()
"""What a connection of such a client keeps; also one object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRules:
    """One namespace: who may do what, and what a slow consumer of it loses."""

    subscribe: str = "token"  # anyone, authenticated, token or nobody
    publish: str = "nobody"
    slow_consumer: int = 0  # wsgate.reactor.event_kinds.POLICY_
    max_publish_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOptions:
    """What backends are told, and where.

    Attributes:
        enabled: Of `wsgate.shard.backend_events.EVENT_TYPES`; none: no backend listens.
        partitions: Number of streams.
        maxlen: Entries a stream is trimmed to, about; 0: never.
        pubsub: Whether each is published besides.
    """

    enabled: frozenset[str] = frozenset()
    partitions: int = 1
    maxlen: int = 100_000
    pubsub: bool = False


NO_EVENTS = EventOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLimits:
    """What one user may have on all nodes of a bus; 0 switches a limit off."""

    connections: int = 0
    replaces: bool = True  # one more replaces the oldest; else it is refused
    rate_per_s: int = 0  # of messages


NO_USER_LIMITS = UserLimits()

DESCRIPTORS_OF_OURS: Final = 32
"""What a shard opens besides clients: epoll sets, bus, pipes, standard streams."""

CONFIGURATION_BYTES: Final = 4 * 1024 * 1024
KEY_SET_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Boards:
    """What a running shard is told anew, in memory it shares: made before it is forked."""

    configuration: Board = field(default_factory=lambda: Board(CONFIGURATION_BYTES))
    """A `Renewal`, posted by the keeper."""
    key_set: Board = field(default_factory=lambda: Board(KEY_SET_BYTES))
    """A JSON Web Key Set, posted by the admin process."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Memory that a node's processes share, made before any of them is forked."""

    block: StatisticsBlock
    boards: Boards = field(default_factory=Boards)
    addresses: SharedAddresses | None = None
    """Where connections of an address are counted; None: nowhere, and the gate has no limit of it."""
    handovers: tuple[tuple[socket.socket, socket.socket], ...] = ()
    """See `wsgate.shard.handover.Handovers`."""
    owners: tuple[str, ...] = ()
    """What this shard calls itself on the bus, and what those called themselves whose place it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """One shard of a node. Times in the unit their name ends with."""

    node: str
    node_lease: str = ""  # what the lease of the node's name holds; empty: there is none
    number: int
    reactor: Settings
    gate: GateLimits
    node_limits: NodeLimits = NO_NODE_LIMITS  # what `gate` and `unauthenticated_limit` are computed from
    bus: BusAddress
    bus_prefix: str = "wsgate"
    bus_connect_timeout_s: float = 5.0
    bus_command_timeout_s: float = 5.0
    bus_backlog_bytes: int = 32 * 1024 * 1024  # publications received and not handed on
    path: str = "/ws"
    page_url: str = ""  # of the try page; empty: there is none
    origins: OriginPolicy
    keys: tuple[KeySource, ...] = ()
    tokens: TokenPolicy
    token_cache_entries: int = 65_536
    compression_threshold_bytes: int = 512
    is_compressing: bool = False
    allow_anonymous: bool = False
    allow_query_token: bool = False
    auth_timeout_ms: int = 5_000
    unauthenticated_limit: int = 1_024  # upgraded connections that have not shown a token yet
    max_channel_name_bytes: int = 200
    channels: Mapping[str, ChannelRules] = field(default_factory=dict)
    any_channel: ChannelRules | None = None  # rules of namespaces not listed; None: there are no others
    inbox_slow_consumer: int = 0
    drain_timeout_ms: int = 30_000
    has_private_bus: bool = False  # the bus is this node's own: no other node can take its clients
    bus_shares: BusShares = field(default_factory=lambda: BusShares.of(0, 1))  # of the node's own bus
    probe_interval_ms: int = 5_000
    gap_spread_ms: int = 0  # within which the node's clients load anew what they missed; 0: by their number
    events: EventOptions = NO_EVENTS
    user_limits: UserLimits = NO_USER_LIMITS
    publish_rate_per_s: int = 0  # of one connection; 0: any
    publish_burst: int = 0  # publishes of one connection at once; 0: what a second allows
    byte_rates: ByteRates = NO_BYTE_RATES  # of what clients put onto the bus
    is_fetching_keys: bool = False  # the admin process posts a key set
    is_dev: bool = False  # causes of refusals are told to the peer, and `/` leads to the try page
