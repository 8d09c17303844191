"""A bounded queue of raw publications between the bus connections and the shard that delivers them."""

from typing import final

__all__ = ["Backlog"]

@final
class Backlog:
    """The queue of one shard's publications, oldest first. `len()` returns the number of queued publications.

    Args:
        limit_bytes: The most memory of the queue without the names for `take_lost`. When an arriving
            publication needs more, the oldest chunks are dropped; a chunk is about a sixteenth of a limit
            from 64 KiB to 4 MiB, and 256 KiB of a larger one. A single publication is always accepted,
            whatever its size.
    """

    def __init__(self, limit_bytes: int) -> None: ...
    def __len__(self) -> int: ...
    @property
    def held_bytes(self) -> int:
        """The memory of the queue in bytes: its whole chunks, and the channel names for `take_lost`."""

    @property
    def dropped(self) -> int:
        """The number of publications dropped until now because the queue was at its limit."""

    def put(self, name: bytes, payload: bytes | None) -> None:
        """Append one publication to the queue; O(1), or O(n) of the publications that it displaces.

        Args:
            name: The name of the channel, without the prefix.
            payload: The payload; None: it was over the payload limit, and its bytes were skipped.

        Raises:
            MemoryError: The system refuses memory for another chunk.
        """

    def take(self) -> tuple[bytes, bytes | None] | None:
        """Remove the oldest publication and return `(name, payload)`; None when the queue is empty. O(1).

        The caller first notifies the subscribers of every channel that `take_lost` returns, and takes nothing
        while `is_held`.
        """

    @property
    def has_lost(self) -> bool:
        """Whether the subscribers of dropped publications still have to be notified of a gap."""

    def take_lost(self) -> bytes | None:
        """Return one channel that lost its oldest publications; None stands for all channels.

        Call it only while `has_lost`. Send the notice to the subscribers before the next `take`, because all
        queued publications of the channel are younger than the lost ones.
        """

    def hold(self) -> None:
        """Block `take` until an earlier reply of the bus, such as a confirmation, has been handled.

        Several connections may hold the queue at once. Each call needs one call of `release`.
        """

    def release(self) -> None:
        """Undo one `hold`: the earlier reply of that connection has been handled."""

    @property
    def is_held(self) -> bool:
        """Whether a connection holds the queue, so that the caller must not take publications."""
