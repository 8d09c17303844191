"""Tokens that were not seen before: verified in turns by address, a little in each pass.

Verifying a token costs 50 us, and with 8 KiB of claims half a millisecond, and a stranger needs no account
to make the gateway do it. So a token that the cache knows is never kept waiting. The others wait here,
whether they came with a handshake or in a message (`auth`, `refresh`, `sub`), and addresses take turns: a
flood from one address delays nobody from another one. An address whose tokens have been refused lately pays
more for each turn, so it goes last. Nothing is refused for it, because behind a load balancer or a carrier's
network all clients have one address.

As many handshakes wait as may be in progress. When that is much, a pass verifies for longer, because a place
that is not given back would keep newcomers out. A message takes no place: its connection, of which one token
waits at most, is not read meanwhile, and is charged what verifying took.
"""

import time
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

from wsgate.turns import Sender, Turns

__all__ = ["Verification"]

PASS_NS: Final = 1_000_000
"""What one pass verifies for; one token at least."""
WAITING_MOST: Final = 256
CROWDED_PASS_NS: Final = 4_000_000
"""With more handshakes than this a pass verifies for so long, or until so many are left."""
FAILURES_MOST: Final = 63
"""How much more a turn of an address costs at most, in turns."""
ADDRESSES_MOST: Final = 4_096
FORGET_S: Final = 10.0
"""Addresses whose tokens were refused that are remembered, and for how long, once or twice."""
ENTRY_BYTES: Final = 1_500
"""Memory of a handshake or command that waits, beside its token."""

Item = TypeVar("Item")


class _Waiting(NamedTuple, Generic[Item]):
    """A token that waits."""

    origin: int
    item: Item
    size: int
    is_handshake: bool


class Verification(Generic[Item]):
    """The tokens of one shard that wait for their turn.

    Args:
        verify: Verifies the token of a connection and goes on with what it came for. It returns whether the
            token was good.
        charge: Told what a token that came in a message cost: the connection, and nanoseconds.
        clock_ns: A monotonic clock.
    """

    def __init__(
        self,
        verify: Callable[[int, Item], bool],
        charge: Callable[[int, int], object] = lambda _conn, _cost_ns: None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._verify = verify
        self._charge = charge
        self._clock_ns = clock_ns
        self._turns: Turns[int] = Turns()
        self._waiting: dict[int, _Waiting[Item]] = {}  # by connection
        self._handshakes = 0
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

    def add(self, conn: int, origin: int, item: Item, size: int, *, is_handshake: bool) -> None:
        """Let a token wait for its turn.

        Args:
            conn: Its connection, which must not wait already.
            origin: Where it comes from, `Reactor.origin`.
            item: What `verify` is called with.
            size: Bytes of the token.
            is_handshake: It came with a handshake, not in a message.
        """
        self._waiting[conn] = _Waiting(origin, item, size + ENTRY_BYTES, is_handshake)
        self._bytes += size + ENTRY_BYTES
        self._handshakes += is_handshake
        self._turns.push(Sender(origin, conn), conn, 1 + min(self._failures(origin), FAILURES_MOST))

    def forget(self, conn: int) -> None:
        """The connection is gone; harmless when it does not wait."""
        if self._waiting:
            self._take(conn)

    def step(self) -> bool:
        """Verify those whose turn it is, for one pass; whether more wait."""
        if not self._waiting:
            return False
        began_ns = before_ns = self._clock_ns()
        while len(self._turns):
            conn = self._turns.popleft()
            found = self._take(conn)
            if found is None:
                continue  # gone meanwhile
            if not self._verify(conn, found.item):
                self._note_failure(found.origin)
            now_ns = self._clock_ns()
            if not found.is_handshake:
                self._charge(conn, now_ns - before_ns)
            before_ns = now_ns
            if now_ns - began_ns >= (CROWDED_PASS_NS if self._handshakes > WAITING_MOST else PASS_NS):
                break
        return bool(self._waiting)

    def _take(self, conn: int) -> _Waiting[Item] | None:
        """What waits of a connection, which waits no longer; None: nothing does."""
        found = self._waiting.pop(conn, None)
        if found is not None:
            self._bytes -= found.size
            self._handshakes -= found.is_handshake
        return found

    def _failures(self, origin: int) -> int:
        return self._young.get(origin, 0) + self._old.get(origin, 0)

    def _note_failure(self, origin: int) -> None:
        now_ns = self._clock_ns()
        if now_ns - self._turned_ns >= FORGET_S * 1e9 or len(self._young) >= ADDRESSES_MOST // 2:
            self._young, self._old = {}, self._young
            self._turned_ns = now_ns
        self._young[origin] = self._young.get(origin, 0) + 1
