"""Define every setting: type, unit, range, default and meaning.

The comment above each field is the manual of its key; `docs/reference/configuration.md` is generated from
these comments. The name of the key is the name of the field without its unit (`ping_interval_ms` is
`ping_interval` in a file). Durations are text such as "250ms", "25s", "1h" and are stored in milliseconds;
sizes are text such as "64KiB" or a number of bytes. A range is checked where a file, the environment or a
flag is read (`wsgate.config.sources`). These structs check nothing when code constructs them, and `faults`
checks the rules between settings.

This module must not know which source a value came from, nor which process uses it.
"""

import ipaddress
import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, field

from wsgate.bus_address import mask_password, parse_address
from wsgate.config.units import parse_duration_ms, parse_size_bytes, quote
from wsgate.errors import InternalError, SettingsError

__all__ = [
    "Access",
    "Admin",
    "Admission",
    "Algorithm",
    "Auth",
    "Bus",
    "Config",
    "EventType",
    "Events",
    "Health",
    "Heartbeat",
    "Inbox",
    "Key",
    "Limits",
    "Log",
    "LogFormat",
    "LogLevel",
    "Namespace",
    "Section",
    "Server",
    "SlowConsumer",
    "UserPolicy",
    "dotted",
    "faults",
    "fields_of",
    "is_loopback",
    "kind_of",
    "masked",
]

Algorithm = Literal[
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
]
"""Algorithm of a signature. HS algorithms use a shared secret, the others a public key of the issuer."""

Access = Literal["anyone", "authenticated", "token", "nobody"]
"""Which clients a rule allows: all, those with a token, those whose token names the channel, or none."""

EventType = Literal["connected", "disconnected", "subscribed", "unsubscribed", "message"]
"""Type of an event that backends can receive."""

SlowConsumer = Literal["close", "drop_oldest", "latest_only"]
"""What a full outbox costs: the connection, the oldest publications, or all publications but the latest."""

UserPolicy = Literal["replace_oldest", "refuse"]
"""Which connection of a user is closed or refused when the user has one too many."""

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

MASK: Final = "***"
PROXIES_MOST: Final = 64
SECRET_CHARACTERS_LEAST: Final = 8
"""A secret must have at least this many different characters."""
SECRET_PERIOD_LEAST: Final = 16
"""A secret that repeats a text shorter than this is as weak as that text."""
API_KEY_BYTES_LEAST: Final = 16
"""Length of an API key that other machines can try: 64 random bits in hexadecimal."""

# Kinds of text with a rule of their own. `masked` hides the first two; each may come from a file.
Secret = Annotated[str, Meta(extra={"kind": "secret"})]
SecretUrl = Annotated[str, Meta(extra={"kind": "secret_url"})]
PublicKey = Annotated[str, Meta(extra={"kind": "public_key"})]


def _duration(low: str, high: str) -> Meta:
    return Meta(ge=parse_duration_ms(low), le=parse_duration_ms(high), extra={"kind": "duration"})


def _size(low: str, high: str) -> Meta:
    return Meta(ge=parse_size_bytes(low), le=parse_size_bytes(high), extra={"kind": "size"})


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: frozen, with a `repr` that shows no secret."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [
            (info.name, masked(kind_of(info), getattr(self, info.name))) for info in fields_of(type(self))
        ]


