"""Check the kernel's resources for connections: queues, tables, ports, buffers, and the speed of the link."""

import math
from collections.abc import Iterator
from typing import Final

from wsgate.doctor.capacity import queued_bytes
from wsgate.doctor.model import Case, Check, Finding, Severity, judged

__all__ = ["NETWORK_CHECKS"]

ACCEPT_PAUSE_S: Final = 0.8
"""An accept queue must hold the connections that arrive while its shard is busy: rate <= queue / 0.8 s.
A published measurement: 65,535 entries took 79,420 connections a second without an overflow; this formula
gives 81,918."""
SYN_SHARE: Final = 0.4
"""Entries of the SYN queue for each connection a second. The same source: with 4,096 entries 0.3 % of 10,000
SYNs were lost, with 1,024 entries 8.1 %."""
PACKETS_LEAST: Final = 1_000
"""The least length of a CPU's packet queue. The same source: no drops at 10 Gbit/s; with 400 a few."""
HEADERS_BYTES: Final = 70
"""Bytes of all headers of a message on the link: frame, TCP with timestamps, IP, Ethernet."""
BROADCAST_SLOW_S: Final = 1.0
"""A publication to all receivers should need the link no longer than this."""
RECEIVE_LEAST_BYTES: Final = 4_096
RECEIVE_MOST_BYTES: Final = 1 << 20
SEND_MOST_BYTES: Final = 1 << 20


def accept_queue(case: Case) -> Iterator[Finding]:
    """Check that the accept queues hold the new connections of a busy shard."""
    if case.kernel.somaxconn is None:
        return
    queue = min(case.kernel.somaxconn, case.have.backlog)
    needed = math.ceil(case.want.rate_per_s * ACCEPT_PAUSE_S / case.have.shards)
    bears = int(queue * case.have.shards / ACCEPT_PAUSE_S)
    fix = f"sysctl -w net.core.somaxconn={needed}"
    if needed > case.have.backlog:  # the gateway's queues are no longer: more shards help
        fix = (
            f"{math.ceil(case.want.rate_per_s * ACCEPT_PAUSE_S / case.have.backlog)} shards, each has a queue"
        )
        if case.kernel.somaxconn < case.have.backlog:
            fix += f", and sysctl -w net.core.somaxconn={case.have.backlog}"
    yield from judged(
        "net.core.somaxconn",
        Severity.WARNING,
        is_good=queue >= needed,
        now=f"{case.kernel.somaxconn:,}; the accept queues of {case.have.shards} shards hold {queue:,} each",
        why=f"allows {bears:,} new connections a second while a shard is busy for {ACCEPT_PAUSE_S} s",
        needed=f"{needed:,} in each",
        fix=fix,
    )


def overflows(case: Case) -> Iterator[Finding]:
    """Check that no accept queue of the machine has overflowed until now."""
    overflows, drops = case.kernel.listen_overflows, case.kernel.listen_drops
    if overflows is None or drops is None:
        return
    yield from judged(
        "ListenOverflows",
        Severity.WARNING,
        is_good=overflows + drops == 0,
        now=f"{overflows:,} overflows and {drops:,} drops of listeners since the start of the machine",
        why="connections that arrived while the accept queue of a listener was full",
        needed="none while a gateway runs",
        fix="check whether they grow (nstat -z TcpExtListenOverflows); then somaxconn or more shards",
    )


def syn_backlog(case: Case) -> Iterator[Finding]:
    """Check the queue of half-open connections, and that SYN cookies are on."""
    kernel = case.kernel
    if kernel.tcp_max_syn_backlog is None:
        return
    needed = math.ceil(case.want.rate_per_s * SYN_SHARE)
    has_cookies = bool(kernel.tcp_syncookies)
    yield from judged(
        "net.ipv4.tcp_max_syn_backlog",
        Severity.ADVICE if has_cookies else Severity.WARNING,
        is_good=kernel.tcp_max_syn_backlog >= needed,
        now=f"{kernel.tcp_max_syn_backlog:,}, with{'' if has_cookies else 'out'} SYN cookies",
        why="the queue of half-open connections; when it is full, SYN cookies are used, or SYNs are dropped",
        needed=f"{needed:,}",
        fix=f"sysctl -w net.ipv4.tcp_max_syn_backlog={needed}",
    )
    if kernel.tcp_syncookies is not None:
        yield from judged(
            "net.ipv4.tcp_syncookies",
            Severity.WARNING,
            is_good=has_cookies,
            now=str(kernel.tcp_syncookies),
            why="without SYN cookies a flood of SYNs prevents all new connections",
            needed="1",
            fix="sysctl -w net.ipv4.tcp_syncookies=1",
        )


