"""Publications that were received from the bus and not handed on yet: a bounded queue of raw bytes."""

from typing import final

__all__ = ["Backlog"]

@final
class Backlog:
    """One shard's queue of publications, oldest first. Its length is how many wait.

    Args:
        limit_bytes: Memory that it may hold. When more arrives the oldest are dropped, a sixteenth of it at
            least; the largest single publication always fits.
    """

    def __init__(self, limit_bytes: int) -> None: ...
    def __len__(self) -> int: ...
    @property
    def held_bytes(self) -> int:
        """Memory that is held: what waits, in whole chunks, and the names of channels in `take_lost`."""

    @property
    def dropped(self) -> int:
        """Publications that were dropped so far, because more arrived than the limit."""

    def put(self, name: bytes, payload: bytes | None) -> None:
        """Append a publication.

        Args:
            name: Its channel.
            payload: None: it was over the limit of one payload, and skipped.

        Raises:
            MemoryError: There is none.
        """

    def take(self) -> tuple[bytes, bytes | None] | None:
        """Take the oldest publication, `(name, payload)`; None: there is none.

        Notify whoever `take_lost` names before, and take nothing while it `is_held`.
        """

    @property
    def has_lost(self) -> bool:
        """Whether subscribers are still to be notified of publications that were dropped."""

    def take_lost(self) -> bytes | None:
        """A channel whose oldest publications were dropped; None: too many channels to name them.

        Only while `has_lost`. The notice belongs before the next publication that is taken.
        """

    def hold(self) -> None:
        """Say that something which came before is not dealt with yet: a confirmation, for instance.

        Each call needs one of `release`.
        """

    def release(self) -> None:
        """Take one `hold` back."""

    @property
    def is_held(self) -> bool:
        """Whether nothing may be taken now."""