class Server(Section, frozen=True, kw_only=True):
    """`[server]`: the port for clients."""

    # Address that the client port listens on: an IPv4 address, an IPv6 address or a host name. By default the
    # gateway listens on every IPv4 address, because clients are on other machines. With server.dev it listens
    # on this machine only, because development mode lets every client read and publish. Must not be empty.
    # Default "0.0.0.0", with server.dev "127.0.0.1".
    host: str = "0.0.0.0"  # noqa: S104 - a gateway is there to be reached

    # TCP port for clients. 0 lets the kernel choose a free port, which is useful for tests. 0 to 65535.
    # Default 8000.
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000

    # Path of the WebSocket endpoint. The client port also answers /readyz and /client.js; any other path gets
    # 404. With server.dev, "/" redirects to the try page. The path starts with "/" and consists of printable
    # ASCII without "?" and "#". Default "/ws".
    path: str = "/ws"

    # Name of this node in metrics, events and control channels. It must be the same after every start. On a
    # bus that several nodes share, each name belongs to one live node; a second node with the same name does
    # not start. 1 to 64 letters, digits, "_", "." and "-". If the name is empty, the node takes the host
    # name; a second node on the same machine takes the host name with the port. Default "".
    node: str = ""

    # Operating system user that a gateway started as root switches to after it has bound its ports; it takes
    # the groups of that user, too. If the name is empty, the gateway keeps its user, and logs a warning if
    # that is root. Default "".
    user: str = ""

    # Number of processes that serve clients, with one event loop each. 0 starts one process per usable core;
    # more than that do not help. 0 to 64. Default 0.
    shards: Annotated[int, Meta(ge=0, le=64)] = 0

    # Origins of web pages that may connect, in addition to pages of the host that the client connects to. For
    # a web page (http, https) write exactly `scheme://host[:port]` in lower case. For an app or a browser
    # extension write exactly what it sends, such as "file://", "capacitor://localhost" or
    # "chrome-extension://<id>". For a page from a file or a sandbox write the word null. Patterns are not
    # supported, because a suffix match also admits hosts of strangers. In development mode every page of
    # localhost or a loopback address may connect as well, but no page of another host. Default [].
    allowed_origins: tuple[str, ...] = ()

    # Addresses or networks of the proxies in front of the client port, such as "10.0.0.0/8". Only these
    # proxies may name the address of a client, in X-Forwarded-For or, with proxy_protocol, in a PROXY header.
    # The limits per address then apply to the named client and not to the proxy. At most 64. Default [].
    trusted_proxies: tuple[str, ...] = ()

    # Whether the trusted proxies begin every connection with a PROXY header, version 1 or 2, as haproxy does
    # with send-proxy. A connection of such a proxy without a valid header is cut. Default false.
    proxy_protocol: bool = False

    # Whether the gateway accepts the extension permessage-deflate (RFC 7692) when a client offers it. A
    # publication is then compressed once for all these clients, and clients may compress their messages.
    # Context takeover is never used, so compression needs no memory per connection. It costs CPU time and
    # helps clients with little bandwidth. Default false.
    compression: bool = False

    # Smallest publication that is compressed. Smaller ones hardly shrink. Size, 0B to 1MiB. Default "512B".
    compression_threshold_bytes: Annotated[int, _size("0B", "1MiB")] = field(
        default=512, name="compression_threshold"
    )

    # Time that a stopping node gives its clients to leave. The gateway spreads the Close frames over this
    # time, so that clients do not reconnect all at once. Duration, 0s to 1h. Default "30s".
    drain_timeout_ms: Annotated[int, _duration("0", "1h")] = field(default=30_000, name="drain_timeout")

    # Development mode: clients need no token, and every channel is open, even if its namespace is not
    # configured. The mode changes defaults only; a setting that is set explicitly keeps its value,
    # server.host too. Never use it where strangers can connect. Default false.
    dev: bool = False


class Key(Section, frozen=True, kw_only=True):
    """`[auth.keys.<kid>]`: a key that tokens may be signed with."""

    # The only algorithm that this key is used with, whatever the header of a token names. One of HS256,
    # HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA. Required, because a
    # guessed algorithm would be a security hole. No default.
    algorithm: Algorithm

    # Shared secret of an HS algorithm: at least 32 bytes for HS256, 48 for HS384 and 64 for HS512, which is
    # the length of the hash; a shorter secret can be guessed. Can be given as secret_file instead. Default
    # "".
    secret: Secret = ""

    # Public key in PEM format: RSA with at least 2048 bits for RS and PS algorithms, P-256, P-384 or P-521
    # for ES256, ES384 or ES512, Ed25519 for EdDSA. Can be given as public_key_file instead. Default "".
    public_key: PublicKey = ""


class Auth(Section, frozen=True, kw_only=True):
    """`[auth]`: which clients may connect."""

    # Shared secret (HS256) of tokens whose header names no key. This is the simplest set-up. At least 32
    # bytes; a short text that is repeated is refused. If it is empty, only auth.keys and auth.jwks_url verify
    # tokens, and with server.dev a secret that is made at the start. Can be given as hmac_secret_file
    # instead. Default "".
    hmac_secret: Secret = ""

    # Whether clients without a token may connect. Such a client has no user, and reaches only channels whose
    # rules allow anyone. Default false, with server.dev true.
    allow_anonymous: bool = False

    # Whether a token may be part of the URL (`?token=`). Off by default, because proxies write URLs into
    # their logs. Default false.
    allow_query_token: bool = False

    # Value that the claim `aud` of a token must contain. If it is empty, `aud` is not checked. Default "".
    audience: str = ""

    # Value that the claim `iss` of a token must have. If it is empty, `iss` is not checked. Default "".
    issuer: str = ""

    # Largest difference between the clock of the issuer and the clock of this machine that is tolerated when
    # `exp` and `nbf` are checked. Zero by default, because synchronized clocks are usual. Whatever the
    # leeway, `iat` may be up to one minute in the future, because it only tells the age of a token. A client
    # whose token is not valid yet is refused for the moment and may come back. Duration, 0s to 5m. Default
    # "0s".
    leeway_ms: Annotated[int, _duration("0", "5m")] = field(default=0, name="leeway")

    # Whether a token must have the claim `exp`. A leaked token without `exp` is valid for ever. Default true.
    require_exp: bool = True

    # Longest time from `iat` to `exp` of a token. A token with a longer life is refused, and so is a token
    # that lacks one of the two claims. The limit bounds how long a revocation must be remembered. 0s allows
    # any life; then revocations are remembered until the node ends, or until 65,536 users are revoked and the
    # earliest revocation becomes one for all users. Duration, 0s to 8760h. Default "0s".
    token_max_life_ms: Annotated[int, _duration("0", "8760h")] = field(default=0, name="token_max_life")

    # Number of verified tokens that each shard remembers, so that a returning client costs no cryptography. 0
    # switches the cache off. 0 to 10000000. Default 65536.
    token_cache_entries: Annotated[int, Meta(ge=0, le=10_000_000)] = field(default=65_536, name="token_cache")

    # URL of the issuer's keys (a JSON Web Key Set). The set is fetched every five minutes, and also when a
    # token names a key that is not known yet. The URL must be https, or http on this machine; redirects are
    # not followed. A key without alg is used with RS256, or with the algorithm of its curve. Keys that cannot
    # be used are logged. Requires auth.issuer, because a kid is only unique for one issuer. Default "".
    jwks_url: str = ""

    # Keys by the `kid` in the header of a token. Configure the old and the new key together while you rotate
    # keys. A token whose kid is neither here nor in the set of auth.jwks_url is refused. Default: none.
    keys: dict[str, Key] = field(default_factory=dict)