def packets(case: Case) -> Iterator[Finding]:
    """Check the length and the drops of the CPUs' queues of received packets."""
    if case.kernel.netdev_max_backlog is not None:
        yield from judged(
            "net.core.netdev_max_backlog",
            Severity.ADVICE,
            is_good=case.kernel.netdev_max_backlog >= PACKETS_LEAST,
            now=f"{case.kernel.netdev_max_backlog:,} packets",
            why="the queue of a CPU for packets that arrive faster than they are handled",
            needed=f"{PACKETS_LEAST:,}",
            fix=f"sysctl -w net.core.netdev_max_backlog={PACKETS_LEAST}",
        )
    if case.kernel.softnet_dropped is not None:
        yield from judged(
            "softnet_stat",
            Severity.WARNING,
            is_good=case.kernel.softnet_dropped == 0,
            now=f"{case.kernel.softnet_dropped:,} packets dropped since the start of the machine",
            why="these packets arrived while that queue was full",
            needed="none",
            fix="check whether they grow; then a longer net.core.netdev_max_backlog, or more receive queues",
        )


def hash_table(case: Case) -> Iterator[Finding]:
    """Check the size of the kernel's hash table of connections."""
    if case.kernel.tcp_ehash_entries is None:
        return
    needed = 1 << max(0, case.want.connections - 1).bit_length()
    yield from judged(
        "tcp_ehash_entries",
        Severity.ADVICE,
        is_good=case.kernel.tcp_ehash_entries * 2 >= case.want.connections,
        now=f"{case.kernel.tcp_ehash_entries:,}",
        why="the hash table of all connections; with several in one row each packet is slower",
        needed=f"{needed:,}",
        fix=f"thash_entries={needed} on the kernel's command line",
    )


def connection_tracking(case: Case) -> Iterator[Finding]:
    """Check that the firewall's table of tracked connections is large enough, if it is used."""
    kernel = case.kernel
    if kernel.nf_conntrack_max is None or kernel.nf_conntrack_count is None:
        return
    is_used = kernel.nf_conntrack_count > 0  # at 0 the module is loaded, but no rule uses it
    needed = kernel.nf_conntrack_count + case.want.connections
    yield from judged(
        "nf_conntrack_max",
        Severity.BLOCKING,
        is_good=not is_used or kernel.nf_conntrack_max >= needed,
        now=f"{kernel.nf_conntrack_max:,}, {kernel.nf_conntrack_count:,} in use",
        why="a firewall that tracks connections drops new ones when its table is full",
        needed=f"{needed:,}",
        fix=f"sysctl -w net.netfilter.nf_conntrack_max={needed}, or do not track the client port",
    )


def ports(case: Case) -> Iterator[Finding]:
    """Check the local ports for outgoing connections, which proxies and load generators need."""
    kernel = case.kernel
    if kernel.ip_local_port_range is None:
        return
    first, last = kernel.ip_local_port_range
    ports = max(0, last - first + 1)
    yield from judged(
        "net.ipv4.ip_local_port_range",
        Severity.ADVICE,
        is_good=ports >= min(case.want.connections, 64_000),
        now=f"{first} {last}: {ports:,} ports",
        why="only for connections from this machine: a proxy or a load generator has this many for each"
        " pair of addresses",
        needed="1024 65535, and more addresses above 64,512 connections",
        fix="sysctl -w net.ipv4.ip_local_port_range='1024 65535'",
    )
    if kernel.time_wait is not None:
        yield from judged(
            "TIME_WAIT",
            Severity.WARNING,
            is_good=kernel.time_wait * 2 <= ports or kernel.tcp_tw_reuse == 1,
            now=f"{kernel.time_wait:,} sockets, tcp_tw_reuse {kernel.tcp_tw_reuse}",
            why="each keeps a local port of an outgoing connection busy for a minute",
            needed=f"below {ports // 2:,}",
            fix="sysctl -w net.ipv4.tcp_tw_reuse=1 (outgoing connections only; needs timestamps)",
        )


