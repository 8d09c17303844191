"""Handshakes with tokens that were not seen before: verified in turns by address, a little in each pass.

Verifying a token costs 50 us, and with 8 KiB of claims half a millisecond, and a stranger needs no account
to make the gateway do it. So a handshake with a token that the cache knows is never kept waiting. The others
wait here, and addresses take turns: a flood from one address delays nobody from another one. An address whose
tokens have been refused lately pays more for each turn, so it goes last. Nothing is refused for it, because
behind a load balancer or a carrier's network all clients have one address.

As many wait as handshakes may be in progress. When that is much, a pass verifies more, because a place that
is not given back would keep newcomers out.
"""

import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from wsgate.turns import Sender, Turns

__all__ = ["Verification"]

PASS_NS: Final = 1_000_000
"""What one pass verifies for; one handshake at least."""
WAITING_MOST: Final = 256
"""With more handshakes than this a pass goes on until so many are left."""
FAILURES_MOST: Final = 63
"""How much more a turn of an address costs at most, in turns."""
ADDRESSES_MOST: Final = 4_096
FORGET_S: Final = 10.0
"""Addresses whose tokens were refused that are remembered, and for how long, once or twice."""
ENTRY_BYTES: Final = 1_500
"""Memory of a handshake that waits, beside its token."""

Item = TypeVar("Item")


class Verification(Generic[Item]):
    """The handshakes of one shard that wait for their turn.

    Args:
        verify: Verifies the token of a connection's handshake and goes on with it. It returns whether the
            token was good.
        clock_ns: A monotonic clock.
    """

    def __init__(
        self, verify: Callable[[int, Item], bool], clock_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._verify = verify
        self._clock_ns = clock_ns
        self._turns: Turns[int] = Turns()
        self._waiting: dict[int, tuple[int, Item, int]] = {}  # by connection: origin, item, bytes
        self._bytes = 0
        self._young: dict[int, int] = {}  # failures by origin
        self._old: dict[int, int] = {}
        self._turned_ns = clock_ns()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """Memory of what waits, in bytes."""
        return self._bytes

    def add(self, conn: int, origin: int, item: Item, size: int) -> None:
        """Let a handshake wait for its turn.

        Args:
            conn: Its connection, which must not wait already.
            origin: Where it comes from, `Reactor.origin`.
            item: What `verify` is called with.
            size: Bytes of its token.
        """
        self._waiting[conn] = origin, item, size + ENTRY_BYTES
        self._bytes += size + ENTRY_BYTES
        self._turns.push(Sender(origin, conn), conn, 1 + min(self._failures(origin), FAILURES_MOST))

    def forget(self, conn: int) -> None:
        """The connection is gone; harmless when it does not wait."""
        if self._waiting and (found := self._waiting.pop(conn, None)) is not None:
            self._bytes -= found[2]

    def step(self) -> bool:
        """Verify those whose turn it is, for one pass; whether more wait."""
        end_ns = self._clock_ns() + PASS_NS
        while len(self._turns):
            conn = self._turns.popleft()
            found = self._waiting.pop(conn, None)
            if found is None:
                continue  # gone meanwhile
            origin, item, size = found
            self._bytes -= size
            if not self._verify(conn, item):
                self._note_failure(origin)
            if self._clock_ns() >= end_ns and len(self._waiting) <= WAITING_MOST:
                break
        return bool(self._waiting)

    def _failures(self, origin: int) -> int:
        return self._young.get(origin, 0) + self._old.get(origin, 0)

    def _note_failure(self, origin: int) -> None:
        now_ns = self._clock_ns()
        if now_ns - self._turned_ns >= FORGET_S * 1e9 or len(self._young) >= ADDRESSES_MOST // 2:
            self._young, self._old = {}, self._young
            self._turned_ns = now_ns
        self._young[origin] = self._young.get(origin, 0) + 1
