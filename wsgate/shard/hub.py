"""Subscribe the shard to channels on the bus, and deliver the publications of the bus to the reactor.

The reactor keeps which connection is subscribed to which channel. The hub keeps only the channels that the
bus has not confirmed yet, so that a million resting subscriptions cost Python nothing.

Rules:
- The first subscriber of a channel makes the hub send SUBSCRIBE for its name. UNSUBSCRIBE is sent when the
  reactor reports that the channel has no subscriber left. The bus receives both in order, in batches. For a
  channel that is left before its SUBSCRIBE was sent, nothing is sent.
- Opposite commands that are not sent yet cancel each other only if the hub knows whether the bus has the
  channel. While the walk that subscribes again is under way, the hub knows this only of a channel with an
  unanswered SUBSCRIBE. For the other channels the later command replaces the earlier one.
- A channel is confirmed when the bus has answered every SUBSCRIBE that was sent for its name. After a quick
  unsubscribe and subscribe, the first answer belongs to the first SUBSCRIBE.
- A connection may add a channel that is new to the bus only while few of its channels are unconfirmed, and
  while the bus has memory for one more. Inboxes are exempt: the gate refuses their connections instead.
- When a connection to the bus is lost, all its channels are unconfirmed. Their names are sent again, a part
  in each pass, and none while many are unanswered: the bus sets the pace.
- If a channel has many waiters, each pass notifies a part of them. No publication is delivered meanwhile, so
  that no publication from after the confirmation reaches a waiter before its notice.
- A channel is confirmed as soon as the bus has answered, also while older publications wait in the backlog:
  a client does not wait for them. A new subscriber then receives, in order, the older publications of the
  channel that still wait. While all subscribers of a channel are unconfirmed, its publications are discarded.
  While one of the subscribers is live, all of them receive the publications, because the reactor sends a
  publication to the whole channel. So after a loss of the bus a waiter may receive some before its notice.
- The subscribers of a channel that loses a publication are sent a gap: see `gap`.
- Every publication comes over the bus, also for subscribers on the same shard: one order for all.
- A channel whose slot of the cluster moves is requested again when the map was read. Its waiters are notified
  of a loss after the second refusal, and at once while the server refuses every channel: a server may refuse
  for hours, and a client must not wait so long for an answer.
- A channel that the bus forbids is refused, and no other channel with it. Its waiters are notified, and every
  connection that has the channel is unsubscribed: a walk over the connections, a part in each pass.
- A channel that was confirmed before a loss may have missed publications until it is confirmed again. It is
  marked then, and its subscribers are notified (`wsgate.shard.gaps`).
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
from wsgate.shard.lost_channels import LostChannels
from wsgate.shard.publication_encoder import PublicationEncoder
from wsgate.shard.publish_watches import PublishWatch, PublishWatches
from wsgate.shard.unconfirmed import Confirmation, UnconfirmedCharges, Waiter, Waiters

__all__ = ["Hub", "Joined"]

ASKED_LIMIT: Final = 4 * NAMES_PER_COMMAND
"""Unconfirmed channels above which the walk that subscribes again waits."""
UNSENT_LIMIT: Final = 32_768
"""Names of this shard that wait to be sent to the bus, from which on clients may add no new channel."""
REFUSALS_MOST: Final = 2
"""Refusals in a row, for a slot that is elsewhere or not served, after which the waiters are notified."""
UNCONFIRMED_DEFAULT: Final = 1_024
"""Unconfirmed channels that one connection may cause, where no limit of subscriptions is configured."""
UNCONFIRMED_LEAST: Final = 64
"""Unconfirmed channels that one connection may always cause, however few subscriptions it may have."""
UNCONFIRMED_BYTES: Final = 300
"""Memory of an unconfirmed channel in the hub's tables, without its waiters: measured 210 to 390."""
MARKED_PER_STEP: Final = 64
"""Channels that are marked in one step, when every channel has lost publications: about 0.1 ms."""
TAKEN_PER_PASS: Final = 1_024
"""Connections that one pass unsubscribes from a channel that the bus forbids, at most."""