def tcp_memory(case: Case) -> Iterator[Finding]:
    """Check that the kernel's memory for TCP holds one publication to all its receivers."""
    kernel = case.kernel
    if kernel.tcp_mem_pages is None:
        return
    low, pressure, high = kernel.tcp_mem_pages
    queued = math.ceil(case.fanout * queued_bytes(case.have, case.want) / kernel.page_bytes)
    pages = queued + (kernel.tcp_pages_used or 0)
    yield from judged(
        "net.ipv4.tcp_mem",
        Severity.BLOCKING if pages > high else Severity.WARNING,
        is_good=pages <= pressure,
        now=f"{low} {pressure} {high} pages, {kernel.tcp_pages_used or 0} in use",
        why=f"one publication to {case.fanout:,} connections needs {queued:,} pages; above the second"
        " number the kernel shrinks buffers, above the third it drops data",
        needed=f"{pages} {2 * pages} {3 * pages}",
        fix=f"sysctl -w net.ipv4.tcp_mem='{pages} {2 * pages} {3 * pages}'",
    )


def send_buffer(case: Case) -> Iterator[Finding]:
    """Check that the kernel allows the send buffer that the gateway sets."""
    if case.kernel.wmem_max is None:
        return
    needed = case.have.send_buffer_bytes
    yield from judged(
        "net.core.wmem_max",
        Severity.WARNING,
        is_good=case.kernel.wmem_max >= needed,
        now=f"{case.kernel.wmem_max:,} bytes",
        why="the send buffer that the gateway sets is limited to this without an error",
        needed=f"{needed:,}",
        fix=f"sysctl -w net.core.wmem_max={needed}",
    )


def receive_buffer(case: Case) -> Iterator[Finding]:
    """Check the least and the default receive buffer of TCP sockets."""
    if case.kernel.tcp_rmem is None:
        return
    least, default, most = case.kernel.tcp_rmem
    yield from judged(
        "net.ipv4.tcp_rmem",
        Severity.WARNING,
        is_good=least >= RECEIVE_LEAST_BYTES and default <= RECEIVE_MOST_BYTES,
        now=f"{least} {default} {most} bytes",
        why="if the gateway sets no receive buffer, data that is not read may fill the second number",
        needed="4096 131072 6291456",
        fix="sysctl -w net.ipv4.tcp_rmem='4096 131072 6291456'",
    )


def write_memory(case: Case) -> Iterator[Finding]:
    """Check the least and the default send buffer of TCP sockets.

    Source: __sk_mem_raise_allocated of the kernel: the least is allowed also under memory pressure.
    """
    if case.kernel.tcp_wmem is None:
        return
    least, default, most = case.kernel.tcp_wmem
    yield from judged(
        "net.ipv4.tcp_wmem",
        Severity.WARNING,
        is_good=least <= case.have.send_buffer_bytes and default <= SEND_MOST_BYTES,
        now=f"{least} {default} {most} bytes",
        why="a socket that is not read may take the first number even while the kernel is short of memory;"
        " the gateway sets its own send buffer, other programs of this machine start with the second number",
        needed="4096 16384 4194304",
        fix="sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'",
    )


def link(case: Case) -> Iterator[Finding]:
    """Check that the network link carries a publication to all its receivers in `BROADCAST_SLOW_S`."""
    speed = case.kernel.link_mbit_per_s
    if speed is None:
        return
    bits = 8 * (case.want.message_bytes + HEADERS_BYTES)
    broadcast_s = case.fanout * bits / (speed * 1e6)
    yield from judged(
        "link",
        Severity.WARNING,
        is_good=broadcast_s <= BROADCAST_SLOW_S,
        now=f"{speed:,} Mbit/s: {int(speed * 1e6 / bits):,} messages a second",
        why=f"one publication to {case.fanout:,} connections takes {broadcast_s:.2f} s of the link",
        needed=f"{math.ceil(case.fanout * bits / BROADCAST_SLOW_S / 1e6):,} Mbit/s",
        fix="smaller messages, compression, a faster link, or more machines",
    )


NETWORK_CHECKS: Final[tuple[Check, ...]] = (
    accept_queue,
    overflows,
    syn_backlog,
    packets,
    hash_table,
    connection_tracking,
    ports,
    tcp_memory,
    send_buffer,
    receive_buffer,
    write_memory,
    link,
)
