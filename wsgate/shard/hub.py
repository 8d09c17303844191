"""The shard's table of local subscriptions, and its two ends: reactor below, bus above.

Owns no table of its own. Who is subscribed to what is in the reactor; what is here is only what the
bus has not confirmed yet, so that a million resting subscriptions cost Python nothing.

Rules:
- The bus is asked for a channel with its first subscriber, and told to stop when the reactor reports
  it empty. Both go out in order on one connection, in batches. A name that was left before its SUBSCRIBE
  was sent is not sent at all.
- A subscription is confirmed when every SUBSCRIBE sent for its name was answered: after a quick
  unsubscribe and subscribe the first answer belongs to the first one.
- A name that is new to the bus is asked for only while its connection has few unanswered names, and while
  the bus has memory for it. Inboxes are not asked these questions: the gate refuses their connections.
- After a lost connection everything is unconfirmed, and all names are sent again: a part per pass, and
  no more while many are unanswered, so that a bus of any speed is asked at its own.
- What has to be told to many at once is told a part per pass too, and no publication is handed on meanwhile:
  none overtakes the answer to a subscription.
- A subscription is confirmed as soon as the bus has confirmed it, also while older publications wait in the
  backlog: a client does not wait for what others were sent. A new subscriber then also receives what was
  published to the channel before and still waits, in order; a channel that nobody was subscribed to meanwhile
  receives nothing of it before its first `subbed`.
- Whoever loses a publication here is sent a gap: see `gap`.
- Every publication comes over the bus, also for subscribers on the same shard: one order for all.
- A channel that the bus forbids is refused for good, and nothing else with it. Its waiters are told so, and
  the channel is taken from those that held it before: a walk over the connections, a part per pass.
- A channel that was live, and is confirmed again after a loss, may have missed publications until then: it is
  marked, and its subscribers are notified (`wsgate.shard.gaps`). So is a channel that loses one publication.
"""

from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Final

from wsgate.bus import BusSubscriber, Covers, Publication, decode_publication
from wsgate.bus.names import INBOX_MARK
from wsgate.bus.subscriber import NAMES_PER_COMMAND
from wsgate.dialects import Dialect
from wsgate.reactor import Reactor
from wsgate.shard.access import Access
from wsgate.shard.gaps import GapReason, Gaps
from wsgate.shard.publication_encoder import PublicationEncoder
from wsgate.shard.publish_watches import PublishWatch, PublishWatches
from wsgate.shard.unconfirmed import Confirmation, UnconfirmedCharges, Waiter, Waiters

__all__ = ["Hub", "Joined"]

ASKED_LIMIT: Final = 4 * NAMES_PER_COMMAND
"""Names unanswered above which subscribing again waits."""
UNSENT_LIMIT: Final = 32_768
"""Names of this shard that wait to be sent to the bus, above which clients may add no new ones."""
UNCONFIRMED_DEFAULT: Final = 1_024
"""Names of one connection that the bus has not confirmed, where there is no limit of subscriptions."""
UNCONFIRMED_LEAST: Final = 64
UNCONFIRMED_BYTES: Final = 300
"""What an unconfirmed name takes in the tables here, beside what waits for it: measured 210 to 390."""
MARKED_PER_STEP: Final = 64
"""Channels whose loss is noted between two publications, when all are concerned: about 0.1 ms."""
TAKEN_PER_PASS: Final = 1_024
"""Connections looked at in one pass, for whether they hold a channel that the bus forbids."""

_INBOX: Final = INBOX_MARK.encode()
_SHOWN_INBOX: Final = "@me"


class Joined(Enum):
    """What became of a wish to subscribe."""

    LIVE = "live"  # what is published from now on is delivered
    WAITS = "waits"  # subscribed here; the waiter is told when the bus has confirmed it
    ALREADY = "already"
    TOO_MANY = "too_many"
    BEHIND = "behind"  # the bus has not answered what this connection, or this shard, asked before
    REFUSED = "refused"  # the bus forbids the channel
    FULL = "full"  # the bus has no memory for one more name
    GONE = "gone"