_INBOX: Final = INBOX_MARK.encode()
_SHOWN_INBOX: Final = "@me"


class Joined(Enum):
    """The result of subscribing a connection to a channel."""

    LIVE = "live"  # publications from now on are delivered
    WAITS = "waits"  # subscribed in the reactor; the waiter is called when the bus has answered
    ALREADY = "already"  # the connection was subscribed before
    TOO_MANY = "too_many"  # the connection has as many subscriptions as it may
    BEHIND = "behind"  # the bus is late with the answers that this connection, or this shard, waits for
    REFUSED = "refused"  # the bus forbids the channel
    FULL = "full"  # the bus has no memory for one more channel
    GONE = "gone"  # the connection is not open


class Hub:
    """Keeps one shard subscribed to its clients' channels, and delivers the publications of the bus.

    Args:
        reactor: Holds the connections and their subscriptions; its setting `report_vacated` is on.
        access: Knows the largest publication that each channel allows.
        forms: Encodes a publication for each variant.
        gaps: Notifies subscribers of lost publications.
        count: Adds to a counter of the shard, by its name.
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
        self._unconfirmed: dict[bytes, int] = {}  # how many answers are still to come, by channel
        self._returning: set[bytes] = set()  # the unconfirmed ones that were subscribed again after a loss
        self._watches = PublishWatches()
        self._was_up = False
        self._has_lost = False  # False: the bus was never lost, so no channel can have missed publications
        self._charges = UnconfirmedCharges()
        self.takes_name: Callable[[], bool] = lambda: True
        """Returns whether the bus has memory for one more channel of a client."""
        self.unconfirmed_limit = UNCONFIRMED_DEFAULT
        """Unconfirmed channels that one connection may cause."""
        self._waiters = Waiters()
        self._lost = LostChannels()  # lost with a moved slot; subscribed again when the new map is known
        # The walk that subscribes again, over the reactor's directory of channels:
        self._resubscribe_from: int | None = None  # the next place; None: no walk is under way
        self._resubscribe: list[Covers | None] = []  # which channels it is for; None: all channels
        self._resubscribe_next: list[Covers | None] = []  # which channels the next walk is for
        self._is_next_walk = False  # the walk that is under way has followed another one
        self._asked_early: set[bytes] = set()  # channels that were subscribed again before the walk met them
        self._refused: dict[bytes, int] = {}  # channels that the bus forbids: next place among connections
        self.on_taken: Callable[[int, bytes], None] = lambda conn, name: None
        """Called with each connection that has lost a channel because the bus forbids it, and the channel."""
        self._gap_from: int | None = None  # next place of the walk that marks all channels; None: no walk

    def attach(self, bus: BusSubscriber) -> None:
        """Set the subscriber connection to the bus; call this once, before everything else."""
        self._bus = bus

    @property
    def is_live(self) -> bool:
        """Whether every server of the bus accepts subscriptions now."""
        return self._bus is not None and self._bus.is_up

    def is_live_for(self, name: bytes) -> bool:
        """Return whether the bus server of this channel accepts subscriptions now."""
        return self._bus is not None and self._bus.is_up_for(name)

    @property
    def pending(self) -> int:
        """How many channels the bus has not confirmed yet."""
        return len(self._unconfirmed) + len(self._lost)

    @property
    def waiting_bytes(self) -> int:
        """Estimated memory of all channels that the bus has not confirmed, in bytes."""
        return self.pending * UNCONFIRMED_BYTES + (self._bus.waiting_bytes if self._bus is not None else 0)

    def limit_unconfirmed(self, subscriptions: int) -> None:
        """Let a connection cause as many unconfirmed channels as it may have subscriptions, at least 64.

        Args:
            subscriptions: The limit of subscriptions of one connection; 0: none, so the default applies.
        """
        self.unconfirmed_limit = (
            max(UNCONFIRMED_LEAST, subscriptions) if subscriptions else UNCONFIRMED_DEFAULT
        )

    def receives(self, name: bytes) -> bool:
        """Return whether a publication of this channel now reaches its subscribers on this shard, if any.

        A publish is answered `ok` only if this is true.
        """
        if not self.is_live_for(name):
            return False
        is_behind = name in self._lost or name in self._returning or self._awaits_its_turn(name)
        return not is_behind or not self._reactor.subscribers(name)

    # --- proof that the bus delivers ------------------------------------------------------------------

    def watch(self, name: bytes) -> PublishWatch | None:
        """Begin a publish to a channel that this shard has subscribers of, and watch its subscription.

        Returns:
            The watch, to be passed to `unwatch` when the publish is answered. As long as the watch is
            unbroken, the bus has to deliver the publication to this shard at least. None: the channel has no
            subscriber here, or the bus has not confirmed it.
        """
        if not self._reactor.subscribers(name) or name in self._unconfirmed or not self.receives(name):
            return None
        return self._watches.begin(name)

    def unwatch(self, name: bytes, watch: PublishWatch) -> bool:
        """End a publish that `watch` began; return whether the channel was confirmed all the time."""
        return self._watches.end(name, watch)

    # --- subscribing ----------------------------------------------------------------------------------

    def join(self, conn: int, name: bytes, policy: int, waiter: Waiter) -> Joined:
        """Subscribe a connection to a channel, and the shard too if the channel is new to the bus.

        While the bus is not connected, the connection is subscribed in the reactor and waits. A caller that
        does not want this checks `is_live_for` first, or unsubscribes when its waiter is called.

        Args:
            conn: An open connection.
            name: The channel, by its name on the bus.
            policy: What a slow consumer loses, one of `wsgate.reactor.event_kinds.POLICY_`.
            waiter: If `WAITS` is returned, called once with the outcome, unless the connection leaves before.
        """
        # Backends reach a user through its inbox: no limit of the client's own subscriptions may refuse it.
        is_counted = not name.startswith(_INBOX)
        # The bus still has a channel that was left in this very pass, unless the bus has lost it since.
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
            self._ask_once(name, may_cancel=True)
            if is_counted and name in self._unconfirmed:
                self._charges.charge(conn, name)
        return self.confirm(conn, name, waiter)

    def _is_behind(self, conn: int) -> bool:
        """Return whether too many channels of this connection, or of the shard, still wait for the bus."""
        if self._charges.count(conn) >= self.unconfirmed_limit:
            return True
        return self._bus is not None and self._bus.unsent >= UNSENT_LIMIT

    def confirm(self, conn: int, name: bytes, waiter: Waiter) -> Joined:
        """Return `LIVE` if the channel of a subscribed connection is confirmed, else register the waiter.

        Args:
            conn: A connection that is subscribed to the channel in the reactor.
            name: The channel, by its name on the bus.
            waiter: If `WAITS` is returned, called once with the outcome, unless the connection leaves before.
        """
        if self.is_live_for(name) and name not in self._lost:
            if self._is_uncertain(name):
                self._ask_once(name, may_cancel=False)
            if name not in self._unconfirmed:
                return Joined.LIVE
        self.wait(conn, name, waiter)
        return Joined.WAITS

    def wait(self, conn: int, name: bytes, waiter: Waiter) -> None:
        """Register a waiter for the next confirmation of a channel that the connection is subscribed to."""
        self._waiters.add(conn, name, waiter)

    def is_waiting(self, conn: int, name: bytes) -> bool:
        """Return whether a waiter of this connection is still to be called for a channel."""
        return self._waiters.has(conn, name)

    def leave(self, conn: int, name: bytes) -> bool:
        """Unsubscribe a connection without calling its waiters; return False if it was not subscribed."""
        self._waiters.drop(conn, name)
        return self._reactor.unsubscribe(conn, name) >= 0

    def forget(self, conn: int) -> None:
        """Drop the waiters of a connection that is closed, and its count of unconfirmed channels."""
        self._charges.forget(conn)
        self._waiters.forget(conn)

    def tidy(self) -> bool:
        """Continue every walk and notice that is under way by one part; call this once in each pass.

        Notify waiters of losses and refusals, subscribe again, send gaps, and unsubscribe from channels that
        have no subscriber. Answers of the bus alone do not drive the walk that subscribes again: a part of it
        that has no channel of the server that came up sends nothing, and is not answered.

        Returns:
            True if more is left to do at once.
        """
        self._waiters.notify_losses()
        self._take_refused()
        self._ask_lost()
        self.resubscribe()
        has_notices = self._gaps.step(is_settled=self._is_settled)
        vacated = self._leave_vacated()
        has_more = self._waiters.has_losses or bool(self._refused)
        has_more = has_more or vacated == NAMES_PER_COMMAND or self._may_resubscribe or self._lost.has_due
        return has_more or has_notices

    def _leave_vacated(self, covers: Covers | None = None, *, is_new: bool = False) -> int:
        """Unsubscribe from up to `NAMES_PER_COMMAND` channels that have no subscriber here any more.

        No UNSUBSCRIBE is sent for a channel that the bus has ended or refused.

        Args:
            covers: Which channels a new bus connection covers; None: all channels.
            is_new: Send no UNSUBSCRIBE for the covered channels, because the new connection has none of
                them. An unsent one would be cancelled by the SUBSCRIBE of a channel that is joined again, so
                that neither would be sent.

        Returns:
            How many channels the reactor reported, 0 to `NAMES_PER_COMMAND`.
        """
        vacated = self._reactor.take_vacated(NAMES_PER_COMMAND)
        self._watches.break_off(vacated)
        known: list[bytes] = []
        uncertain: list[bytes] = []
        for name in vacated:
            if name in self._lost:
                self._lost.discard(name)
            elif not (is_new and (covers is None or covers(name))):
                # With one server of several, the slot of another channel may have moved at the same time.
                (uncertain if is_new or self._is_uncertain(name) else known).append(name)
        for names, may_cancel in ((known, True), (uncertain, False)):
            if names and self._bus is not None:
                for name in self._bus.unsubscribe(names, may_cancel=may_cancel):
                    self._drop_answer(name)
        return len(vacated)

    def _is_uncertain(self, name: bytes) -> bool:
        """Return whether the hub cannot tell if the bus has this channel, which is not in `_lost`.

        The walk that subscribes again keeps no list of the channels that it has requested. While a SUBSCRIBE
        of the channel is unanswered, the hub knows that the last command decides.
        """
        return name not in self._unconfirmed and self._awaits_its_turn(name)

    def _ask_again(self, names: list[bytes], *, may_cancel: bool = True) -> None:
        """Request channels whose publications may be lost until the bus confirms the channels again."""
        self._ask(names, may_cancel=may_cancel)
        if self._has_lost:
            self._returning.update(name for name in names if name in self._unconfirmed)

    def _ask(self, names: list[bytes], *, may_cancel: bool = True) -> None:
        """Send SUBSCRIBE for channels, and count the answers to come.

        Args:
            names: The channels.
            may_cancel: The bus has none of them, apart from those whose UNSUBSCRIBE is queued. False: the bus
                may have them. Then an UNSUBSCRIBE must not cancel this SUBSCRIBE while it is unsent, because
                an earlier one would keep the channel.
        """
        assert self._bus is not None
        # A channel of the part that is requested now has left the table, which counts its refusals.
        self._lost.difference_update(name for name in names if name in self._lost)
        unanswered = Counter(names)
        unanswered.subtract(self._bus.subscribe(names, may_cancel=may_cancel))
        for name, answers in unanswered.items():
            if answers > 0:
                self._unconfirmed[name] = self._unconfirmed.get(name, 0) + answers

    def _ask_once(self, name: bytes, *, may_cancel: bool) -> None:
        """Request one channel now, and let the walk that subscribes again skip it."""
        if self._resubscribe_from is None:
            self._ask([name], may_cancel=may_cancel)
        else:
            self._asked_early.add(name)
            # The channel may have had a subscriber before the loss.
            self._ask_again([name], may_cancel=may_cancel)

    def _drop_answer(self, name: bytes) -> None:
        """Expect one answer fewer for a channel; after the last one the channel is unconfirmed no more."""
        answers = self._unconfirmed.get(name, 0)
        if answers > 1:
            self._unconfirmed[name] = answers - 1
        else:
            self._unconfirmed.pop(name, None)
            self._returning.discard(name)
            self._charges.release(name)

    # --- events of the bus ----------------------------------------------------------------------------

    def on_up(self, covers: Covers | None = None) -> None:
        """Begin to subscribe again to all channels that a new bus connection covers; the first part now.

        Waiters that were still to be notified of a loss are notified of the confirmation instead. The table
        of waiters cannot tell them from clients that began to wait after the loss.

        Args:
            covers: Which channels the connection covers; None: all channels.
        """
        self._drop_unconfirmed(covers)
        self._has_lost, self._was_up = self._has_lost or self._was_up, True
        while self._leave_vacated(covers, is_new=True) == NAMES_PER_COMMAND:
            pass
        self._waiters.cancel_losses(covers)
        begun = [] if self._resubscribe_from is None else [*self._resubscribe, *self._resubscribe_next]
        self._is_next_walk = self._is_next_walk and bool(begun)
        self._resubscribe, self._resubscribe_next = [*begun, covers], []
        self._resubscribe_from = 0
        self.resubscribe()

    def on_reassigned(self, covers: Covers) -> None:
        """Subscribe again to all channels whose slots have another server now, which is connected.

        Channels that the former server has announced are in the table of lost channels, and `on_moved`
        requests them at once. A walk finds the others. A walk that is under way ends first: slots may move
        one after the other for minutes, and a walk that begins again each time would never end.
        """
        self._drop_unconfirmed(covers, keeps_lost=True)
        self._has_lost = True
        while self._leave_vacated(covers, is_new=True) == NAMES_PER_COMMAND:
            pass
        self._waiters.cancel_losses(covers)
        self._lost.renew(covers)
        if self._resubscribe_from is None:
            self._resubscribe, self._resubscribe_from, self._is_next_walk = [covers], 0, False
        else:
            self._resubscribe_next.append(covers)

    def resubscribe(self) -> None:
        """Request the next part of the channels that are subscribed again, if few are unconfirmed now."""
        if self._resubscribe_from is None or not self._may_resubscribe:
            return
        if self._leave_vacated() == NAMES_PER_COMMAND:
            # The walk passes over a channel without subscribers. So all of these are left before each part:
            # `join` assumes that the bus has a channel that was left after the last part.
            return
        names, place = self._reactor.channels(self._resubscribe_from, NAMES_PER_COMMAND)
        self._resubscribe_from = place or None
        skipped = (self._asked_early, self._unconfirmed, self._lost)
        due = (name for name in names if not any(name in each for each in skipped))
        due = (name for name in due if self._is_covered(name) and self.is_live_for(name))
        # A walk that began again for a further server, or that follows another one, may find channels that
        # were requested before.
        self._ask_again(list(due), may_cancel=len(self._resubscribe) == 1 and not self._is_next_walk)
        if self._resubscribe_from is None:
            self._resubscribe, self._resubscribe_next = self._resubscribe_next, []
            self._is_next_walk = True
            if self._resubscribe:
                self._resubscribe_from = 0
            else:
                self._asked_early.clear()

    @property
    def _may_resubscribe(self) -> bool:
        """Whether the walk that subscribes again is under way and need not wait for answers of the bus."""
        return self._resubscribe_from is not None and len(self._unconfirmed) <= ASKED_LIMIT

    def on_down(self, covers: Covers | None = None) -> None:
        """Notify the waiters of all channels that a lost bus connection covered; they may wait again.

        Args:
            covers: Which channels the connection covered; None: all channels.
        """
        self._drop_unconfirmed(covers)
        self._has_lost = True
        if covers is None:
            self._resubscribe_from = None
            self._resubscribe_next.clear()
        self._waiters.lose(covers)
        self._waiters.notify_losses()

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        """Note a channel whose slot of the cluster has moved, to subscribe again when the new map is known.

        Args:
            name: The channel, by its name on the bus.
            was_asked: Its SUBSCRIBE was refused; False: its confirmed subscription has ended.
        """
        if was_asked:
            self._drop_answer(name)
        self._watches.break_off([name])
        self._has_lost = True
        if name in self._unconfirmed:
            # The answer to a later SUBSCRIBE decides.
            if not was_asked:
                self._returning.add(name)
            return
        self._returning.discard(name)
        self._asked_early.discard(name)
        if not self._reactor.subscribers(name) and not self._reactor.is_vacated(name):
            return
        if not was_asked:
            self._lost.add(name)
        elif self._lost.refuse(name) >= REFUSALS_MOST or self._lost.is_refusing:
            self._waiters.lose_channel(name)

    def on_refused(self, name: bytes) -> None:
        """Begin to refuse a channel that the bus forbids, unless a later SUBSCRIBE of it is unanswered."""
        is_last = self._unconfirmed.get(name, 0) <= 1
        self._drop_answer(name)
        if not is_last:
            return
        self._returning.discard(name)
        self._watches.break_off([name])
        subscribers = self._reactor.subscribers(name)
        if subscribers or self._reactor.is_vacated(name):
            self._lost.add(name)  # so that a connection which joins before it is left is not confirmed
        if subscribers:
            self._refused[name] = 0

    def _take_refused(self) -> None:
        """Continue to refuse one forbidden channel: notify its waiters, then unsubscribe its subscribers."""
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
        """Begin to request the channels of moved slots again, after the map of the cluster was read."""
        self._end_lost_part()  # what it says about the server ends the former round, and not this one
        self._lost.begin()
        self._ask_lost()

    def _ask_lost(self) -> None:
        """Request the next part of the channels of moved slots, if the last part is answered."""
        self._end_lost_part()
        found = self._lost.take(self.is_live_for)
        if not found:
            return
        if self._resubscribe_from is not None:
            self._asked_early.update(found)
        self._ask_again(found)

    def _end_lost_part(self) -> None:
        """Notify the waiters of all lost channels if every channel of the last part was refused."""
        if self._lost.end_part(self._unconfirmed):
            self._waiters.lose(self._lost.__contains__)

    def _drop_unconfirmed(self, covers: Covers | None, *, keeps_lost: bool = False) -> None:
        """Stop to expect answers for the channels that a bus connection covers, and break their watches."""
        self._watches.break_covered(covers)
        lost = LostChannels() if keeps_lost else self._lost
        for names in (self._unconfirmed, self._returning, self._asked_early, lost):
            if covers is None:
                names.clear()
                continue
            for name in [name for name in names if covers(name)]:
                names.pop(name) if isinstance(names, dict) else names.discard(name)
        for name in [name for name in self._refused if covers is None or covers(name)]:
            del self._refused[name]  # if it still has subscribers, it is requested again, and refused again
        self._charges.release_covered(covers)

    def _is_covered(self, name: bytes) -> bool:
        """Return whether the walk that is under way subscribes to this channel again."""
        return any(covers is None or covers(name) for covers in self._resubscribe)

    @property
    def _is_settled(self) -> bool:
        """Whether the bus is up and has confirmed every channel that was lost with it."""
        return self._resubscribe_from is None and not self._returning and self.is_live

    def _awaits_its_turn(self, name: bytes) -> bool:
        """Return whether a walk that subscribes again has this channel still to do, or may have."""
        if self._resubscribe_from is None or name in self._asked_early:
            return False
        both = (*self._resubscribe, *self._resubscribe_next)
        return any(covers is None or covers(name) for covers in both)

    def on_subscribed(self, name: bytes) -> bool:
        """Note an answer to SUBSCRIBE; after the last one for the channel, notify its waiters.

        Returns:
            False if waiters are left over: call this again in the next pass.
        """
        answers = self._unconfirmed.get(name, 0)
        if answers > 1:
            self._unconfirmed[name] = answers - 1
        if answers != 1:
            return True
        if name in self._returning and self._is_nobody_live(name):
            # Every subscriber is a waiter. The client of each loads its state after this answer, so that
            # none needs a gap.
            self._returning.discard(name)
        if not self._waiters.notify(name, Confirmation.LIVE):
            return False
        del self._unconfirmed[name]
        self._lost.on_confirmed(name)
        self._charges.release(name)
        if self._returning and name in self._returning:
            self._returning.discard(name)
            self._gaps.mark(name)
        return True

    def on_message(self, name: bytes, data: bytes | None) -> None:
        """Deliver one publication to its subscribers, or mark its channel if that fails.

        The publication is checked once, and encoded once for each variant that has subscribers here.

        Args:
            name: The channel, by its name on the bus.
            data: The publication in its envelope; None: it was larger than the bus reader takes.
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
            # No gap: there is no state to load for a malformed publication, and a faulty publisher would make
            # every client load its state again and again.
            self._count("publications_malformed", 1)
            return
        channel = name.decode()  # cannot fail: the channel has subscribers, so its name was checked
        size = len(publication.payload.data)
        if size > self._access.smallest_max_publish_bytes and size > self._access.max_publish_bytes(channel):
            self._skip_too_large(name)
            return
        self._deliver(name, channel, publication, variants)

    def _is_nobody_live(self, name: bytes) -> bool:
        """Return whether all subscribers of a channel still wait for its confirmation.

        A publication that comes then was published before they subscribed, and waited in the backlog.

        O(1) if fewer connections wait than are subscribed, else O(waiters).
        """
        subscribers = self._reactor.subscribers(name)
        if self._waiters.count(name) < subscribers:
            return False
        # A connection that has just ended is no subscriber any more, and a waiter until its event is handled.
        is_subscribed = self._reactor.is_subscribed
        return sum(is_subscribed(conn, name) for conn in self._waiters.connections(name)) >= subscribers

    # --- lost publications ----------------------------------------------------------------------------

    def gap(self, name: bytes, reason: GapReason) -> None:
        """Notify the subscribers of one channel that a publication of it is lost.

        Args:
            name: The channel, by its name on the bus.
            reason: Why it is lost; see protocols/client/v1/spec.md, "Gaps".
        """
        self._gaps.gap(name, reason)

    def _skip_too_large(self, name: bytes) -> None:
        self._count("publications_too_large", 1)
        self.gap(name, "too_large")

    def on_dropped(self, name: bytes | None) -> None:
        """Notify the subscribers of a channel, or of all (None), that the backlog dropped publications."""
        if name is None:
            self._gap_from = 0
        else:
            self.gap(name, "slow")

    @property
    def has_gaps(self) -> bool:
        """Whether the walk that marks all channels, after the backlog dropped of many, is under way."""
        return self._gap_from is not None

    def gap_step(self) -> None:
        """Mark the next part of all channels, if the walk over them is under way."""
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