class Heartbeat(Section, frozen=True, kw_only=True):
    """`[heartbeat]`: detection of connections whose peer has vanished."""

    # Time without a byte from a connection after which the gateway sends a ping. The default is below the 30
    # s after which the strictest proxies and mobile networks drop an idle connection. 0 switches the
    # heartbeat off; the connection of a vanished client then stays open until something is written to it.
    # Duration, 0s to 1h. Default "25s".
    ping_interval_ms: Annotated[int, _duration("0", "1h")] = field(default=25_000, name="ping_interval")

    # Time after a ping within which any byte must arrive; otherwise the connection is closed with 4008. Must
    # be more than 0 while ping_interval is. Duration, 0s to 1h. Default "10s".
    pong_timeout_ms: Annotated[int, _duration("0", "1h")] = field(default=10_000, name="pong_timeout")


class Limits(Section, frozen=True, kw_only=True):
    """`[limits]`: what one connection may use."""

    # Largest message that a client may send, all its fragments together. A larger one closes the connection
    # with 1009. Size, 1B to 1GiB. Default "64KiB".
    max_message_bytes: Annotated[int, _size("1B", "1GiB")] = field(default=65_536, name="max_message")

    # Largest number of fragments of one message. More close the connection with 1008. The limit stops a
    # client from using much CPU time with very many tiny fragments. 1 to 1000000. Default 1024.
    max_fragments: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024

    # Largest number of channels that a connection may be subscribed to; the inbox of its user does not count.
    # 0 switches the limit off. 0 to 1048576. Default 128.
    max_subscriptions: Annotated[int, Meta(ge=0, le=1_048_576)] = 128

    # Longest channel name, in bytes of UTF-8. The protocol allows 200 bytes; the setting can lower that.
    # Size, 1B to 200B. Default "200B".
    max_channel_name_bytes: Annotated[int, _size("1B", "200B")] = field(default=200, name="max_channel_name")

    # Messages that a connection may send per second, with a burst of one second's amount. More close the
    # connection with 4029. 0 switches the limit off, because no number fits every application. 0 to 1000000.
    # Default 0.
    message_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(default=0, name="message_rate")

    # Message bytes that a connection may send per second, with a burst of one second's amount. More close the
    # connection with 4029. 0 switches the limit off. Size, 0B to 1GiB. Default "0B".
    byte_rate_per_s: Annotated[int, _size("0", "1GiB")] = field(default=0, name="byte_rate")

    # Publishes that a connection may send per second. One more is answered with 429 rate_limited and
    # retry_ms; the connection stays open. The limit is on by default, because every publication costs work on
    # the bus and for every subscriber. 0 switches it off. 0 to 1000000. Default 1000.
    publish_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(default=1_000, name="publish_rate")

    # Publishes that a connection may send at once, while publish_rate is on. 0 allows the amount of one
    # second. 0 to 1000000. Default 2000.
    publish_burst: Annotated[int, Meta(ge=0, le=1_000_000)] = 2_000

    # Payload bytes that a connection may send to the bus per second with `pub` and `send`, and also the
    # burst. More are answered with 429 rate_limited and retry_ms; the connection stays open. A single message
    # that is larger than the burst is accepted when nothing was sent for long enough, and the next one then
    # waits longer. The limit is on by default, because a dozen clients without it publish faster than a shard
    # can receive. 0 switches it off. Size, 0B to 1GiB. Default "4MiB".
    publish_byte_rate_per_s: Annotated[int, _size("0", "1GiB")] = field(
        default=4 * 1024 * 1024, name="publish_byte_rate"
    )

    # Payload bytes that all connections of the node together may send to the bus per second, divided among
    # its shards. The burst is a quarter of that, and with the private bus at most half of the output buffer
    # of one shard there. The default is about what one busy shard can receive: the bus disconnects a shard
    # that falls behind, and the shard then misses publications. 0 switches the limit off. Size, 0B to 16GiB.
    # Default "64MiB".
    node_publish_byte_rate_per_s: Annotated[int, _size("0", "16GiB")] = field(
        default=64 * 1024 * 1024, name="node_publish_byte_rate"
    )

    # Bytes that may wait to be written to one connection before slow_consumer of the channel applies. This
    # limit, outbox_frames and outbox_age apply only to a connection that is behind: its socket was full, and
    # it has not yet taken everything that waited at that time. For other connections, publications wait in
    # the backlog of [bus]. Publications also wait briefly (1 s at first, then a twentieth of the time) for a
    # connection that is behind and still takes bytes, and longer if most connections are behind at once. Such
    # a connection may hold one more message. Size, 1KiB to 1GiB. Default "1MiB".
    outbox_bytes: Annotated[int, _size("1KiB", "1GiB")] = 1_048_576

    # Frames that may wait to be written to one connection that is behind, which limits many small frames. In
    # the first 5 s that a connection is behind it may hold more frames, as many as outbox_bytes allows. 1 to
    # 1048576. Default 256.
    outbox_frames: Annotated[int, Meta(ge=1, le=1_048_576)] = 256

    # Greatest age of a frame that waits to be written to a connection that is behind. Duration, 1ms to 30m.
    # Default "10s".
    outbox_age_ms: Annotated[int, _duration("1ms", "30m")] = field(default=10_000, name="outbox_age")

    # Time from accept until the last byte of the HTTP request head has arrived. The time does not start again
    # when bytes arrive. Duration, 1ms to 1h. Default "10s".
    head_timeout_ms: Annotated[int, _duration("1ms", "1h")] = field(default=10_000, name="head_timeout")

    # Time within which a client that needs a token must send it; otherwise the connection is closed with
    # 4002. Duration, 1ms to 1h. Default "5s".
    auth_timeout_ms: Annotated[int, _duration("1ms", "1h")] = field(default=5_000, name="auth_timeout")

    # Time for which a socket may take no byte while data waits for it. Then the connection is reset, because
    # a Close would not be read either: the client sees 1006, and the reason in the metrics is write_stall.
    # Duration, 1ms to 1h. Default "10s".
    write_timeout_ms: Annotated[int, _duration("1ms", "1h")] = field(default=10_000, name="write_timeout")

    # Time without a message from a client after which the connection is closed with 4003; pongs do not count
    # as messages. 0 switches the limit off, because a client that only receives is normal. Duration, 0s to
    # 24h. Default "0s".
    idle_timeout_ms: Annotated[int, _duration("0", "24h")] = field(default=0, name="idle_timeout")

    # Time from the first to the last byte of one message; then the connection is closed with 1008. The limit
    # stops an unfinished message from using memory for ever. 0 switches it off. Duration, 0s to 1h. Default
    # "30s".
    message_timeout_ms: Annotated[int, _duration("0", "1h")] = field(default=30_000, name="message_timeout")


