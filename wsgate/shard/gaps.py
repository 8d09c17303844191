"""Notices of loss: which connections are told that publications are missing, and when.

Two kinds of notice:
- After a break of the bus each connection that may have missed something receives one `gap` without a
  channel. The hub marks a channel when its subscription is confirmed again: from then on nothing more is
  lost, so a client that loads its state after the notice misses nothing.
- A single publication that is skipped is a `gap` of its channel, for the subscribers of that channel.

Rules:
- The notices of a break wait until everything is subscribed again, at most `SETTLE_MS`, so that each
  connection receives one and not several.
- Breaks that follow each other within `MERGE_MS` are notified together, after the last of them. What is lost
  after a notice went out is notified again. The same holds for skipped publications of one channel.
- A walk over the table of connections does `SLOTS_PER_PASS` at a time and creates no Python object for a
  connection. Each pass draws `FORMS_PER_PASS` random times; neighbours in the table receive different ones.
- What is kept here is bounded: one entry for each of at most `CHANNELS_MOST` channels that lost something
  lately. With more channels than that the connections are notified of all their channels at once.
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
"""A bus that subscribes slowly does not hold back the notices of what is subscribed again already."""
MERGE_MS: Final = 2_000
"""Also the shortest time within which clients load anew, unless the operator sets a shorter one."""
RELOADS_PER_S: Final = 5_000
"""How many clients of one node load their state anew in a second, where the operator does not say."""
CHANNELS_MOST: Final = 1_024
AT_ONCE: Final = 1_024
"""Subscribers of a channel that receive its notice together; more receive it in a walk, not all the same."""
_INBOX: Final = INBOX_MARK.encode()


def spread_ms_for(connections: int) -> int:
    """The time in which so many clients load their state anew, in ms, where the operator does not say."""
    return max(MERGE_MS, connections * 1_000 // RELOADS_PER_S)


@dataclass(slots=True)
class _Walk:
    """One walk over the table of connections."""

    reason: GapReason
    round: int = 0
    channel: bytes | None = None  # None: of all channels that are marked with the round
    place: int = 0


@dataclass(slots=True)
class _Told:
    """A channel whose subscribers were notified lately."""

    at_ms: int
    again: GapReason | None = None  # lost more since


class Gaps:
    """The notices of one shard.

    Args:
        reactor: Sends them.
        forms: Makes what each variant gets.
        count: Adds to a counter by name.
        spread_ms: Within how many milliseconds clients load anew, now.
        now_ms: A monotonic clock.
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
        self._round = 1  # channels are marked with this one
        self._reason: GapReason = "bus"  # of the marks
        self._marked_ms: int | None = None  # since when there are some
        self._next_ms = 0  # no round begins earlier
        self._walks: deque[_Walk] = deque()
        self._told: dict[bytes, _Told] = {}  # in the order of `at_ms`

    # --- what is lost ---------------------------------------------------------------------------------

    def mark(self, name: bytes, reason: GapReason = "bus") -> None:
        """Note that the channel lost publications until now: its subscribers are notified of all channels."""
        if not self._reactor.mark_lost(name, self._round):
            return
        if self._marked_ms is None:
            self._marked_ms, self._reason = self._now_ms(), reason
        elif reason != self._reason:
            self._reason = "bus"

    def gap(self, name: bytes, reason: GapReason) -> None:
        """One publication of this channel is lost: notify its subscribers, of this channel alone."""
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
        """The `gap` of a slow consumer, for the reactor; no channel has positions to tell."""
        return self._encode(VARIANTS[variant].dialect, name, "slow", self._retry_ms())

    def step(self, *, is_settled: bool) -> bool:
        """Do the next part; call in each pass of the loop.

        Args:
            is_settled: Whether everything that was lost with the bus is subscribed again.

        Returns:
            True when there is more to do now.
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
        """Begin to notify of what is marked, when it is time and the round before is over."""
        if self._marked_ms is None or any(walk.channel is None for walk in self._walks):
            return
        now_ms = self._now_ms()
        if now_ms < self._next_ms or not (is_settled or now_ms - self._marked_ms >= SETTLE_MS):
            return
        self._walks.append(_Walk(self._reason, self._round))
        self._round, self._marked_ms = self._round % 0xFFFF_FFFF + 1, None
        self._next_ms = now_ms + self._merge_ms()

    def _repeat(self) -> None:
        """Notify again where more was lost since; forget the channels where nothing was."""
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
        if self._reactor.subscribers(name) > AT_ONCE:
            self._walks.append(_Walk(reason, channel=name))
            return
        retry_ms = self._retry_ms()
        variants = self._reactor.variants(name)
        forms = self._forms.make(variants, lambda dialect: self._encode(dialect, name, reason, retry_ms))
        self._count("gaps_" + reason, self._reactor.publish(name, forms))

    def _form(self, walk: _Walk) -> list[bytes | int | None]:
        """One message for every variant, encoded once for each dialect."""
        retry_ms = self._retry_ms()
        encoded = [self._encode(dialect, walk.channel, walk.reason, retry_ms) for dialect in DIALECTS]
        return [*encoded, *self._shared]

    def _merge_ms(self) -> int:
        return min(MERGE_MS, self._spread_ms())

    def _retry_ms(self) -> int:
        return random.randint(0, self._spread_ms())  # noqa: S311 - spreading, not secrecy

    def _encode(self, dialect: Dialect, name: bytes | None, reason: str, retry_ms: int) -> bytes:
        channel = None if name is None else "@me" if name.startswith(_INBOX) else name.decode()
        return dialect.gap(channel, reason=reason, retry_ms=retry_ms)
