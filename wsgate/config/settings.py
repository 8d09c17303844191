"""Every setting once: type, unit, range, default, and why.

This file is the manual: above each field stands what the key means. The key is the field's name
without its unit (`ping_interval_ms` is `ping_interval` in a file). Durations are text such as "250ms",
"25s", "1h" and are held in milliseconds; sizes are text such as "64KiB" or a number of bytes. A range
holds where a file, the environment or a flag is read (`wsgate.config.sources`); constructing these
structs by hand checks nothing, and `faults` says what must hold between settings.

Must not know: where a value came from, or who uses it.
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
"""How a token is signed. HS: a shared secret; the others: the issuer's public key."""

Access = Literal["anyone", "authenticated", "token", "nobody"]
"""Who may: everybody, whoever has a token, whoever's token names the channel, no client at all."""

EventType = Literal["connected", "disconnected", "subscribed", "unsubscribed", "message"]
"""What a backend can be told."""

SlowConsumer = Literal["close", "drop_oldest", "latest_only"]
"""What gives way in a full outbox: the connection, the oldest publications, all but the latest."""

UserPolicy = Literal["replace_oldest", "refuse"]
"""Which connection of a user gives way when there is one too many."""

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

MASK: Final = "***"
PROXIES_MOST: Final = 64
SECRET_CHARACTERS_LEAST: Final = 8
"""Different characters of a secret, at least."""
SECRET_PERIOD_LEAST: Final = 16
"""A secret that is a shorter text over and over is as weak as that text."""
API_KEY_BYTES_LEAST: Final = 16
"""Of an API key that can be tried from outside: 64 random bits in hexadecimal."""

# The kinds of text that are not plain text. `masked` hides the first two; all may come from a file.
Secret = Annotated[str, Meta(extra={"kind": "secret"})]
SecretUrl = Annotated[str, Meta(extra={"kind": "secret_url"})]
PublicKey = Annotated[str, Meta(extra={"kind": "public_key"})]


def _duration(low: str, high: str) -> Meta:
    return Meta(ge=parse_duration_ms(low), le=parse_duration_ms(high), extra={"kind": "duration"})


def _size(low: str, high: str) -> Meta:
    return Meta(ge=parse_size_bytes(low), le=parse_size_bytes(high), extra={"kind": "size"})


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections share: frozen, and their `repr` shows no secret."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [
            (info.name, masked(kind_of(info), getattr(self, info.name))) for info in fields_of(type(self))
        ]


