"""Verify the tokens that are not in the cache, in turns by address, for a short time in each pass.

Verifying a token takes 50 us, and half a millisecond with 8 KiB of claims; a peer needs no account to cause
that. So a token in the cache never waits. All others wait here, whether they arrived with a handshake or in a
message (`auth`, `refresh`, `sub`), and addresses take turns: a flood from one address does not delay the
others. A turn of an address whose tokens were refused lately costs more, so it comes later. No token is
refused for its address, because all clients behind a load balancer or a carrier's network have the same one.

As many handshakes wait as may be in progress. When many wait, a pass verifies for longer, so that places for
new handshakes become free. A token in a message takes no place. Its connection is not read meanwhile, so that
it has one waiting token at most, and is charged the time of the verification.
"""

import time
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

from wsgate.turns import Sender, Turns

__all__ = ["Verification"]

PASS_NS: Final = 1_000_000
"""How long one pass verifies; it verifies one token at least."""
WAITING_MOST: Final = 256
CROWDED_PASS_NS: Final = 4_000_000
"""How long a pass verifies while more than `WAITING_MOST` handshakes wait."""
FAILURES_MOST: Final = 63
"""Refused tokens that make the next turn of an address costlier, at most; each adds the cost of one turn."""
ADDRESSES_MOST: Final = 4_096
FORGET_S: Final = 10.0
"""Addresses with refused tokens that are remembered; an entry is dropped after one to two such times."""
ENTRY_BYTES: Final = 1_500
"""Memory of a handshake or command that waits, without its token."""

Item = TypeVar("Item")


class _Waiting(NamedTuple, Generic[Item]):
    """A token that waits to be verified, with the address it came from.

    Attributes:
        origin: The address, as `Reactor.origin` returns it.
        item: What the verification is called with.
        size: Memory of the token and its entry, in bytes.
        is_handshake: Whether the token arrived with a handshake.
    """

    origin: int
    item: Item
    size: int
    is_handshake: bool


class Verification(Generic[Item]):
    """Queues the tokens of one shard that wait for their turn, and verifies them.

    Args:
        verify: Verifies the token of a connection and continues its handshake or command. It returns whether
            the token was valid.
        charge: Called with the connection and the nanoseconds that the token of a message took.
        clock_ns: Returns monotonic nanoseconds.
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
        """Memory of all tokens that wait, in bytes."""
        return self._bytes

    def add(self, conn: int, origin: int, item: Item, size: int, *, is_handshake: bool) -> None:
        """Queue the token of a connection until it is the turn of its address.

        Args:
            conn: The connection; none of its tokens may be queued already.
            origin: The address of the connection, from `Reactor.origin`.
            item: What `verify` is called with.
            size: Bytes of the token.
            is_handshake: Whether the token arrived with a handshake, and not in a message.
        """
        self._waiting[conn] = _Waiting(origin, item, size + ENTRY_BYTES, is_handshake)
        self._bytes += size + ENTRY_BYTES
        self._handshakes += is_handshake
        self._turns.push(Sender(origin, conn), conn, 1 + min(self._failures(origin), FAILURES_MOST))

    def forget(self, conn: int) -> None:
        """Drop the token of a connection that is closed, if one is queued."""
        if self._waiting:
            self._take(conn)

    def step(self) -> bool:
        """Verify the tokens whose turn it is, for the time of one pass; return whether more wait."""
        if not self._waiting:
            return False
        began_ns = before_ns = self._clock_ns()
        while len(self._turns):
            conn = self._turns.popleft()
            found = self._take(conn)
            if found is None:
                continue  # the connection has closed meanwhile
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
        """Take the token of a connection out of the queue; None: none is queued."""
        found = self._waiting.pop(conn, None)
        if found is not None:
            self._bytes -= found.size
            self._handshakes -= found.is_handshake
        return found

    def _failures(self, origin: int) -> int:
        """Return how many tokens of an address were refused lately."""
        return self._young.get(origin, 0) + self._old.get(origin, 0)

    def _note_failure(self, origin: int) -> None:
        """Count a refused token of an address; begin a new table and drop the oldest one if it is time."""
        now_ns = self._clock_ns()
        if now_ns - self._turned_ns >= FORGET_S * 1e9 or len(self._young) >= ADDRESSES_MOST // 2:
            self._young, self._old = {}, self._young
            self._turned_ns = now_ns
        self._young[origin] = self._young.get(origin, 0) + 1
