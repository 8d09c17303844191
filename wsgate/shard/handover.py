"""Hand connections that this shard has no room for over to other shards of the node, and accept theirs.

A connection is sent as a descriptor through a Unix socket, with one byte that counts its handovers. The first
shard to get it is the one with most room. After that it goes round the ring of shards with room, so that
every shard was offered the connection before it is refused.
"""

import socket
from collections.abc import Callable
from typing import Final

from wsgate.admission import rate_share
from wsgate.reactor import Reactor
from wsgate.shard.capacity import next_with_room, places, roomiest
from wsgate.statistics import StatisticsBlock

__all__ = ["Handovers", "Siblings"]

Handovers = tuple[tuple[socket.socket, socket.socket], ...]
"""For each shard where it hears what siblings hand to it, and where they send it; empty for a lone one."""

PER_PASS: Final = 64
MAX_HANDOVERS: Final = 255


class Siblings:
    """Those of one shard.

    Args:
        number: Which shard this is.
        channels: Of all shards.
        block: Where they tell what they offer.
        reactor: This shard's.
        count: Its counters.
    """

    def __init__(
        self,
        number: int,
        channels: Handovers,
        block: StatisticsBlock,
        reactor: Reactor,
        count: Callable[[str, int], None],
    ) -> None:
        self._number = number
        self._channels = channels
        self._block = block
        self._reactor = reactor
        self._count = count
        self._all_have_room = False

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._channels)

    def fileno(self) -> int:
        """Readable when somebody has handed something over."""
        return self._channels[self._number][0].fileno()

    def take(self, now_ms: int) -> None:
        """Connections that they had no room for."""
        ours = self._channels[self._number][0]
        for _ in range(PER_PASS):
            try:
                handovers, descriptors, _, _ = socket.recv_fds(ours, 1, 1)  # it does not block
            except BlockingIOError:
                break
            if not handovers:
                break
            for descriptor in descriptors:
                self._reactor.accept_handover(descriptor, now_ms=now_ms, handovers=handovers[0])
            if not descriptors:  # none was free for it: the kernel has closed it
                self._count("handovers_lost", 1)

    def look(self, now_ms: int, rate_per_s: int, *, force_refresh: bool) -> int | None:
        """Say to the reactor who has room.

        Args:
            now_ms: The machine's monotonic clock.
            rate_per_s: The node's handshakes; 0: no limit.
            force_refresh: Whether it has to be known now; else it is as it was, when all had room then.

        Returns:
            What of the rate is this shard's; None: as before.
        """
        if not self._channels or (self._all_have_room and not force_refresh):
            return None
        offers = places(self._block, now_ms)
        first, then = roomiest(offers, self._number), next_with_room(offers, self._number)
        self._all_have_room = all(place.room for place in offers)
        self._reactor.set_handover(
            self._channel_to(first), next_fd=self._channel_to(then), handovers=min(MAX_HANDOVERS, len(offers))
        )
        return rate_share(offers, self._number, rate_per_s) if rate_per_s else 0

    def stop(self) -> None:
        """Hand nothing to them any more."""
        self._reactor.set_handover(-1)

    def _channel_to(self, number: int | None) -> int:
        return -1 if number is None else self._channels[number][1].fileno()