class Hub:
    """Subscriptions and publications of one shard.

    Args:
        reactor: With `report_vacated` on.
        access: For the largest publication a channel takes.
        forms: Makes what each variant gets.
        gaps: Notifies subscribers of what is lost.
        count: Adds to a counter by name.
    """

    def __init__(
        self,
        reactor: Reactor,
        access: Access,
        forms: PublicationEncoder,
        gaps: Gaps,
        count: Callable[[str, int], None],
    ) -> None:
        self._reactor = reactor
        self._forms = forms
        self._access = access
        self._gaps = gaps
        self._count = count
        self._bus: BusSubscriber | None = None
        self._unconfirmed: dict[bytes, int] = {}  # name: answers still to come
        self._returning: set[bytes] = set()  # of those: subscribed again after a loss
        self._watches = PublishWatches()
        self._was_up = False
        self._has_lost = False  # before the bus was lost for the first time nobody has missed anything
        self._charges = UnconfirmedCharges()
        self.takes_name: Callable[[], bool] = lambda: True
        """Returns whether the bus has memory for one more channel of a client."""
        self.unconfirmed_limit = UNCONFIRMED_DEFAULT
        """Unconfirmed channels that one connection may cause."""
        self._waiters = Waiters()
        self._lost: set[bytes] = set()  # lost with a moved slot; subscribed again when the new map is known
        self._resubscribe_from: int | None = None  # place in the reactor's directory; None: done
        self._resubscribe: list[Covers | None] = []  # what the walk is about; None: everything
        self._asked_early: set[bytes] = set()  # while it is under way: names asked for before it came by
        self._refused: dict[bytes, int] = {}  # channels the bus forbids: place in the table of connections
        self.on_taken: Callable[[int, bytes], None] = lambda conn, name: None  # a channel was taken from it
        self._gap_from: int | None = None  # place in the reactor's directory; None: no walk is under way

    def attach(self, bus: BusSubscriber) -> None:
        """Set the subscriber connection; once, before anything else."""
        self._bus = bus

    @property
    def is_live(self) -> bool:
        """Whether the bus can be subscribed on now, all of it."""
        return self._bus is not None and self._bus.is_up

    def is_live_for(self, name: bytes) -> bool:
        """Whether this channel can be subscribed to now."""
        return self._bus is not None and self._bus.is_up_for(name)

    @property
    def pending(self) -> int:
        """Channels the bus has not confirmed yet."""
        return len(self._unconfirmed) + len(self._lost)

    @property
    def waiting_bytes(self) -> int:
        """Estimated memory of what the bus was asked and has not answered."""
        return self.pending * UNCONFIRMED_BYTES + (self._bus.waiting_bytes if self._bus is not None else 0)

    def limit_unconfirmed(self, subscriptions: int) -> None:
        """Let a connection have as many unconfirmed names as it may have subscriptions; 0: the default."""
        self.unconfirmed_limit = (
            max(UNCONFIRMED_LEAST, subscriptions) if subscriptions else UNCONFIRMED_DEFAULT
        )

    def receives(self, name: bytes) -> bool:
        """Whether what is published to this channel now reaches its subscribers here, if there are any.

        Without that a publish is not answered `ok`.
        """
        if not self.is_live_for(name):
            return False
        is_behind = name in self._lost or name in self._returning or self._awaits_its_turn(name)
        return not is_behind or not self._reactor.subscribers(name)

    # --- proof that the bus hands on --------------------------------------------------------------------

    def watch(self, name: bytes) -> PublishWatch | None:
        """Begin a publish to a channel; None: the bus has not confirmed that this shard is subscribed to it.

        As long as the watch is unbroken the bus has to hand the publication to this shard at least. Give it
        back with `unwatch`.
        """
        if not self._reactor.subscribers(name) or name in self._unconfirmed or not self.receives(name):
            return None
        return self._watches.begin(name)

    def unwatch(self, name: bytes, watch: PublishWatch) -> bool:
        """End a publish; whether the channel has been confirmed all the while."""
        return self._watches.end(name, watch)

    # --- subscribing ----------------------------------------------------------------------------------

    def join(self, conn: int, name: bytes, policy: int, waiter: Waiter) -> Joined:
        """Subscribe a connection.

        While the bus is away the connection is subscribed all the same and waits: whoever does not want
        that asks `is_live_for` first, or leaves when its waiter is told.

        Args:
            conn: An open connection.
            name: The channel as the bus knows it.
            policy: What a slow consumer loses, `wsgate.reactor.event_kinds.POLICY_`.
            waiter: Called later, once or several times, only when the answer is `WAITS`.
        """
        # An inbox is the backend's way to its user: no limit of the client's own subscriptions may refuse it.
        is_counted = not name.startswith(_INBOX)
        # The bus still has a name that was left in this very pass, unless it has lost it since.
        is_known = self._reactor.is_vacated(name) and name not in self._lost
        if name in self._refused:
            return Joined.REFUSED
        if is_counted and not is_known and not self._reactor.subscribers(name):
            if self._is_behind(conn):
                return Joined.BEHIND
            if not self.takes_name():
                return Joined.FULL
        subscribers = self._reactor.subscribe(conn, name, policy=policy, is_counted=is_counted)
        if subscribers <= 0:
            return {0: Joined.GONE, -1: Joined.ALREADY, -2: Joined.TOO_MANY}[subscribers]
        if subscribers == 1 and not is_known and self.is_live_for(name):
            self._lost.discard(name)
            self._ask_once(name)
            if is_counted and name in self._unconfirmed:
                self._charges.charge(conn, name)
        return self.confirm(conn, name, waiter)

    def _is_behind(self, conn: int) -> bool:
        """Whether too much that was asked before is unanswered to ask for one more new name."""
        if self._charges.count(conn) >= self.unconfirmed_limit:
            return True
        return self._bus is not None and self._bus.unsent >= UNSENT_LIMIT

    def confirm(self, conn: int, name: bytes, waiter: Waiter) -> Joined:
        """As `join`, of a name that is subscribed here: `LIVE` when what is published to it is heard."""
        if self.is_live_for(name) and name not in self._lost:
            if name not in self._unconfirmed and self._awaits_its_turn(name):
                self._ask_once(name)
            if name not in self._unconfirmed:
                return Joined.LIVE
        self.wait(conn, name, waiter)
        return Joined.WAITS

    def wait(self, conn: int, name: bytes, waiter: Waiter) -> None:
        """Be told when a name that is subscribed here is confirmed again."""
        self._waiters.add(conn, name, waiter)

    def leave(self, conn: int, name: bytes) -> bool:
        """Unsubscribe a connection, its waiter untold; False when it was not subscribed."""
        self._waiters.drop(conn, name)
        return self._reactor.unsubscribe(conn, name) >= 0

    def forget(self, conn: int) -> None:
        """The connection is gone: nobody waits there any more."""
        self._charges.forget(conn)
        self._waiters.forget(conn)

    def tidy(self) -> bool:
        """Do a part of what is left to do; call once in each pass of the loop.

        Unsubscribe from what nobody here listens to any more, notify waiters of what was lost, and subscribe
        again. The last is not left to the replies of the bus alone: a part that asks for nothing, because
        none of its names is of the server that came up, has no reply.

        Returns:
            True when there is more of it than fits a pass.
        """
        self._waiters.notify_losses()
        self._take_refused()
        self.resubscribe()
        has_notices = self._gaps.step(is_settled=self._is_settled)
        vacated = self._leave_vacated()
        has_more = self._waiters.has_losses or bool(self._refused)
        has_more = has_more or vacated == NAMES_PER_COMMAND or self._may_resubscribe
        return has_more or has_notices

    def _leave_vacated(self, covers: Covers | None = None, *, is_new: bool = False) -> int:
        """Unsubscribe from a part of what nobody here listens to any more; how many names that were.

        A new connection has none of the names that it covers. It is not asked to leave them: a SUBSCRIBE of a
        name that is joined again would cancel that, and nobody would have subscribed.
        """
        vacated = self._reactor.take_vacated(NAMES_PER_COMMAND)
        if self._lost:
            self._lost.difference_update(vacated)
        self._watches.break_off(vacated)
        if is_new:
            held = [] if covers is None else [name for name in vacated if not covers(name)]
        else:
            held = vacated
        if held and self._bus is not None:
            for name in self._bus.unsubscribe(held):
                self._drop_answer(name)
        return len(vacated)

    def _ask_again(self, names: list[bytes]) -> None:
        """Subscribe again: until the bus confirms it, what is published there is lost."""
        if self._has_lost:
            self._returning.update(names)
        self._ask(names)

    def _ask(self, names: list[bytes]) -> None:
        """Ask for names that the bus does not have, and has not been asked for since it came up.

        An UNSUBSCRIBE cancels a SUBSCRIBE that was not sent, so a second one for the same name would be the
        one that is cancelled, and the first would stay.
        """
        assert self._bus is not None
        unanswered = Counter(names)
        unanswered.subtract(self._bus.subscribe(names))
        for name, answers in unanswered.items():
            if answers > 0:
                self._unconfirmed[name] = self._unconfirmed.get(name, 0) + answers

    def _ask_once(self, name: bytes) -> None:
        """Ask for a name, and not again when the walk that subscribes again comes by it."""
        if self._resubscribe_from is None:
            self._ask([name])
        else:
            self._asked_early.add(name)
            self._ask_again([name])  # somebody may have been subscribed to it before the loss

    def _drop_answer(self, name: bytes) -> None:
        """One answer fewer is to come for a name that nobody here is subscribed to."""
        answers = self._unconfirmed.get(name, 0)
        if answers > 1:
            self._unconfirmed[name] = answers - 1
        else:
            self._unconfirmed.pop(name, None)
            self._charges.release(name)

    # --- what the bus says ----------------------------------------------------------------------------

    def on_up(self, covers: Covers | None = None) -> None:
        """Subscribe to everything it covers again, a part now and a part with every pass.

        Whoever was still to be notified of a loss is notified of the confirmation instead: a client that
        began to wait after the loss must not be answered for the one that did before.
        """
        self._drop_unconfirmed(covers)
        self._has_lost, self._was_up = self._has_lost or self._was_up, True
        while self._leave_vacated(covers, is_new=True) == NAMES_PER_COMMAND:
            pass
        self._asked_early.clear()
        self._waiters.cancel_losses(covers)
        self._resubscribe = [*self._resubscribe, covers] if self._resubscribe_from is not None else [covers]
        self._resubscribe_from = 0
        self.resubscribe()

    def resubscribe(self) -> None:
        """The next part, when one is due and the bus has answered most of those before."""
        if self._resubscribe_from is None or not self._may_resubscribe:
            return
        names, place = self._reactor.channels(self._resubscribe_from, NAMES_PER_COMMAND)
        self._resubscribe_from = place or None
        due = (name for name in names if self._is_covered(name) and self.is_live_for(name))
        self._ask_again([name for name in due if name not in self._asked_early])
        if self._resubscribe_from is None:
            self._asked_early.clear()

    @property
    def _may_resubscribe(self) -> bool:
        """Whether the next part of subscribing again is due now."""
        return self._resubscribe_from is not None and len(self._unconfirmed) <= ASKED_LIMIT

    def on_down(self, covers: Covers | None = None) -> None:
        """Nothing it covers is live any more; who waits is told, and may wait again."""
        self._drop_unconfirmed(covers)
        self._has_lost = True
        if covers is None:
            self._resubscribe_from = None
            self._asked_early.clear()
        self._waiters.lose(covers)
        self._waiters.notify_losses()

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        """A slot of the cluster moved: this channel is heard no more, or its SUBSCRIBE was refused."""
        if was_asked:
            self._drop_answer(name)
        self._returning.discard(name)
        self._watches.break_off([name])
        self._has_lost = True
        if self._reactor.subscribers(name) or self._reactor.is_vacated(name):
            self._lost.add(name)

    def on_refused(self, name: bytes) -> None:
        """The bus forbids one SUBSCRIBE of this channel; what becomes of a later one decides."""
        is_last = self._unconfirmed.get(name, 0) <= 1
        self._drop_answer(name)
        if not is_last:
            return
        self._returning.discard(name)
        self._watches.break_off([name])
        subscribers = self._reactor.subscribers(name)
        if subscribers or self._reactor.is_vacated(name):
            self._lost.add(name)  # the bus does not have it, whoever joins before it is left
        if subscribers:
            self._refused[name] = 0

    def _take_refused(self) -> None:
        """Do the next part of a refusal: answer those that wait, then take the channel from the others."""
        if not self._refused:
            return
        name, place = next(iter(self._refused.items()))
        if not self._waiters.notify(name, Confirmation.REFUSED):
            return
        conns, place = self._reactor.connections(place, TAKEN_PER_PASS)
        for conn in conns:
            if self._reactor.unsubscribe(conn, name) >= 0:
                self.on_taken(conn, name)
        if place and self._reactor.subscribers(name):
            self._refused[name] = place
        else:
            del self._refused[name]

    def on_moved(self) -> None:
        """It is known again where everything lives."""
        found = [name for name in self._lost if self.is_live_for(name)]
        self._lost.difference_update(found)  # the others while nobody serves them: no lane comes up for them
        self._ask_again(found)

    def _drop_unconfirmed(self, covers: Covers | None) -> None:
        """Answers that will not come any more."""
        self._watches.break_covered(covers)
        for names in (self._unconfirmed, self._returning, self._lost):
            if covers is None:
                names.clear()
                continue
            for name in [name for name in names if covers(name)]:
                names.pop(name) if isinstance(names, dict) else names.discard(name)
        for name in [name for name in self._refused if covers is None or covers(name)]:
            del self._refused[name]  # whoever still holds it is subscribed again, and refused again
        self._charges.release_covered(covers)

    def _is_covered(self, name: bytes) -> bool:
        return any(covers is None or covers(name) for covers in self._resubscribe)

    @property
    def _is_settled(self) -> bool:
        """Whether everything that was lost with the bus is subscribed again."""
        return self._resubscribe_from is None and not self._returning and self.is_live

    def _awaits_its_turn(self, name: bytes) -> bool:
        """Whether the walk that subscribes again has still to come by this name, or may have."""
        return self._resubscribe_from is not None and self._is_covered(name)

    def on_subscribed(self, name: bytes) -> bool:
        """One SUBSCRIBE was answered; False: not everybody is told yet, call again with the next pass."""
        answers = self._unconfirmed.get(name, 0)
        if answers > 1:
            self._unconfirmed[name] = answers - 1
        if answers != 1:
            return True
        if self._returning and self._waiters.count(name) >= self._reactor.subscribers(name):
            # Whoever is told now that the channel is live loads its state after that. Nobody else is here.
            self._returning.discard(name)
        if not self._waiters.notify(name, Confirmation.LIVE):
            return False
        del self._unconfirmed[name]
        self._charges.release(name)
        if self._returning and name in self._returning:
            self._returning.discard(name)
            self._gaps.mark(name)
        return True

    def on_message(self, name: bytes, data: bytes | None) -> None:
        """One publication: checked once, encoded once per variant that has subscribers here.

        One that cannot be handed on, for want of memory or through a fault of ours, is a loss like others.
        """
        try:
            self._take(name, data)
        except Exception:
            self._gaps.mark(name, "slow")
            raise

    def _take(self, name: bytes, data: bytes | None) -> None:
        variants = self._reactor.variants(name)
        if not variants or (name in self._unconfirmed and self._is_nobody_live(name)):
            self._count("publications_unheard", 1)
            return
        self._count("publications_received", 1)
        if data is None:
            self._skip_too_large(name)
            return
        publication = decode_publication(data)
        if publication is None:
            # No gap: nobody can load what only its publisher could have meant. A faulty publisher would make
            # every client load again and again.
            self._count("publications_malformed", 1)
            return
        channel = name.decode()  # somebody subscribed to it, so it is valid
        size = len(publication.payload.data)
        if size > self._access.smallest_max_publish_bytes and size > self._access.max_publish_bytes(channel):
            self._skip_too_large(name)
            return
        self._deliver(name, channel, publication, variants)

    def _is_nobody_live(self, name: bytes) -> bool:
        """Whether all subscribers of a channel still wait for its confirmation.

        What then comes was published before they subscribed, and waited in the backlog.
        """
        return self._waiters.count(name) >= self._reactor.subscribers(name)

    # --- losses ---------------------------------------------------------------------------------------

    def gap(self, name: bytes, reason: GapReason) -> None:
        """Notify the subscribers of a channel that a publication of it is lost.

        Args:
            name: The channel as the bus knows it.
            reason: Why; see protocols/client/v1/spec.md, "Gaps".
        """
        self._gaps.gap(name, reason)

    def _skip_too_large(self, name: bytes) -> None:
        self._count("publications_too_large", 1)
        self.gap(name, "too_large")

    def on_dropped(self, name: bytes | None) -> None:
        """The backlog dropped publications of a channel, or (None) of so many that all are notified."""
        if name is None:
            self._gap_from = 0
        else:
            self.gap(name, "slow")

    @property
    def has_gaps(self) -> bool:
        """Whether the walk over all channels, whose subscribers are notified, is under way."""
        return self._gap_from is not None

    def gap_step(self) -> None:
        """Mark the next channels, where all are notified."""
        if self._gap_from is not None:
            names, place = self._reactor.channels(self._gap_from, MARKED_PER_STEP)
            self._gap_from = place or None
            for name in names:
                self._gaps.mark(name, "slow")

    def _deliver(self, name: bytes, channel: str, publication: Publication, variants: int) -> None:
        shown = _SHOWN_INBOX if name.startswith(_INBOX) else channel

        def encode(dialect: Dialect) -> bytes:
            return dialect.publication(
                shown, publication.payload, publication.user, publication.position, publication.timestamp_ms
            )

        forms = self._forms.make(variants, encode)
        exclude = self._reactor.find_public(publication.exclude) if publication.exclude else 0
        self._reactor.publish(name, forms, exclude=exclude)