class Server(Section, frozen=True, kw_only=True):
    """`[server]`: where clients come in."""

    # Address the client port listens on: an IPv4 or IPv6 address or a name. All of IPv4 by default,
    # because clients are elsewhere; this machine alone with server.dev, because there everybody may read and
    # publish. Not empty. Default "0.0.0.0", with server.dev "127.0.0.1".
    host: str = "0.0.0.0"  # noqa: S104 - a gateway is there to be reached

    # TCP port for clients. 0 lets the kernel choose one, for tests. 0 to 65535. Default 8000.
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000

    # Path of the WebSocket endpoint; every other path but /readyz and /client.js is answered 404. With
    # server.dev "/" leads to the try page. Begins with "/"; printable ASCII without "?" and "#".
    # Default "/ws".
    path: str = "/ws"

    # Name of this node, for metrics, events and control channels; the same after every start. On a bus that
    # several nodes share only one live node may have it, and a second one does not start. 1 to 64 letters,
    # digits, "_", "." and "-". Empty takes the host name, and the host name with the port for a second node
    # of the same machine. Default "".
    node: str = ""

    # User that a gateway started as root becomes once its ports are bound, with the user's groups. Empty:
    # it stays what it is, and says so where that is root. Default "".
    user: str = ""

    # Processes that hold sockets, one event loop each. 0 starts one per usable core, which is the most
    # that helps. 0 to 64. Default 0.
    shards: Annotated[int, Meta(ge=0, le=64)] = 0

    # Origins that may connect beside web pages of this very host. Of a web page (http, https): exactly
    # `scheme://host[:port]` in lower case. Of an app or an extension: exactly what it sends, such as
    # "file://", "capacitor://localhost" or "chrome-extension://<id>". Of a page from a file or a sandbox:
    # the word null. No patterns: a suffix match is how strangers get in. In development mode any page of
    # localhost or a loopback address may connect as well, and no page of another host name. Default [].
    allowed_origins: tuple[str, ...] = ()

    # Proxies in front of the client port, addresses or networks such as "10.0.0.0/8". Only these are believed
    # about who a client is (X-Forwarded-For, or a PROXY header with proxy_protocol), and the limits of one
    # address hold for whom they name, not for the proxy. At most 64. Default [].
    trusted_proxies: tuple[str, ...] = ()

    # Whether those proxies begin every connection with a PROXY header, version 1 or 2 (haproxy's send-proxy,
    # the load balancers of clouds). A connection of theirs without one is cut. Default false.
    proxy_protocol: bool = False

    # Whether clients that offer permessage-deflate (RFC 7692) are agreed with: publications are then
    # deflated once for all of them, and what they send may be deflated. Never with context takeover, so
    # it costs no memory per connection; it costs processor time, and clients with little bandwidth gain.
    # Default false.
    compression: bool = False

    # Publications below this size are never deflated: they hardly shrink. Size, 0B to 1MiB.
    # Default "512B".
    compression_threshold_bytes: Annotated[int, _size("0B", "1MiB")] = field(
        default=512, name="compression_threshold"
    )

    # How long connections are given to leave when the server stops: their closes are spread over this
    # time so that they do not all come back at once. Duration, 0s to 1h. Default "30s".
    drain_timeout_ms: Annotated[int, _duration("0", "1h")] = field(default=30_000, name="drain_timeout")

    # Development mode: clients need no token and every channel is open, listed or not. It changes
    # defaults only: what is set explicitly stays, server.host too. Never where strangers can connect.
    # Default false.
    dev: bool = False


class Key(Section, frozen=True, kw_only=True):
    """`[auth.keys.<kid>]`: a key that tokens may be signed with."""

    # The one algorithm this key is used with, whatever a token says about itself. One of HS256, HS384,
    # HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA. Required: a guess here
    # would be a hole. No default.
    algorithm: Algorithm

    # Shared secret of an HS algorithm: at least 32, 48 or 64 bytes for HS256, HS384 or HS512, as long as
    # the hash, because a shorter one can be guessed. Also as secret_file. Default "".
    secret: Secret = ""

    # Public key in PEM: RSA of at least 2048 bits for RS and PS, P-256, P-384 or P-521 for ES256, ES384 or
    # ES512, Ed25519 for EdDSA. Also as public_key_file. Default "".
    public_key: PublicKey = ""


class Auth(Section, frozen=True, kw_only=True):
    """`[auth]`: who may come in."""

    # Shared secret (HS256) of tokens that name no key: the simplest set-up. At least 32 bytes, and no short
    # text over and over. Empty: only auth.keys count. Also as hmac_secret_file. Default "".
    hmac_secret: Secret = ""

    # Whether clients without a token may stay; they have no user and reach only channels that are open
    # to anyone. Default false, with server.dev true.
    allow_anonymous: bool = False

    # Whether a token may ride on the URL (?token=). Off, because URLs end up in the logs of every proxy
    # on the way. Default false.
    allow_query_token: bool = False

    # What the claim `aud` of a token must hold. Empty: not checked. Default "".
    audience: str = ""

    # What the claim `iss` of a token must be. Empty: not checked. Default "".
    issuer: str = ""

    # How far the issuer's clock may differ from ours when `exp` and `nbf` are judged. Zero, because
    # machines keep time today. `iat` may lie up to a minute ahead of our clock whatever this is, because it
    # only tells a token's age. A token that is not valid yet is told to come back. Duration, 0s to 5m.
    # Default "0s".
    leeway_ms: Annotated[int, _duration("0", "5m")] = field(default=0, name="leeway")

    # Whether a token must have `exp`. A token without it works for ever once it leaks. Default true.
    require_exp: bool = True

    # Longest time from `iat` to `exp` of a token. A token that lives longer, or lacks one of the two, is
    # refused. The limit bounds how long a revocation must be remembered. 0s: any life; then revocations are
    # remembered until the node ends, or until 65,536 users are revoked and the earliest revocation becomes
    # one for all users. Duration, 0s to 8760h. Default "0s".
    token_max_life_ms: Annotated[int, _duration("0", "8760h")] = field(default=0, name="token_max_life")

    # Verified tokens that each shard remembers, so that a client that returns costs no cryptography.
    # Entries; 0 switches it off. 0 to 10000000. Default 65536.
    token_cache_entries: Annotated[int, Meta(ge=0, le=10_000_000)] = field(default=65_536, name="token_cache")

    # Where the issuer publishes its keys (a JSON Web Key Set): fetched every five minutes and when a token
    # names a key that is not known yet. https, or http on this machine; redirects are not followed. A key
    # without alg is for RS256, or for the algorithm of its curve. Keys that cannot be used are logged. Needs
    # issuer, because a kid means something only with who gave it. Default "".
    jwks_url: str = ""

    # Keys by the `kid` in a token's header; two at a time make a rotation. A token whose kid is not here
    # (nor in the set behind jwks_url) is refused. Default: none.
    keys: dict[str, Key] = field(default_factory=dict)