class Admission(Section, frozen=True, kw_only=True):
    """`[admission]`: how much a node accepts. Numbers are per node unless the text says otherwise."""

    # Largest number of connections of the node; at least one for each shard. 0 allows as many as the limit of
    # descriptors allows. 0 to 16777216. Default 0.
    max_connections: Annotated[int, Meta(ge=0, le=16_777_216)] = 0

    # Descriptors that are never used for clients. The bus, the admin port and log files need some, and so do
    # the answers to refused clients. 0 to 65536. Default 64.
    reserve_descriptors: Annotated[int, Meta(ge=0, le=65_536)] = 64

    # Handshakes per second that the node accepts, divided among the shards in the same way as connections.
    # More are answered with 503 and may come back later. 0 switches the limit off. 0 to 1000000. Default 0.
    handshake_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(default=0, name="handshake_rate")

    # Handshakes in progress at once, per shard. The limit is on by default, because unfinished handshakes are
    # the cheapest attack. At the limit the shard answers one incomplete request head with 408 to make room
    # for a new connection: the oldest head of the address that has most of them, so that one address cannot
    # end the handshakes of others. If all heads are complete, the new connection is answered with 503. 0
    # switches the limit off. 0 to 1000000. Default 1024.
    handshakes_in_progress: Annotated[int, Meta(ge=0, le=1_000_000)] = 1024

    # Connections of one address at once, on all shards of the node; an IPv6 /64 counts as one address. More
    # are answered with 429. Many phones can share one address: a mobile network can need thousands of
    # connections. 0 switches the limit off. 0 to 16777214. Default 0.
    per_address_connections: Annotated[int, Meta(ge=0, le=16_777_214)] = 0

    # Connections that one address may open per second on the node, with a burst of one second's amount. More
    # are answered with 429. 0 switches the limit off. 0 to 1000000. Default 0.
    per_address_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(
        default=0, name="per_address_rate"
    )

    # Connections of one user at once, on all nodes that share the bus. Set the same number on every node. A
    # lower number closes nothing by itself: it acts when the user connects again. Clients without a user are
    # not counted, and while the bus does not answer every user is admitted. 0 switches the limit off. 0 to
    # 1000. Default 0.
    per_user_connections: Annotated[int, Meta(ge=0, le=1000)] = 0

    # What happens when a user opens one connection too many: replace_oldest closes the oldest connection of
    # the user with 4509, refuse closes the new one with 4029. Default "replace_oldest", because the old one
    # may belong to a phone that has lost its network.
    per_user_policy: UserPolicy = "replace_oldest"

    # Messages that one user may send per second over all connections, on all nodes that share the bus, with a
    # burst of one second's amount. Until the bus has answered for a user, each shard allows an eighth of
    # that in each second, but at least ten messages, or one second's amount where that is less. More are
    # answered with 429 rate_limited. 0 switches
    # the limit off. 0 to 1000000. Default 0.
    per_user_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(default=0, name="per_user_rate")

    # Bytes of unfinished input of all clients of the node: request heads, frames and messages that have not
    # arrived completely. Above the limit new connections are refused, and a connection that sends more
    # unfinished input is closed with 1013; each of them alone may be within its own limits. 0B switches the
    # limit off. Size, 0B to 1024GiB. Default "256MiB".
    partial_bytes: Annotated[int, _size("0B", "1024GiB")] = 256 * 1024 * 1024

    # Memory that all processes of the node may use, including what the kernel keeps for their sockets. An
    # eighth is for the private bus, where there is one. When fifteen sixteenths of the part of a shard are
    # used, the shard refuses new connections. Above its part it closes connections in this order: stalled
    # readers, which are reset and see 1006, and then with 4013 unauthenticated connections, connections with
    # unfinished messages, slow readers, the longest idle. The node does not start if the budget is more than
    # the control group or the machine has, because the kernel would kill it first. 0B takes nine tenths of
    # that. Size, 0B to 1024GiB. Default "0B".
    memory_budget_bytes: Annotated[int, _size("0B", "1024GiB")] = field(default=0, name="memory_budget")


