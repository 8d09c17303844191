"""Every setting of an event consumer once: unit, default, why."""

import itertools
import os
import socket
from dataclasses import dataclass, field
from typing import Final

from wsgate.client.backoff import Backoff

__all__ = ["ConsumerOptions"]

_numbers: Final = itertools.count(1)


def _own_name() -> str:
    """Unlike that of any other living process, and in a container the same after a restart."""
    return f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOptions:
    """Settings of an `EventConsumer`.

    Attributes:
        prefix: The gateway's `bus.prefix`.
        partitions: The gateway's `events.partitions`.
        consumer: This process's name in the group; no two living ones may share it. By default host,
            process and a number.
        start_at: Where a group that is new begins: `$` for what comes from now on, `0` for all there is.
        concurrency: Handlers that run at once, and entries of one partition in hand.
        attempts: How often an entry is tried before it becomes a dead letter.
        deliveries_limit: How often an entry may be given to somebody, in whatever process, before it becomes
            one without being tried: it may be what kills them. Reading again after a lost connection counts.
        backoff: Between the attempts of one entry, and between those to reach Redis.
        takeover_idle_s: Entries that nobody acknowledged for so long are taken over. More than a handler
            takes with all its attempts, else it runs twice.
        takeover_every_s: How often to look for them.
        seen_limit: Ids of events dealt with that are remembered, so that a repetition is acknowledged only.
        dead_limit: Length to which the stream of dead letters is trimmed, about.
        block_s: How long one read waits for new entries; `stop` may take as long. Less than the read
            time-out of a client that is handed in (redis-py's default: 5 s).
        timeout_s: How long an answer of Redis may take.
    """

    prefix: str = "wsgate"
    partitions: int = 1
    consumer: str = field(default_factory=_own_name)
    start_at: str = "$"
    concurrency: int = 16
    attempts: int = 5
    deliveries_limit: int = 10
    backoff: Backoff = field(default_factory=Backoff)
    takeover_idle_s: float = 60.0
    takeover_every_s: float = 15.0
    seen_limit: int = 10_000
    dead_limit: int = 100_000
    block_s: float = 2.0
    timeout_s: float = 10.0