class Heartbeat(Section, frozen=True, kw_only=True):
    """`[heartbeat]`: how a dead peer is noticed."""

    # How long a connection may be silent before it is pinged. Below the 30 s after which the strictest
    # proxies and carriers forget an idle one. 0 switches the heartbeat off: a peer that vanished then
    # stays until something is written to it. Duration, 0s to 1h. Default "25s".
    ping_interval_ms: Annotated[int, _duration("0", "1h")] = field(default=25_000, name="ping_interval")

    # How long after a ping any byte must have come, else the connection is closed. More than 0 while
    # ping_interval is. Duration, 0s to 1h. Default "10s".
    pong_timeout_ms: Annotated[int, _duration("0", "1h")] = field(default=10_000, name="pong_timeout")


class Limits(Section, frozen=True, kw_only=True):
    """`[limits]`: what one connection may cost."""

    # Largest message a client may send, all fragments together; more closes with 1009. Size, 1B to 1GiB.
    # Default "64KiB".
    max_message_bytes: Annotated[int, _size("1B", "1GiB")] = field(default=65_536, name="max_message")

    # Fragments a message may come in, so that a million tiny ones cannot burn the processor. 1 to
    # 1000000. Default 1024.
    max_fragments: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024

    # Channels a connection may be subscribed to, without the inbox of its user. 0 switches the limit off.
    # 0 to 1048576. Default 128.
    max_subscriptions: Annotated[int, Meta(ge=0, le=1_048_576)] = 128

    # Longest channel name, in bytes of UTF-8. The protocol allows 200; less may be asked for. Size, 1B to
    # 200B. Default "200B".
    max_channel_name_bytes: Annotated[int, _size("1B", "200B")] = field(default=200, name="max_channel_name")

    # Messages a client may send per second; a burst is one second's worth. 0 switches it off, because no
    # number fits every application. 0 to 1000000. Default 0.
    message_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(default=0, name="message_rate")

    # Bytes a client may send per second; a burst is one second's worth. 0 switches it off. Size, 0B to
    # 1GiB. Default "0B".
    byte_rate_per_s: Annotated[int, _size("0", "1GiB")] = field(default=0, name="byte_rate")

    # Publishes a client may send per second on one connection. One more is answered with 429 rate_limited and
    # retry_ms, never with a Close. On by default, because every publication costs the bus and all
    # subscribers. 0 switches it off. 0 to 1000000. Default 1000.
    publish_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(default=1_000, name="publish_rate")

    # Publishes that may come at once on one connection, while publish_rate is on. 0 is what a second allows.
    # 0 to 1000000. Default 2000.
    publish_burst: Annotated[int, Meta(ge=0, le=1_000_000)] = 2_000

    # Payload bytes that one connection may put onto the bus per second, by `pub` and `send`; at once as many.
    # More is answered with 429 rate_limited and retry_ms, never with a Close. On by default, because a dozen
    # clients without a limit publish faster than a shard takes. 0 switches it off. Size, 0B to 1GiB. Default
    # "4MiB".
    publish_byte_rate_per_s: Annotated[int, _size("0", "1GiB")] = field(
        default=4 * 1024 * 1024, name="publish_byte_rate"
    )

    # The same for all connections of the node together, divided among its shards; at once a quarter, and with
    # the node's own bus at most half of what may wait there for a shard. The default is about what one busy
    # shard takes from the bus: a shard that falls behind is cut by the bus and misses publications. 0
    # switches it off. Size, 0B to 16GiB. Default "64MiB".
    node_publish_byte_rate_per_s: Annotated[int, _size("0", "16GiB")] = field(
        default=64 * 1024 * 1024, name="node_publish_byte_rate"
    )

    # Bytes that may wait to be written to a connection before its channels' slow_consumer decides. This and
    # the next two judge only connections that are behind: the socket was full, and has not yet taken all that
    # waited then. Others are never judged; publications wait for them in the backlog of [bus]. They also wait
    # a little (1 s at once, then a twentieth of the time) for one that is behind and still takes bytes, and
    # longer where most connections are behind at once; such a connection may hold one message more. Size,
    # 1KiB to 1GiB. Default "1MiB".
    outbox_bytes: Annotated[int, _size("1KiB", "1GiB")] = 1_048_576

    # Frames that may wait, for floods of small ones. In its first 5 s behind a connection may hold more, as
    # many as outbox_bytes allows. 1 to 1048576. Default 256.
    outbox_frames: Annotated[int, Meta(ge=1, le=1_048_576)] = 256

    # How old what waits may get: news that is late is no news. Duration, 1ms to 30m. Default "10s".
    outbox_age_ms: Annotated[int, _duration("1ms", "30m")] = field(default=10_000, name="outbox_age")

    # How long the request head may take from accept to its last byte, however it trickles in. Duration,
    # 1ms to 1h. Default "10s".
    head_timeout_ms: Annotated[int, _duration("1ms", "1h")] = field(default=10_000, name="head_timeout")

    # How long a client that needs a token may stay without one. Duration, 1ms to 1h. Default "5s".
    auth_timeout_ms: Annotated[int, _duration("1ms", "1h")] = field(default=5_000, name="auth_timeout")

    # How long a socket may take no byte while something waits for it. Duration, 1ms to 1h. Default "10s".
    write_timeout_ms: Annotated[int, _duration("1ms", "1h")] = field(default=10_000, name="write_timeout")

    # How long a client may send no message before it is closed with 4003; answers to pings do not count.
    # 0 switches it off: a phone that only listens is no fault. Duration, 0s to 24h. Default "0s".
    idle_timeout_ms: Annotated[int, _duration("0", "24h")] = field(default=0, name="idle_timeout")

    # How long a message may take from its first byte to its last, so that half of one cannot hold memory
    # for ever. 0 switches it off. Duration, 0s to 1h. Default "30s".
    message_timeout_ms: Annotated[int, _duration("0", "1h")] = field(default=30_000, name="message_timeout")


