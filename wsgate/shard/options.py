"""Define the options of a shard, and the memory that the processes of a node share.

The node makes both before it forks a shard. Options are frozen: a reload of the configuration makes new ones.
"""

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
"""The meta object of the connection of such a client, where events are off; also one object for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRules:
    """The rules of one namespace of channels.

    Attributes:
        subscribe: Which clients may subscribe: `anyone`, `authenticated`, `token` or `nobody`.
        publish: Which clients may publish: the same words.
        slow_consumer: What a slow consumer loses, one of `wsgate.reactor.event_kinds.POLICY_`.
        max_publish_bytes: The largest payload of a publication.
    """

    subscribe: str = "token"
    publish: str = "nobody"
    slow_consumer: int = 0
    max_publish_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOptions:
    """Which events are recorded for backends, and in which streams.

    Attributes:
        enabled: The types of `wsgate.shard.backend_events.EVENT_TYPES` that are recorded; empty: none.
        partitions: Number of streams.
        maxlen: Entries that a stream is trimmed to, approximately; 0: it is never trimmed.
        pubsub: Whether each event is also published.
    """

    enabled: frozenset[str] = frozenset()
    partitions: int = 1
    maxlen: int = 100_000
    pubsub: bool = False


NO_EVENTS = EventOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLimits:
    """Limits of one user on all nodes of a bus together; 0 switches a limit off.

    Attributes:
        connections: Connections at once.
        replaces: Whether one more connection replaces the oldest; else it is refused.
        rate_per_s: Messages per second.
    """

    connections: int = 0
    replaces: bool = True
    rate_per_s: int = 0


NO_USER_LIMITS = UserLimits()

DESCRIPTORS_OF_OURS: Final = 32
"""Descriptors that a shard opens besides clients: epoll sets, bus, pipes, standard streams."""

CONFIGURATION_BYTES: Final = 4 * 1024 * 1024
KEY_SET_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Boards:
    """Shared memory through which a running shard receives a new configuration and a new key set."""

    configuration: Board = field(default_factory=lambda: Board(CONFIGURATION_BYTES))
    """A `Renewal`, posted by the keeper."""
    key_set: Board = field(default_factory=lambda: Board(KEY_SET_BYTES))
    """A JSON Web Key Set, posted by the admin process."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Memory and sockets that the processes of a node share, made before any of them is forked."""

    block: StatisticsBlock
    boards: Boards = field(default_factory=Boards)
    addresses: SharedAddresses | None = None
    """Where the connections of each address are counted; None: they are not counted, nor limited."""
    handovers: tuple[tuple[socket.socket, socket.socket], ...] = ()
    """See `wsgate.shard.handover.Handovers`."""
    owners: tuple[str, ...] = ()
    """The name of this shard as an owner of connections on the bus, then those of the processes before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """The options of one shard of a node; names of quantities end with their unit."""

    node: str
    node_lease: str = ""  # the value of the lease on the node's name; empty: there is no lease
    number: int
    reactor: Settings
    gate: GateLimits
    node_limits: NodeLimits = NO_NODE_LIMITS  # from these, `gate` and `unauthenticated_limit` are computed
    bus: BusAddress
    bus_prefix: str = "wsgate"
    bus_connect_timeout_s: float = 5.0
    bus_command_timeout_s: float = 5.0
    bus_backlog_bytes: int = 32 * 1024 * 1024  # publications that were received and are not delivered yet
    path: str = "/ws"
    page_url: str = ""  # the address of the try page; empty: there is none
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
    has_private_bus: bool = False  # the bus is this node's own: no other node can take over its clients
    bus_shares: BusShares = field(default_factory=lambda: BusShares.of(0, 1))  # memory of the private bus
    probe_interval_ms: int = 5_000
    gap_spread_ms: int = 0  # time over which the node's clients spread their loads; 0: by their number
    events: EventOptions = NO_EVENTS
    user_limits: UserLimits = NO_USER_LIMITS
    publish_rate_per_s: int = 0  # publishes of one connection; 0: no limit
    publish_burst: int = 0  # publishes of one connection at once; 0: as many as in one second
    byte_rates: ByteRates = NO_BYTE_RATES  # for the bytes that clients send to the bus
    is_fetching_keys: bool = False  # the admin process posts a key set
    is_dev: bool = False  # a refusal names its cause to the peer, and `/` leads to the try page
