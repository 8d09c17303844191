"""Send `gap` notices: which connections learn that they have missed publications, and when.

Two kinds of notice:
- After a loss of the bus, each connection that may have missed publications receives one `gap` without a
  channel. The hub marks a channel when its subscription is confirmed again. From then on nothing more is
  lost, so that a client that loads its state after the notice misses nothing.
- For a single skipped publication, the subscribers of its channel receive a `gap` that names the channel.

Rules:
- The notices after a loss wait until every channel is subscribed again, at most `SETTLE_MS`, so that each
  connection receives one notice and not several.
- Two rounds of notices begin at least `MERGE_MS` apart, or less where clients load within a shorter time. The
  losses between them share a notice. The same holds for the notices of one channel.
- A walk over the table of connections does `SLOTS_PER_PASS` at a time and creates no Python object for a
  connection. Each pass draws `FORMS_PER_PASS` random times; neighbours in the table receive different ones.
- The memory is bounded: one entry for each of at most `CHANNELS_MOST` channels that were notified lately.
  If more channels lose publications, the connections receive a notice without a channel instead.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from wsgate.bus.names import INBOX_MARK
from wsgate.dialects import DIALECTS, Dialect
from wsgate.reactor import Reactor
from wsgate.shard.publication_encoder import VARIANTS, PublicationEncoder

__all__ = ["GapReason", "Gaps", "spread_ms_for"]

GapReason = Literal["slow", "bus", "too_large"]

SLOTS_PER_PASS: Final = 1_024
FORMS_PER_PASS: Final = 16
SETTLE_MS: Final = 1_000
"""Longest wait for a slow bus; the channels that are subscribed again already are notified then."""
MERGE_MS: Final = 2_000
"""Also the shortest time over which clients spread their loads, unless the operator sets a shorter one."""
RELOADS_PER_S: Final = 5_000
"""Clients of one node that load their state in one second, where the operator sets no time."""
CHANNELS_MOST: Final = 1_024
AT_ONCE: Final = 1_024
"""Subscribers of a channel that receive one notice with one random time; more receive theirs in a walk."""
_INBOX: Final = INBOX_MARK.encode()


def spread_ms_for(connections: int) -> int:
    """Return the time over which clients spread their loads, in ms, where the operator sets none.

    Args:
        connections: Connections of the node.
    """
    return max(MERGE_MS, connections * 1_000 // RELOADS_PER_S)


@dataclass(slots=True)
class _Walk:
    """A walk over the table of connections that sends one kind of notice.

    Attributes:
        reason: The reason in the notice.
        round: The mark of the channels whose subscribers are notified; used without a channel only.
        channel: The channel of the notice; None: every channel that is marked with the round.
        place: Where the walk goes on.
    """

    reason: GapReason
    round: int = 0
    channel: bytes | None = None
    place: int = 0


@dataclass(slots=True)
class _Told:
    """A channel whose subscribers were notified lately."""

    at_ms: int
    again: GapReason | None = None  # why publications were lost since then; None: none were


class Gaps:
    """Collects the losses of one shard, and sends the notices a part in each pass.

    Args:
        reactor: Sends the notices, and keeps the marks of channels.
        forms: Encodes a notice for each variant.
        count: Adds to a counter of the shard, by its name.
        spread_ms: Returns over how many milliseconds clients spread their loads now.
        now_ms: Returns monotonic milliseconds.
        variants: How many variants the reactor has.
    """

    def __init__(
        self,
        reactor: Reactor,
        forms: PublicationEncoder,
        count: Callable[[str, int], None],
        spread_ms: Callable[[], int],
        now_ms: Callable[[], int],
        *,
        variants: int,
    ) -> None:
        self._reactor = reactor
        self._forms = forms
        self._count = count
        self._spread_ms = spread_ms
        self._now_ms = now_ms
        self._shared = [VARIANTS[place].dialect.variant for place in range(len(DIALECTS), variants)]
        self._round = 1  # the mark that lost channels receive now
        self._reason: GapReason = "bus"  # why the marked channels lost publications
        self._marked_ms: int | None = None  # when the first channel was marked; None: none is
        self._next_ms = 0  # no round of notices starts earlier
        self._walks: deque[_Walk] = deque()
        self._told: dict[bytes, _Told] = {}  # in the order of `at_ms`

    # --- losses ---------------------------------------------------------------------------------------

    def mark(self, name: bytes, reason: GapReason = "bus") -> None:
        """Mark a channel that lost publications until now; its subscribers get a notice without a channel."""
        if not self._reactor.mark_lost(name, self._round):
            return
        if self._marked_ms is None:
            self._marked_ms, self._reason = self._now_ms(), reason
        elif reason != self._reason:
            self._reason = "bus"

    def gap(self, name: bytes, reason: GapReason) -> None:
        """Notify the subscribers of a channel that one publication of this channel is lost.

        A channel that was notified lately is notified once more when the time between two notices has passed.
        """
        told = self._told.get(name)
        if told is not None:
            told.again = reason
        elif len(self._told) >= CHANNELS_MOST:
            self.mark(name, reason)
        else:
            self._told[name] = _Told(self._now_ms())
            self._notify(name, reason)

    # --- notices --------------------------------------------------------------------------------------

    def encode_slow(self, variant: int, name: bytes, first: int, last: int) -> bytes:
        """Encode the `gap` of a slow consumer for the reactor; positions are left out, as no channel has any.

        Args:
            variant: The variant of the connection.
            name: The channel, by its name on the bus.
            first: Position of the first lost publication; not used.
            last: Position of the last lost publication; not used.
        """
        return self._encode(VARIANTS[variant].dialect, name, "slow", self._retry_ms())

    def step(self, *, is_settled: bool) -> bool:
        """Send the next part of the notices that are due; call this in each pass.

        Args:
            is_settled: Whether every channel that was lost with the bus is confirmed again.

        Returns:
            True if a walk is left over for the next pass.
        """
        self._repeat()
        self._begin_round(is_settled=is_settled)
        if not self._walks:
            return False
        walk = self._walks[0]
        forms = [self._form(walk) for _ in range(FORMS_PER_PASS)]
        place, notified = self._reactor.send_notices(
            walk.place, SLOTS_PER_PASS, forms, round=walk.round, channel=walk.channel
        )
        self._count("gaps_" + walk.reason, notified)
        if place is None:
            self._walks.popleft()
        else:
            walk.place = place
        return bool(self._walks)

    def _begin_round(self, *, is_settled: bool) -> None:
        """Begin a walk for the marked channels, if it is time and the walk before has ended."""
        if self._marked_ms is None or any(walk.channel is None for walk in self._walks):
            return
        now_ms = self._now_ms()
        if now_ms < self._next_ms or not (is_settled or now_ms - self._marked_ms >= SETTLE_MS):
            return
        self._walks.append(_Walk(self._reason, self._round))
        self._round, self._marked_ms = self._round % 0xFFFF_FFFF + 1, None
        self._next_ms = now_ms + self._merge_ms()

    def _repeat(self) -> None:
        """Notify channels again that lost more since their notice; forget the channels that did not."""
        if not self._told:
            return
        before_ms = self._now_ms() - self._merge_ms()
        for _ in range(min(len(self._told), FORMS_PER_PASS)):
            name, told = next(iter(self._told.items()))
            if told.at_ms > before_ms:
                return
            del self._told[name]
            if told.again is not None:
                self.gap(name, told.again)

    def _notify(self, name: bytes, reason: GapReason) -> None:
        """Send the notice of one channel to its subscribers: at once, or in a walk if they are many."""
        if self._reactor.subscribers(name) > AT_ONCE:
            self._walks.append(_Walk(reason, channel=name))
            return
        retry_ms = self._retry_ms()
        variants = self._reactor.variants(name)
        forms = self._forms.make(variants, lambda dialect: self._encode(dialect, name, reason, retry_ms))
        self._count("gaps_" + reason, self._reactor.publish(name, forms))

    def _form(self, walk: _Walk) -> list[bytes | int | None]:
        """Encode the notice of a walk for every variant, with a time to load drawn at random.

        A variant with compression shares the frame of its dialect.
        """
        retry_ms = self._retry_ms()
        encoded = [self._encode(dialect, walk.channel, walk.reason, retry_ms) for dialect in DIALECTS]
        return [*encoded, *self._shared]

    def _merge_ms(self) -> int:
        """Return the least time between two notices, in ms."""
        return min(MERGE_MS, self._spread_ms())

    def _retry_ms(self) -> int:
        """Draw after how many milliseconds a client should load its state."""
        return random.randint(0, self._spread_ms())  # noqa: S311 - spreading, not secrecy

    def _encode(self, dialect: Dialect, name: bytes | None, reason: str, retry_ms: int) -> bytes:
        channel = None if name is None else "@me" if name.startswith(_INBOX) else name.decode()
        return dialect.gap(channel, reason=reason, retry_ms=retry_ms)