class Admission(Section, frozen=True, kw_only=True):
    """`[admission]`: what a node takes on. Numbers are per node unless they say otherwise."""

    # Connections at most; at least one for each shard. 0 takes as many as descriptors allow. 0 to 16777216.
    # Default 0.
    max_connections: Annotated[int, Meta(ge=0, le=16_777_216)] = 0

    # Descriptors that clients never get: the bus, the admin port and logs need some, and so does
    # answering those who are refused. 0 to 65536. Default 64.
    reserve_descriptors: Annotated[int, Meta(ge=0, le=65_536)] = 64

    # Handshakes per second, dealt to the shards like the connections; above it clients are told to come
    # later. 0 switches it off. 0 to 1000000. Default 0.
    handshake_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(default=0, name="handshake_rate")

    # Handshakes under way at once, per shard. On by default, because unfinished ones are the cheapest
    # attack. At the limit one incomplete request head is answered 408 to make room for a newcomer: the oldest
    # of the address that has most of them, so that one address cannot end the handshakes of the others.
    # When all heads are complete, a newcomer is told to come later. 0 switches it off. 0 to 1000000.
    # Default 1024.
    handshakes_in_progress: Annotated[int, Meta(ge=0, le=1_000_000)] = 1024

    # Connections of one address at once, on all shards of the node; an IPv6 /64 is one address. More are
    # answered 429. Many phones can share an address: a carrier's network needs thousands. 0 switches it off.
    # 0 to 16777214. Default 0.
    per_address_connections: Annotated[int, Meta(ge=0, le=16_777_214)] = 0

    # Connections one address may open per second, likewise; a burst is one second's worth. 0 switches it
    # off. 0 to 1000000. Default 0.
    per_address_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(
        default=0, name="per_address_rate"
    )

    # Connections of one user at once, on all nodes of the bus. 0 switches it off. 0 to 1000. Default 0.
    per_user_connections: Annotated[int, Meta(ge=0, le=1000)] = 0

    # What happens to one more: replace_oldest closes the user's oldest connection with 4509, refuse closes
    # the new one with 4029. Default "replace_oldest", because the old one may be a phone that is gone.
    per_user_policy: UserPolicy = "replace_oldest"

    # Messages one user may send per second over all its connections, on all nodes of the bus; a burst is one
    # second's worth. Until the bus has answered for a user, each shard lets an eighth of that pass, or ten
    # messages where a second allows as many. One more is answered with 429 rate_limited. 0 switches it off.
    # 0 to 1000000. Default 0.
    per_user_rate_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = field(default=0, name="per_user_rate")

    # Unfinished input of all clients together: heads, frames and messages that have not come whole. Beyond
    # it newcomers are refused and whoever sends more of such is closed with 1013, because each alone stays
    # within its own limits. 0B switches it off. Size, 0B to 1024GiB. Default "256MiB".
    partial_bytes: Annotated[int, _size("0B", "1024GiB")] = 256 * 1024 * 1024

    # Memory that all processes of the node may use, what the kernel keeps for their sockets included; an
    # eighth of it is for the node's own bus, where it has one. When fifteen sixteenths of a shard's part are
    # used newcomers are refused; above it some are closed with 4013, those first who do not read, then who
    # has not shown a token, who does not finish, who reads slowly, who rests. More than the control group or
    # the machine has stops the start: the kernel would kill first. 0B takes nine tenths of that. Size, 0B to
    # 1024GiB. Default "0B".
    memory_budget_bytes: Annotated[int, _size("0B", "1024GiB")] = field(default=0, name="memory_budget")


