"""Every setting of an event consumer, with unit, default and reason."""

import itertools
import os
import re
import socket
from dataclasses import dataclass, field
from typing import Final

from wsgate.client.backoff import Backoff
from wsgate.client.ranges import check_seconds, check_whole_numbers
from wsgate.errors import SettingsError

__all__ = ["ConsumerOptions"]

_numbers: Final = itertools.count(1)
_START: Final = re.compile(r"\$|\d+(-\d+)?", re.ASCII)


def _own_name() -> str:
    """Return a consumer name that no other running process has.

    A restarted container may get the same name again.
    """
    return f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOptions:
    """The settings of an `EventConsumer`. A value that is out of its range raises SettingsError.

    Attributes:
        prefix: The gateway's `bus.prefix`.
        partitions: The gateway's `events.partitions`.
        own_partitions: The numbers of the partitions that this consumer reads, from 0; None: all. Events of
            one user are in one partition, so they stay in order if each partition has one consumer of the
            group.
        consumer: The name of this consumer in its group. Two running consumers must not share a name. By
            default it consists of the host name, the process id and a number.
        start_at: Where a new group starts to read: `$` for events from now on, `0` for all events in the
            stream, or the id of the entry before the first one.
        concurrency: How many handlers run at the same time, and how many entries of one partition are
            accepted and not finished.
        attempts: How often the handler is called for one event before it becomes a dead letter.
        deliveries_limit: How often an entry may be delivered, to any process, before it becomes a dead letter
            without being handled: perhaps handling it ends the process. Reading again after a lost connection
            counts too.
        backoff: The delay between the attempts for one event, and between attempts to reach Redis.
        takeover_idle_s: An entry that its consumer has not renewed for so long is claimed by another one. A
            consumer renews its entries every third of this time, while they wait and while they are handled.
            Must be longer than the event loop may be blocked and than Redis may be unreachable, or else an
            event may be handled twice. A handler that never returns keeps its event; give it a time limit.
        takeover_every_s: How often to search for entries to claim.
        seen_limit: How many ids of finished events are remembered, to recognize repeated events.
        dead_limit: Approximate length to which the stream of dead letters is trimmed.
        block_s: How long one read waits for new entries. `stop` may take as long. Must be less than the read
            time-out of a client that is passed in (redis-py's default: 5 s).
        timeout_s: How long one reply of Redis may take.
    """

    prefix: str = "wsgate"
    partitions: int = 1
    own_partitions: tuple[int, ...] | None = None
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

    def __post_init__(self) -> None:
        """Check the ranges. Raises SettingsError."""
        check_whole_numbers(
            self, partitions=1, concurrency=1, attempts=1, deliveries_limit=1, seen_limit=0, dead_limit=1
        )
        # Redis counts milliseconds, and takes a block of 0 ms as one without end.
        check_seconds(self, takeover_idle_s=0.001, takeover_every_s=0.001, block_s=0.001, timeout_s=0.001)
        for name in ("prefix", "consumer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise SettingsError(f"{name}: {value!r} is not a text of one character or more")
        start: object = self.start_at
        if not isinstance(start, str) or not _START.fullmatch(start):
            raise SettingsError(f"start_at: {start!r} is neither $ nor the id of an entry, such as 0")
        if not isinstance(self.backoff, Backoff):
            raise SettingsError(f"backoff: {self.backoff!r} is not a Backoff")
