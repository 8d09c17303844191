"""The settings of a reactor, its gate and its listening socket, as frozen dataclasses.

The name of every quantity contains its unit. 0 switches a limit off where the comment says so.
"""

from dataclasses import dataclass

__all__ = ["SOCKET_BYTES", "GateLimits", "ListenerOptions", "Settings"]

SOCKET_BYTES = 3_900
"""Kernel memory of an idle connection in bytes: its socket, inode, file and epoll entry.

3,855 to 3,870 bytes were measured on Linux 6.18 in a separate control group:
python -m loadtest memory_accounting
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The limits and deadlines that a reactor applies to each of its connections."""

    # Incoming.
    head_limit_bytes: int = 16 * 1024  # the largest request head
    head_timeout_ms: int = 10_000  # from accept until the head is complete
    upgrade_timeout_ms: int = 10_000  # from the `OPEN` event until `upgrade` or `refuse`
    max_message_bytes: int = 64 * 1024  # the largest message, after inflating
    max_fragments: int = 1024  # the most fragments of one message; 0: off
    message_timeout_ms: int = 30_000  # from the first byte of a message until it is complete; 0: off
    control_rate_per_s: int = 100  # pings and pongs per connection; 0: off
    control_burst: int = 200  # pings and pongs at once
    message_rate_per_s: int = 0  # per connection; 0: off; the burst is one second's worth
    byte_rate_per_s: int = 0  # message bytes per connection; 0: off
    # Outgoing.
    outbox_bytes: int = 1024 * 1024  # the most unwritten bytes of a connection that is behind
    outbox_frames: int = 256  # the most unwritten frames of such a connection
    outbox_age_ms: int = 10_000  # the largest age of an unwritten reply or publication of such a connection
    # How long the outbox of a connection that fell behind may hold more frames than its limit.
    # 0: the limits apply at once. A caller that sets this must check `is_full` before every publication.
    blocked_grace_ms: int = 0
    # Publications also wait briefly for a connection that is behind and took bytes within this time.
    # 0: they wait only while most connections are behind.
    blocked_moving_ms: int = 0
    write_timeout_ms: int = 10_000  # how long a full socket may take no byte, and how long a close may take
    # The memory that a full socket is charged with if the kernel does not report it: SO_SNDBUF as the kernel
    # doubles it, and one write of 64 KiB, which the kernel takes whole while any room is left.
    send_buffer_bytes: int = 96 * 1024
    # Heartbeat.
    ping_interval_ms: int = 25_000  # time without a received byte after which a ping is sent; 0: off
    pong_timeout_ms: int = 10_000  # from a ping until any byte comes
    idle_timeout_ms: int = 0  # time without a complete message after which a connection ends; 0: off
    # Closing.
    linger_timeout_ms: int = 1_000  # how long a closed connection may linger until the peer ends the stream
    linger_limit_bytes: int = 256 * 1024  # input that is discarded from one lingering connection
    linger_limit_sockets: int = 1_000  # connections that may linger at the same time
    # Memory.
    pool_enabled: bool = True  # whether freed buffers are kept for reuse
    pool_idle_limit_bytes: int = 16 * 1024 * 1024  # the most bytes of freed buffers kept for reuse
    max_connections: int = 1_000_000  # size of the slot directory; no memory is reserved for it
    max_subscriptions: int = 0  # channels of one connection; 0: off
    # Whether channels that lost their last subscriber wait for `take_vacated`, which must then be called.
    report_vacated: bool = False
    # Whether `closed` events contain the caller's meta object: their value is then `(reason, meta)`.
    report_meta: bool = False
    # A publication to more subscribers is queued in steps, between writes: at once it takes 2.5 ms.
    walk_at_once: int = 32_768
    # The opcode of publications in each variant (1 text, 2 binary), at most 8 variants. `DEFLATED` of
    # event_kinds is added if the clients of the variant use permessage-deflate without context takeover.
    variant_opcodes: tuple[int, ...] = (1,)
    # The complete HTTP response that `answer_page` sends; stored once for all requests.
    page_response: bytes = b""
    # The complete HTTP responses with which the reactor itself refuses a request; empty: nothing is sent.
    head_timeout_response: bytes = (
        b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    head_too_large_response: bytes = (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    upgrade_timeout_response: bytes = (
        b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """The limits by which the gate accepts or refuses a socket before it reads a byte; 0 switches one off."""

    descriptors: int = 0  # a socket whose descriptor number reaches this is refused
    connections: int = 0  # the most connections of the reactor
    handshakes_in_progress: int = 1024  # connections whose request is incomplete or not answered
    handshake_rate_per_s: int = (
        0  # the burst is one second's worth; above four times the rate accepting pauses until the next tick
    )
    per_address_connections: int = 0  # for one IPv4 address or IPv6 /64, on the whole node
    per_address_rate_per_s: int = 0  # new connections of such an address; the burst is one second's worth
    # Networks of trusted proxies. Their connections count for the client address that the proxy names. Each
    # has 16 bytes (IPv4-mapped) and a prefix length.
    trusted_networks: tuple[tuple[bytes, int], ...] = ()
    reads_proxy_header: bool = False  # whether trusted proxies send a PROXY header before the head
    partial_bytes: int = 0  # for the unfinished input of all connections together
    memory_bytes: int = (
        0  # budget for all accounts: newcomers are refused from 15/16 of it on; above it connections are shed
    )
    # What each connection is charged with in addition: its socket in the kernel, and the caller's objects.
    connection_bytes: int = SOCKET_BYTES + 512
    refusal_drains: int = 32  # how many refused sockets are read to their end at the same time
    refusal_drain_bytes: int = 16 * 1024  # input that is discarded from one of these sockets
    refusal_drain_ms: int = 1_000  # how long one of these sockets is read


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """The options of a listening socket, which every accepted socket inherits from it."""

    backlog: int = 4096  # connections that wait in the kernel to be accepted
    reuse_port: bool = False  # SO_REUSEPORT: several sockets listen on the same port
    send_buffer_bytes: int = 16 * 1024  # SO_SNDBUF; the kernel doubles it
    receive_buffer_bytes: int = 16 * 1024  # SO_RCVBUF; the kernel doubles it
    not_sent_low_water_bytes: int = 16 * 1024  # TCP_NOTSENT_LOWAT
    no_delay: bool = True  # TCP_NODELAY
    defer_accept_s: int = 1  # TCP_DEFER_ACCEPT: accept a connection when its first bytes have come
    user_timeout_ms: int = 50_000  # TCP_USER_TIMEOUT; longer than any stall deadline plus 10 s
