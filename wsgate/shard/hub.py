"""The shard's table of local subscriptions, and its two ends: reactor below, bus above.

Owns no table of its own. Who is subscribed to what is in the reactor; what is here is only what the
bus has not confirmed yet, so that a million resting subscriptions cost Python nothing.

Rules:
- The bus is asked for a channel with its first subscriber, and told to stop when the reactor reports
  it empty. Both go out in order on one connection, in batches.
- A subscription is confirmed when every SUBSCRIBE sent for its name was answered: after a quick
  unsubscribe and subscribe the first answer belongs to the first one.
- After a lost connection everything is unconfirmed, and all names are sent again, a part per pass.
- Every publication comes over the bus, also for subscribers on the same shard: one order for all.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from wsgate.bus import Publication, decode_publication
from wsgate.bus.names import INBOX_MARK
from wsgate.bus.subscriber import NAMES_PER_COMMAND, Subscriber
from wsgate.dialects import DIALECTS
from wsgate.reactor import Reactor
from wsgate.shard.access import Access

__all__ = ["Hub", "Joined", "Waiter"]

Waiter = Callable[[bytes, bool], None]
"""Told `(name, is_live)`: the bus confirmed the subscription, or was lost before it did."""

_INBOX: Final = INBOX_MARK.encode()
_SHOWN_INBOX: Final = "@me"


class Joined(Enum):
    """What became of a wish to subscribe."""

    LIVE = "live"  # what is published from now on is delivered
    WAITS = "waits"  # subscribed here; the waiter is told when the bus has confirmed it
    ALREADY = "already"
    TOO_MANY = "too_many"
    GONE = "gone"


class Hub:
    """Subscriptions and publications of one shard.

    Args:
        reactor: With `report_vacated` on.
        access: For the largest publication a channel takes.
        count: Adds to a counter by name.
    """

    def __init__(self, reactor: Reactor, access: Access, count: Callable[[str, int], None]) -> None:
        self._reactor = reactor
        self._access = access
        self._count = count
        self._bus: Subscriber | None = None
        self._unconfirmed: dict[bytes, int] = {}  # name: answers still to come
        self._waiters: dict[bytes, list[Waiter]] = {}
        self._resubscribe_from: int | None = None  # place in the reactor's directory; None: done

    def attach(self, bus: Subscriber) -> None:
        """Set the subscriber connection; once, before anything else."""
        self._bus = bus

    @property
    def is_live(self) -> bool:
        """Whether the bus can be subscribed on now."""
        return self._bus is not None and self._bus.is_up

    @property
    def pending(self) -> int:
        """Channels the bus has not confirmed yet."""
        return len(self._unconfirmed)

    def is_confirmed(self, name: bytes) -> bool:
        """Whether what is published to a channel that is subscribed here is heard."""
        return self.is_live and name not in self._unconfirmed and self._resubscribe_from is None

    # --- subscribing ----------------------------------------------------------------------------------

    def join(self, conn: int, name: bytes, policy: int, waiter: Waiter) -> Joined:
        """Subscribe a connection.

        While the bus is away the connection is subscribed all the same and waits: whoever does not want
        that asks `is_live` first, or leaves when its waiter is told.

        Args:
            conn: An open connection.
            name: The channel as the bus knows it.
            policy: What a slow consumer loses, `wsgate.reactor.events.POLICY_`.
            waiter: Called later, once or several times, only when the answer is `WAITS`.
        """
        subscribers = self._reactor.subscribe(conn, name, policy=policy)
        if subscribers <= 0:
            return {0: Joined.GONE, -1: Joined.ALREADY, -2: Joined.TOO_MANY}[subscribers]
        if self.is_live:
            if subscribers == 1 or (self._resubscribe_from is not None and name not in self._unconfirmed):
                self._ask([name])
            if name not in self._unconfirmed:
                return Joined.LIVE
        self._waiters.setdefault(name, []).append(waiter)
        return Joined.WAITS

    def wait(self, name: bytes, waiter: Waiter) -> None:
        """Be told when a name that is subscribed here is confirmed again."""
        self._waiters.setdefault(name, []).append(waiter)

    def leave(self, conn: int, name: bytes) -> bool:
        """Unsubscribe a connection; False when it was not subscribed."""
        return self._reactor.unsubscribe(conn, name) >= 0

    def tidy(self) -> None:
        """Unsubscribe from what nobody here listens to any more; call once a pass of the loop."""
        while vacated := self._reactor.take_vacated(NAMES_PER_COMMAND):
            if self._bus is not None:
                self._bus.unsubscribe(vacated)
            if self._waiters:
                for name in vacated:
                    self._waiters.pop(name, None)

    def _ask(self, names: list[bytes]) -> None:
        assert self._bus is not None
        for name in names:
            self._unconfirmed[name] = self._unconfirmed.get(name, 0) + 1
        self._bus.subscribe(names)

    # --- what the bus says ----------------------------------------------------------------------------

    def on_up(self) -> None:
        """Subscribe to everything again, a part now and a part with every pass."""
        self._resubscribe_from = 0
        self.resubscribe()

    def resubscribe(self) -> None:
        """The next part, when one is due."""
        if self._resubscribe_from is None or not self.is_live:
            return
        names, place = self._reactor.channels(self._resubscribe_from, NAMES_PER_COMMAND)
        self._resubscribe_from = place or None
        if names:
            self._ask(names)

    def on_down(self) -> None:
        """Nothing is live any more; who waits is told, and may wait again."""
        self._unconfirmed.clear()
        self._resubscribe_from = None
        waiters, self._waiters = self._waiters, {}
        for name, waiting in waiters.items():
            for waiter in waiting:
                waiter(name, False)

    def on_subscribed(self, name: bytes) -> None:
        """One SUBSCRIBE was answered."""
        left = self._unconfirmed.get(name, 0) - 1
        if left > 0:
            self._unconfirmed[name] = left
            return
        self._unconfirmed.pop(name, None)
        for waiter in self._waiters.pop(name, ()):
            waiter(name, True)

    def on_message(self, name: bytes, data: bytes | None) -> None:
        """One publication: checked once, encoded once per variant that has subscribers here."""
        variants = self._reactor.variants(name)
        if not variants:
            self._count("publications_unheard", 1)
            return
        self._count("publications_received", 1)
        if data is None:
            self._count("publications_too_large", 1)
            return
        publication = decode_publication(data)
        if publication is None:
            self._count("publications_malformed", 1)
            return
        channel = name.decode()  # somebody subscribed to it, so it is valid
        size = len(publication.payload.data)
        if size > self._access.smallest_max_publish_bytes and size > self._access.max_publish_bytes(channel):
            self._count("publications_too_large", 1)
            return
        self._deliver(name, channel, publication, variants)

    def _deliver(self, name: bytes, channel: str, publication: Publication, variants: int) -> None:
        shown = _SHOWN_INBOX if name.startswith(_INBOX) else channel
        frames = [
            dialect.publication(
                shown, publication.payload, publication.user, publication.position, publication.timestamp_ms
            )
            if variants >> dialect.variant & 1
            else None
            for dialect in DIALECTS
        ]
        exclude = self._reactor.find_public(publication.exclude) if publication.exclude else 0
        self._reactor.publish(name, frames, exclude=exclude)
