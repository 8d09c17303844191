"""Hand connections that this shard has no room for over to other shards of the node, and accept theirs.

A connection is sent as a descriptor through a Unix socket, with one byte that counts its handovers. First the
shard with the most room receives it. After that each shard sends it to the next one with room, in a ring, so
that every shard was offered the connection before it is refused.
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
"""For each shard the socket at which it receives connections, and the one at which others send them to it.

Empty where a node has one shard only.
"""

PER_PASS: Final = 64
MAX_HANDOVERS: Final = 255


class Siblings:
    """The other shards of the node, as one shard exchanges connections with them.

    Args:
        number: The number of this shard.
        channels: The socket pairs of all shards.
        block: The statistics of the node, where each shard writes its room.
        reactor: Holds the connections of this shard.
        count: Adds to a counter of the shard, by its name.
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
        """Return whether there are other shards."""
        return bool(self._channels)

    def fileno(self) -> int:
        """Return the descriptor that is readable when another shard has handed a connection over."""
        return self._channels[self._number][0].fileno()

    def take(self, now_ms: int) -> None:
        """Accept up to `PER_PASS` connections that other shards have handed over.

        Args:
            now_ms: Monotonic milliseconds.
        """
        ours = self._channels[self._number][0]
        for _ in range(PER_PASS):
            try:
                handovers, descriptors, _, _ = socket.recv_fds(ours, 1, 1)  # the socket does not block
            except BlockingIOError:
                break
            if not handovers:
                break
            for descriptor in descriptors:
                self._reactor.accept_handover(descriptor, now_ms=now_ms, handovers=handovers[0])
            if not descriptors:  # no descriptor was free, so the kernel has closed the connection
                self._count("handovers_lost", 1)

    def look(self, now_ms: int, rate_per_s: int, *, force_refresh: bool) -> int | None:
        """Read which shards have room, and set to which of them the reactor hands connections over.

        Args:
            now_ms: Monotonic milliseconds.
            rate_per_s: The node's limit of handshakes per second; 0: no limit.
            force_refresh: Read the regions even if all shards had room at the last time.

        Returns:
            This shard's part of the rate; 0: no limit; None: nothing was read, and the part stays as it is.
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
        """Hand no connection over to other shards from now on."""
        self._reactor.set_handover(-1)

    def _channel_to(self, number: int | None) -> int:
        """Return the descriptor through which a shard receives connections; -1 for no shard."""
        return -1 if number is None else self._channels[number][1].fileno()