class Bus(Section, frozen=True, kw_only=True):
    """`[bus]`: the Redis or Valkey server that connects shards, nodes and backends."""

    # Address of the bus: redis://[user:password@]host[:port], unix:///path, redis+sentinel://h1,h2/primary or
    # redis+cluster://h1,h2. With TLS the schemes are rediss://, rediss+sentinel:// and rediss+cluster://,
    # with files as ?ssl_ca_certs=/path&ssl_certfile=/path&ssl_keyfile=/path. Only database 0 is possible,
    # because pub/sub does not distinguish databases. If the address is empty, the gateway starts a private
    # server on a Unix socket, for this node only. The address is treated as a secret, because it may contain
    # a password. Can be given as url_file instead. Default "".
    url: SecretUrl = ""

    # Password of the user in bus.url, if it should not be part of the URL. Can be given as password_file
    # instead. Default "".
    password: Secret = ""

    # First part of the name of every key and channel on the bus. Gateways with different prefixes may share a
    # server. 1 to 32 letters, digits, "_", "." and "-". Default "wsgate".
    prefix: str = "wsgate"

    # Time that a connection attempt to the bus may take before it counts as failed and is repeated. Duration,
    # 1ms to 5m. Default "5s".
    connect_timeout_ms: Annotated[int, _duration("1ms", "5m")] = field(default=5_000, name="connect_timeout")

    # Time that the bus may take to answer a command before the command counts as failed. Duration, 1ms to 5m.
    # Default "5s".
    command_timeout_ms: Annotated[int, _duration("1ms", "5m")] = field(default=5_000, name="command_timeout")

    # Time over which the clients of a node load their state again after the bus was lost. Each client is
    # asked to wait for a random part of this time, because all at once would overload the backend. 0 takes a
    # time in which 5,000 clients load per second, and at least 2 s. Duration, 0s to 1h. Default "0s".
    gap_spread_ms: Annotated[int, _duration("0", "1h")] = field(default=0, name="gap_spread")

    # Bytes of publications that a shard may hold after it has received them and before it has passed them on
    # to its clients. A burst up to this size reaches every client that reads. From a larger burst the oldest
    # publications are lost, and their subscribers are notified with a gap. The default is large, because the
    # bus disconnects a subscriber that does not read. The backlog takes at most a quarter of the part of a
    # shard of admission.memory_budget. Size, 1MiB to 16GiB. Default "32MiB".
    backlog_bytes: Annotated[int, _size("1MiB", "16GiB")] = field(default=32 * 1024 * 1024, name="backlog")