class Bus(Section, frozen=True, kw_only=True):
    """`[bus]`: the Redis or Valkey that joins shards, nodes and backends."""

    # Where it is: redis://[user:password@]host[:port], unix:///path, redis+sentinel://h1,h2/primary or
    # redis+cluster://h1,h2; with TLS rediss://, rediss+sentinel:// and rediss+cluster://, files behind it as
    # ?ssl_ca_certs=/path&ssl_certfile=/path&ssl_keyfile=/path. Database 0, because pub/sub knows no others.
    # Empty starts a private server on a Unix socket, for one node alone. May hold a password, so it is
    # treated as a secret. Also as url_file. Default "".
    url: SecretUrl = ""

    # The password of the user in url, where it is not to stand in url. Also as password_file. Default "".
    password: Secret = ""

    # First part of every key and channel on it; gateways with different ones may share a server. 1 to 32
    # of letters, digits and "_", ".", "-". Default "wsgate".
    prefix: str = "wsgate"

    # How long connecting to it may take before it is tried again. Duration, 1ms to 5m. Default "5s".
    connect_timeout_ms: Annotated[int, _duration("1ms", "5m")] = field(default=5_000, name="connect_timeout")

    # How long an answer may take before the command counts as failed. Duration, 1ms to 5m. Default "5s".
    command_timeout_ms: Annotated[int, _duration("1ms", "5m")] = field(default=5_000, name="command_timeout")

    # Within how long the clients of a node load their state anew after a break of the bus: each is told to
    # wait for a random part of this time, because all at once would be too much for the backend. 0 lets
    # 5,000 clients a second load, and is at least 2 s. Duration, 0s to 1h. Default "0s".
    gap_spread_ms: Annotated[int, _duration("0", "1h")] = field(default=0, name="gap_spread")

    # What each shard may hold of publications that it has received and not yet given to its clients. A burst
    # up to this size reaches every client that reads; of a larger one the oldest publications are lost, and
    # their subscribers are sent a gap. Large, because the server cuts a subscriber that does not read. At
    # most a quarter of the shard's share of memory_budget. Size, 1MiB to 16GiB. Default "32MiB".
    backlog_bytes: Annotated[int, _size("1MiB", "16GiB")] = field(default=32 * 1024 * 1024, name="backlog")


