"""What a reactor is told at its start: limits, deadlines and the gate, frozen.

Every quantity carries its unit in its name; 0 switches a limit off where it says so. Defaults are
those of the configuration (architecture, section 11).
"""

from dataclasses import dataclass

__all__ = ["SOCKET_BYTES", "GateLimits", "ListenerOptions", "Settings"]

SOCKET_BYTES = 3_900
"""What the kernel keeps for an idle connection: the socket, inode and file, its place in epoll.

Measured 3,855 to 3,870 on Linux 6.18, in a control group of its own: python -m loadtest memory_accounting
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits and deadlines of one reactor, the same for all its connections."""

    # Incoming.
    head_limit_bytes: int = 16 * 1024
    head_timeout_ms: int = 10_000
    upgrade_timeout_ms: int = 10_000
    max_message_bytes: int = 64 * 1024
    max_fragments: int = 1024
    message_timeout_ms: int = 30_000
    control_rate_per_s: int = 100
    control_burst: int = 200
    message_rate_per_s: int = 0  # 0: off; burst is one second's worth
    byte_rate_per_s: int = 0  # 0: off
    # Outgoing.
    outbox_bytes: int = 1024 * 1024
    outbox_frames: int = 256
    outbox_age_ms: int = 10_000
    # How long a connection that fell behind may hold more frames than its limit.
    # 0: it is judged at once. Who sets it must ask `is_full` before every publication.
    blocked_grace_ms: int = 0
    # Publications also wait a little for a connection that fell behind and whose socket took bytes at most so
    # long ago. 0: only for a crowd of connections.
    blocked_moving_ms: int = 0
    write_timeout_ms: int = 10_000
    # What a socket that refuses bytes is charged where the kernel does not say what it holds: SO_SNDBUF as it
    # doubles it, and one write of 64 KiB, taken whole while any room is left.
    send_buffer_bytes: int = 96 * 1024
    # Heartbeat.
    ping_interval_ms: int = 25_000  # 0: no heartbeat
    pong_timeout_ms: int = 10_000
    idle_timeout_ms: int = 0  # 0: off
    # Closing.
    linger_timeout_ms: int = 1_000
    linger_limit_bytes: int = 256 * 1024
    linger_limit_sockets: int = 1_000
    # Memory.
    pool_enabled: bool = True
    pool_idle_limit_bytes: int = 16 * 1024 * 1024  # freed buffers kept for reuse
    max_connections: int = 1_000_000  # size of the slot directory, not a promise of memory
    max_subscriptions: int = 0  # of one connection; 0: off
    # Whether channels that lost their last subscriber wait for `take_vacated`. Who sets it must call that.
    report_vacated: bool = False
    # Whether `closed` events bring the caller's object along: their value is then `(reason, meta)`.
    report_meta: bool = False
    # Publications to more subscribers than this are queued in steps, between writes: at once it is 2.5 ms.
    walk_at_once: int = 32_768
    # Publications: the opcode of each variant (1 text, 2 binary), at most 8; with events.DEFLATED added,
    # its clients have agreed to permessage-deflate without context takeover.
    variant_opcodes: tuple[int, ...] = (1,)
    # What `answer_page` sends: a whole HTTP answer, held once however many ask for it.
    page_response: bytes = b""
    # What is sent when the reactor itself refuses a head; empty: nothing is sent.
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
    """What the gate judges before a byte is read; 0 switches a limit off."""

    descriptors: int = 0  # a socket whose descriptor number would reach this is refused
    connections: int = 0
    handshakes_in_progress: int = 1024
    handshake_rate_per_s: int = (
        0  # burst is one second's worth; offered four times as many, accepting itself waits
    )
    per_address_connections: int = 0  # of one IPv4 address or IPv6 /64, on the whole node
    per_address_rate_per_s: int = 0  # likewise; burst is one second's worth
    # Whom a proxy in one of these names counts, and not itself: 16 bytes (IPv4 mapped) and a prefix length.
    trusted_networks: tuple[tuple[bytes, int], ...] = ()
    reads_proxy_header: bool = False  # from those, before the head; from nobody else
    partial_bytes: int = 0  # unfinished heads, frames and messages together
    memory_bytes: int = (
        0  # everything on the books; above it the slow are cut, a sixteenth below no newcomers
    )
    # What a connection costs beside that: its socket in the kernel, and the caller's own objects.
    connection_bytes: int = SOCKET_BYTES + 512
    refusal_drains: int = 32  # refused sockets read to their end at once
    refusal_drain_bytes: int = 16 * 1024
    refusal_drain_ms: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """Socket options set before `listen`, inherited by every accepted socket."""

    backlog: int = 4096
    reuse_port: bool = False
    send_buffer_bytes: int = 16 * 1024  # SO_SNDBUF; the kernel doubles it
    receive_buffer_bytes: int = 16 * 1024  # SO_RCVBUF; the kernel doubles it
    not_sent_low_water_bytes: int = 16 * 1024  # TCP_NOTSENT_LOWAT
    no_delay: bool = True
    defer_accept_s: int = 1
    user_timeout_ms: int = 50_000  # above every stall deadline plus 10 s