class Events(Section, frozen=True, kw_only=True):
    """`[events]`: events for backends, in streams on the bus; protocols/backend/v1 describes their form."""

    # Types of events that backends receive: any of connected, disconnected, subscribed, unsubscribed,
    # message. None by default, because a stream that no backend reads only costs memory. With "message"
    # clients may use `send`. Default [].
    enabled: tuple[EventType, ...] = ()

    # Number of streams over which events are distributed by user. At most as many backend processes can share
    # the work and keep the order of each user, if each reads streams of its own. Must be the same on every
    # node. 1 to 64. Default 1.
    partitions: Annotated[int, Meta(ge=1, le=64)] = 1

    # Approximate number of entries to which each stream is trimmed. A backend that was away for longer misses
    # the oldest events. 0 never trims. A private bus that has no memory left also removes entries that every
    # consumer group has acknowledged, and counts them. 0 to 1000000000. Default 100000.
    maxlen: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 100_000

    # Whether each event is also published as JSON to the channel with the name of its stream. This is for
    # observers and for backends that may miss events. Default false.
    pubsub: bool = False


class Admin(Section, frozen=True, kw_only=True):
    """`[admin]`: the port for metrics, health, the API and the dashboard."""

    # Address that the admin port listens on. By default only this machine can reach it. Any other address
    # than 127.0.0.0/8, ::1 and localhost requires an api_key. Must not be empty. Default "127.0.0.1".
    host: str = "127.0.0.1"

    # TCP port for the admin API, metrics and dashboard. 0 lets the kernel choose a free port, which is useful
    # for tests. 0 to 65535. Default 9000.
    port: Annotated[int, Meta(ge=0, le=65_535)] = 9000

    # Key that callers of the API must send. If it is empty, the API refuses every call, except in development
    # mode. At least 16 bytes if other machines can reach admin.host. Can be given as api_key_file instead.
    # Default "".
    api_key: Secret = ""


class Health(Section, frozen=True, kw_only=True):
    """`[health]`: how the node checks that it delivers."""

    # Time between two probes that each shard sends to itself through the bus. Readiness depends on them, so
    # an outage of the bus may be noticed late by this time. Duration, 100ms to 1h. Default "5s".
    canary_interval_ms: Annotated[int, _duration("100ms", "1h")] = field(
        default=5_000, name="canary_interval"
    )


class Log(Section, frozen=True, kw_only=True):
    """`[log]`: the lines on standard error."""

    # Format of log lines: text for people, or json (one object per line) for programs. Default "text".
    format: LogFormat = "text"

    # Least important level that is written: debug, info, warning or error. Default "info".
    level: LogLevel = "info"


class Namespace(Section, frozen=True, kw_only=True):
    """`[channels.<namespace>]`: rules of the channels named `<namespace>:...`.

    A namespace's name is made of letters, digits, "_" and "-". `default` always exists, for channels
    whose name has no prefix.
    """

    # Which clients may subscribe: anyone, authenticated (clients with a valid token), token (clients whose
    # token names the channel, or that show a channel token) or nobody. The claims of a token can add rights
    # but not remove any. Channels in the claim `channels` are subscribed whatever this setting says. Default
    # "token", with server.dev "anyone".
    subscribe: Access = "token"

    # Which clients may publish: anyone, authenticated, token (clients whose claim `publish` matches the
    # channel) or nobody. Backends may always publish. Default "nobody", with server.dev "anyone".
    publish: Access = "nobody"

    # What happens to a client that reads too slowly: close ends the connection with 4010, so that no loss
    # goes unnoticed; drop_oldest and latest_only drop publications and notify the client with a gap. With
    # these two the connection is closed all the same if what waits may not be dropped, such as replies or the
    # newest publication of a latest_only channel. limits.write_timeout always applies. Default "close".
    slow_consumer: SlowConsumer = "close"

    # Largest publication, counting only its data. A larger one from a client is refused; a larger one from a
    # backend is dropped. Size, 1B to 1GiB. Default "64KiB".
    max_publish_bytes: Annotated[int, _size("1B", "1GiB")] = field(default=65_536, name="max_publish")