class Events(Section, frozen=True, kw_only=True):
    """`[events]`: what backends are told through streams on the bus; protocols/backend/v1 has the form."""

    # Which types are told: any of connected, disconnected, subscribed, unsubscribed, message. None by
    # default, because a stream nobody reads only costs. With "message" clients may `send`. Default [].
    enabled: tuple[EventType, ...] = ()

    # Streams the events are spread over, by user: as many as backend processes share the work in order.
    # The same on every node. 1 to 64. Default 1.
    partitions: Annotated[int, Meta(ge=1, le=64)] = 1

    # Entries each stream is trimmed to, about: a backend that was away longer than these last misses some.
    # 0 never trims. A node's own bus that has no memory left removes what every consumer group has
    # acknowledged, and counts it. 0 to 1000000000. Default 100000.
    maxlen: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 100_000

    # Whether each event is also published to the channel named like its stream, as JSON: to look on, or for
    # backends that may miss some. Default false.
    pubsub: bool = False


class Admin(Section, frozen=True, kw_only=True):
    """`[admin]`: metrics, health, the API and the dashboard."""

    # Address the admin port listens on. Only this machine by default; any other than 127.0.0.0/8, ::1 and
    # localhost needs an api_key. Not empty. Default "127.0.0.1".
    host: str = "127.0.0.1"

    # TCP port. 0 lets the kernel choose one, for tests. 0 to 65535. Default 9000.
    port: Annotated[int, Meta(ge=0, le=65_535)] = 9000

    # What callers of the API must show. Empty: nobody may call it, except in development mode. At least 16
    # bytes where host can be reached from outside. Also as api_key_file. Default "".
    api_key: Secret = ""


class Health(Section, frozen=True, kw_only=True):
    """`[health]`: how the node knows that it delivers."""

    # How often each shard sends itself a publication through the bus. Readiness follows it, so it is
    # also how late an outage may be noticed. Duration, 100ms to 1h. Default "5s".
    canary_interval_ms: Annotated[int, _duration("100ms", "1h")] = field(
        default=5_000, name="canary_interval"
    )


class Log(Section, frozen=True, kw_only=True):
    """`[log]`: lines on standard error."""

    # text for people, json (an object per line) for machines. Default "text".
    format: LogFormat = "text"

    # The least important lines that are still written: debug, info, warning or error. Default "info".
    level: LogLevel = "info"


class Namespace(Section, frozen=True, kw_only=True):
    """`[channels.<namespace>]`: rules of the channels named `<namespace>:...`.

    A namespace's name is made of letters, digits, "_" and "-". `default` always exists, for channels
    whose name has no prefix.
    """

    # Who may subscribe: anyone, authenticated, token or nobody. A token's claims add, they never remove.
    # Default "token", with server.dev "anyone".
    subscribe: Access = "token"

    # Which clients may publish: anyone, authenticated, token or nobody. Backends always may. Default
    # "nobody", with server.dev "anyone".
    publish: Access = "nobody"

    # What a client that reads too slowly loses: close (the connection, so that no loss goes unseen),
    # drop_oldest or latest_only (publications, told by a gap). Default "close".
    slow_consumer: SlowConsumer = "close"

    # Largest publication, its data alone; larger ones are refused from clients and dropped from
    # backends. Size, 1B to 1GiB. Default "64KiB".
    max_publish_bytes: Annotated[int, _size("1B", "1GiB")] = field(default=65_536, name="max_publish")