class Inbox(Section, frozen=True, kw_only=True):
    """`[inbox]`: the private channel of each user.

    Only backends publish to an inbox, and the gateway subscribes each connection of a user to its inbox. No
    setting changes that; a client can end the delivery with `unsub`.
    """

    # What happens to a client that reads its inbox too slowly: close, drop_oldest or latest_only, with the
    # same meaning as for a channel. Default "close".
    slow_consumer: SlowConsumer = "close"


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration, frozen. `wsgate.config.load` creates it."""

    # [server]: the port for clients.
    server: Server = Server()

    # [auth]: which clients may connect.
    auth: Auth = field(default_factory=Auth)

    # [heartbeat]: detection of connections whose peer has vanished.
    heartbeat: Heartbeat = Heartbeat()

    # [limits]: what one connection may use.
    limits: Limits = Limits()

    # [admission]: how much a node accepts.
    admission: Admission = Admission()

    # [bus]: the server that connects shards, nodes and backends.
    bus: Bus = Bus()

    # [events]: events for backends.
    events: Events = Events()

    # [admin]: the port for metrics, health, the API and the dashboard.
    admin: Admin = Admin()

    # [health]: how the node checks that it delivers.
    health: Health = Health()

    # [log]: the lines on standard error.
    log: Log = Log()

    # [channels.<namespace>]: rules by namespace; "default" always exists.
    channels: dict[str, Namespace] = field(default_factory=lambda: {"default": Namespace()})

    # [inbox]: rules of the private channel of each user.
    inbox: Inbox = Inbox()

    @property
    def open_namespaces(self) -> bool:
        """Whether every client may use channels of namespaces that are not configured.

        True only in development mode, so that a channel can be tried before it is configured. Otherwise such
        a channel is unknown. A configured namespace always keeps its own rules.
        """
        return self.server.dev


@cache
def fields_of(section: type[msgspec.Struct]) -> tuple[msgspec.inspect.Field, ...]:
    """Return the description of each field of a section, in the order of the source."""
    info = msgspec.inspect.type_info(section)
    if not isinstance(info, msgspec.inspect.StructType):
        raise InternalError(f"{section.__name__} is not a section")
    return info.fields


def kind_of(info: msgspec.inspect.Field) -> str:
    """Return `duration`, `size`, `secret`, `secret_url`, `public_key` or, for a plain type, an empty text."""
    extra = info.type.extra if isinstance(info.type, msgspec.inspect.Metadata) else None
    return str((extra or {}).get("kind", ""))


def masked(kind: str, value: Any) -> Any:
    """Return the value as it may be shown: a secret as `***`, a URL without its password."""
    if kind == "secret" and value:
        return MASK
    return mask_password(value) if kind == "secret_url" else value


def dotted(*keys: str) -> str:
    """Return the path of a setting as TOML writes it; a key that is not a bare key is quoted."""
    return ".".join(key if _BARE_KEY.fullmatch(key) else quote(key) for key in keys)


_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_JWKS_URL: Final = re.compile(r"https?://[!-~]+")
_PATH: Final = re.compile(r"/[!-~]*")
_WEB_ORIGIN: Final = re.compile(r"(?:https?|wss?)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
# The form that wsgate.auth.origins reads: a scheme that is not of the web, no path, no list, no pattern.
_APP_ORIGIN: Final = re.compile(
    r"(?!(?i:https?|wss?):)[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~:\[\]!$&'()+;=%-]*"
)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_NODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}


def faults(config: Config) -> list[str]:
    """Check the rules between settings, each of which is valid alone.

    Returns:
        One line per mistake, each beginning with the path of the setting; empty if there is none. No line
        shows a secret.
    """
    return [
        *_server_faults(config.server),
        *_auth_faults(config),
        *_heartbeat_faults(config.heartbeat),
        *_bus_faults(config.bus),
        *_admin_faults(config.admin),
        *(
            f'{dotted("channels", name)}: a namespace is made of letters, digits, "_" and "-"'
            for name in config.channels
            if not _BARE_KEY.fullmatch(name)
        ),
    ]


def _server_faults(server: Server) -> Iterator[str]:
    if not server.host:
        yield "server.host: must not be empty"
    if not _PATH.fullmatch(server.path) or "?" in server.path or "#" in server.path:
        yield 'server.path: must begin with "/" and be printable ASCII without "?" and "#"'
    yield from _proxy_faults(server)
    if server.node and not _NODE.fullmatch(server.node):
        yield 'server.node: must be 1 to 64 letters, digits, "_", "." and "-"'
    if server.path in ("/readyz", "/client.js"):
        yield f"server.path: the client port uses {server.path} for another answer"
    for index, origin in enumerate(server.allowed_origins):
        if origin == "null" or _APP_ORIGIN.fullmatch(origin):
            continue
        match = _WEB_ORIGIN.fullmatch(origin)
        if match is None or int(match[1] or 0) > 65_535:
            wanted = 'an origin is scheme://host[:port] in lower case, what an app sends, or "null"'
            yield f"server.allowed_origins[{index}]: {quote(origin)}: {wanted}"


def _proxy_faults(server: Server) -> Iterator[str]:
    for index, network in enumerate(server.trusted_proxies):
        try:
            ipaddress.ip_network(network)
        except ValueError:
            wanted = 'an address, or a network such as "10.0.0.0/8" without host bits'
            yield f"server.trusted_proxies[{index}]: {quote(network)}: a proxy is {wanted}"
    if len(server.trusted_proxies) > PROXIES_MOST:
        yield f"server.trusted_proxies: at most {PROXIES_MOST}, not {len(server.trusted_proxies)}"
    if server.proxy_protocol and not server.trusted_proxies:
        yield "server.trusted_proxies: required with server.proxy_protocol, to know whose header counts"


def _auth_faults(config: Config) -> Iterator[str]:
    auth = config.auth
    if auth.hmac_secret:
        yield from _secret_faults("auth.hmac_secret", "HS256", auth.hmac_secret)
    for kid, key in auth.keys.items():
        if not kid:
            yield 'auth.keys."": a key needs a name'
        yield from _key_faults(dotted("auth", "keys", kid), key)
    if not (auth.hmac_secret or auth.keys or auth.jwks_url or auth.allow_anonymous or config.server.dev):
        yield "auth: no client can connect: set auth.hmac_secret, auth.keys, auth.jwks_url or allow_anonymous"
    if auth.jwks_url:
        yield from _jwks_faults(auth)


def _jwks_faults(auth: Auth) -> Iterator[str]:
    try:
        parts = urlsplit(auth.jwks_url)
        is_right = parts.port != 0 and bool(parts.hostname)
    except ValueError:
        is_right = False
    if not is_right or not _JWKS_URL.fullmatch(auth.jwks_url):
        yield "auth.jwks_url: this is not a URL such as https://issuer.example/keys.json"
    elif parts.username is not None or parts.password is not None:
        yield "auth.jwks_url: must not hold a password"
    elif parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        yield "auth.jwks_url: must be https, because others on the network path could add a key"
    if not auth.issuer:
        yield "auth.issuer: required with auth.jwks_url"


def _key_faults(path: str, key: Key) -> Iterator[str]:
    wanted, other = ("secret", "public_key") if key.algorithm in _SECRET_BYTES else ("public_key", "secret")
    if getattr(key, other):
        yield f"{path}.{other}: {key.algorithm} takes a {wanted}, not a {other}"
    if not getattr(key, wanted):
        yield f"{path}.{wanted}: required for {key.algorithm}"
    elif wanted == "secret":
        yield from _secret_faults(f"{path}.secret", key.algorithm, key.secret)
    elif "-----BEGIN " not in key.public_key or "PRIVATE KEY-----" in key.public_key:
        yield f"{path}.public_key: must be a public key in PEM"


def _secret_faults(path: str, algorithm: str, secret: str) -> Iterator[str]:
    least, held = _SECRET_BYTES[algorithm], len(secret.encode())
    if held < least:
        yield f"{path}: must be at least {least} bytes for {algorithm}, has {held}"
    elif _is_guessable(secret):
        yield f"{path}: can be guessed, it repeats a few characters: make one with openssl rand -hex 32"


def _is_guessable(text: str) -> bool:
    """Whether a secret repeats a short text, or consists of very few different characters.

    Neither happens by chance: 32 random hexadecimal digits have fewer than 8 different ones once in 10,000
    million times.
    """
    if len(set(text)) < SECRET_CHARACTERS_LEAST:
        return True
    return any(text[size:] == text[:-size] for size in range(1, SECRET_PERIOD_LEAST))


def _heartbeat_faults(heartbeat: Heartbeat) -> Iterator[str]:
    if heartbeat.ping_interval_ms and not heartbeat.pong_timeout_ms:
        yield "heartbeat.pong_timeout: must be more than 0 while heartbeat.ping_interval is"


def _bus_faults(bus: Bus) -> Iterator[str]:
    if bus.url:
        try:
            parse_address(bus.url)
        except SettingsError as error:
            yield str(error)
    elif bus.password:
        yield "bus.password: there is no bus.url that it belongs to"
    if not _PREFIX.fullmatch(bus.prefix):
        yield 'bus.prefix: must be 1 to 32 letters, digits, "_", "." and "-"'


def _admin_faults(admin: Admin) -> Iterator[str]:
    if not admin.host:
        yield "admin.host: must not be empty"
    elif not admin.api_key and not is_loopback(admin.host):
        yield f"admin.api_key: required, because admin.host {quote(admin.host)} can be reached from outside"
    elif not is_loopback(admin.host):
        held = len(admin.api_key.encode())
        if held < API_KEY_BYTES_LEAST:
            reached = "because admin.host can be reached from outside"
            yield f"admin.api_key: must be at least {API_KEY_BYTES_LEAST} bytes, {reached}; has {held}"
        elif len(set(admin.api_key)) < SECRET_CHARACTERS_LEAST:
            yield "admin.api_key: can be guessed, because it is made of very few different characters"


def is_loopback(host: str) -> bool:
    """Whether the address or name of a setting can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