class Inbox(Section, frozen=True, kw_only=True):
    """`[inbox]`: the private channel of a user.

    Backends alone publish to it, and a connection is always subscribed to its own: neither can be set.
    """

    # What a client that reads too slowly loses: close, drop_oldest or latest_only. Default "close".
    slow_consumer: SlowConsumer = "close"


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration, frozen. `wsgate.config.load` makes it."""

    # [server]: where clients come in.
    server: Server = Server()

    # [auth]: who may come in.
    auth: Auth = field(default_factory=Auth)

    # [heartbeat]: how a dead peer is noticed.
    heartbeat: Heartbeat = Heartbeat()

    # [limits]: what one connection may cost.
    limits: Limits = Limits()

    # [admission]: what a node takes on.
    admission: Admission = Admission()

    # [bus]: what joins shards, nodes and backends.
    bus: Bus = Bus()

    # [events]: what backends are told.
    events: Events = Events()

    # [admin]: metrics, health, the API and the dashboard.
    admin: Admin = Admin()

    # [health]: how the node knows that it delivers.
    health: Health = Health()

    # [log]: lines on standard error.
    log: Log = Log()

    # [channels.<namespace>]: rules by namespace; "default" is always there.
    channels: dict[str, Namespace] = field(default_factory=lambda: {"default": Namespace()})

    # [inbox]: rules of every user's private channel.
    inbox: Inbox = Inbox()

    @property
    def open_namespaces(self) -> bool:
        """Whether channels of namespaces that are not listed exist, open to anyone for both.

        True in development mode alone, so that a channel can be tried before it is configured. Else such
        a channel is unknown. A listed namespace always keeps its own rules.
        """
        return self.server.dev


@cache
def fields_of(section: type[msgspec.Struct]) -> tuple[msgspec.inspect.Field, ...]:
    """What is known of the fields of a section, in the order of the source."""
    info = msgspec.inspect.type_info(section)
    if not isinstance(info, msgspec.inspect.StructType):
        raise InternalError(f"{section.__name__} is not a section")
    return info.fields


def kind_of(info: msgspec.inspect.Field) -> str:
    """`duration`, `size`, `secret`, `secret_url`, `public_key`; empty when the type says it all."""
    extra = info.type.extra if isinstance(info.type, msgspec.inspect.Metadata) else None
    return str((extra or {}).get("kind", ""))


def masked(kind: str, value: Any) -> Any:
    """The value as it may be shown: a secret as `***`, a URL without its password, the rest as it is."""
    if kind == "secret" and value:
        return MASK
    return mask_password(value) if kind == "secret_url" else value


def dotted(*keys: str) -> str:
    """The path of a setting as TOML writes it; a key with odd characters is quoted."""
    return ".".join(key if _BARE_KEY.fullmatch(key) else quote(key) for key in keys)


_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_JWKS_URL: Final = re.compile(r"https?://[!-~]+")
_PATH: Final = re.compile(r"/[!-~]*")
_WEB_ORIGIN: Final = re.compile(r"(?:https?|wss?)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
# As wsgate.auth.origins reads it: a scheme of its own, no path, no list, no pattern.
_APP_ORIGIN: Final = re.compile(
    r"(?!(?i:https?|wss?):)[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~:\[\]!$&'()+;=%-]*"
)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_NODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}


def faults(config: Config) -> list[str]:
    """What is wrong with settings that are right one by one.

    Returns:
        One line per mistake, each beginning with the path of the setting; empty when all is well. Never
        a secret.
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
        yield f"server.path: {server.path} is answered otherwise"
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
        yield "server.trusted_proxies: required with server.proxy_protocol, or anybody could be anybody"


def _auth_faults(config: Config) -> Iterator[str]:
    auth = config.auth
    if auth.hmac_secret:
        yield from _secret_faults("auth.hmac_secret", "HS256", auth.hmac_secret)
    for kid, key in auth.keys.items():
        if not kid:
            yield 'auth.keys."": a key needs a name'
        yield from _key_faults(dotted("auth", "keys", kid), key)
    if not (auth.hmac_secret or auth.keys or auth.jwks_url or auth.allow_anonymous or config.server.dev):
        yield "auth: nobody could come in: set auth.hmac_secret, auth.keys, auth.jwks_url or allow_anonymous"
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
        yield "auth.jwks_url: must be https, or anybody on the way could add a key"
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
    """Whether a secret is a short text over and over, or made of very few different characters.

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
        yield "bus.password: there is no bus.url it could be for"
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
    """Whether an address or a name, as a setting holds it, means this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
