"""What a user may have on all nodes together: connections, and messages per second.

Asks the bus and does what the answers lead to; who gives way is judged in wsgate/admission. While the bus
is away everybody is let in, and that is counted: an outage is no reason to turn people away, and a walk
through who is here puts them on the books again. A bus that has reached its `maxmemory` is not away: the
scripts count all the same, so that no client can switch a limit off by filling the memory.

On the bus (protocols/bus/v1, "Keys"): a sorted set per user, a key per shard that says it lives, a bucket
per user. All of them expire by themselves.

From the bus's being there on:

    begin   nothing known of other shards; say that we live and that our predecessors do not
    alive   the bus has heard it: walk through who is here, a part in each tick
    rest    everybody is on the books; the walk begins again within 15 minutes, or in 5 s after a miss
"""

import json
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from wsgate.admission import LimitDecision, UserConnections, UserRates, is_member, owner_of
from wsgate.auth import Member
from wsgate.bus import RATE_LEASE, SIGN_OF_LIFE, USER_ENTER, BusPublisher, CallDone, Names, pack
from wsgate.reactor import Reactor
from wsgate.shard.options import NO_USER_LIMITS, UserLimits
from wsgate.turns import FULL

__all__ = ["Users"]

ALIVE_TTL_S: Final = 60
ALIVE_EVERY_S: Final = 15.0
KNOWN_S: Final = 5.0
"""For so long another shard is believed to live, or not, without asking again."""
KNOWN_MOST: Final = 1_024
SET_TTL_S: Final = 3_600
WALK_S: Final = 900.0
"""From one walk through all connections to the next, at most: who stays is not to expire."""
AGAIN_S: Final = 5.0
"""Somebody was let in without being counted: the next walk comes so soon."""
TRUST_S: Final = 10.0
"""After the bus was away nobody is held for dead for so long: all of them say that they live at once."""
UNFORGOTTEN_MOST: Final = 65_536
AGAIN_PER_TICK: Final = 256
SHOWN_MOST: Final = 240
"""Connections in one answer: with 64 bytes each they are within the bus reader's limit."""
PAGES_MOST: Final = 16
"""Parts of a user's set that are looked at before a verdict: 3,840 connections, and 1,000 may be allowed."""
WAIT_MOST_MS: Final = 60_000
"""How long a user may be told to wait for its allowance."""
CROWDED_WAIT_MS: Final = 250
"""How long a user waits for its allowance when the way to the bus has no room."""
WALK_LEAST: Final = 64
"""Connections looked at in one tick, at least."""

Told = Callable[[bool], None]
"""Told whether a connection may stay."""


class _Entry:
    """A connection that is being counted, and what is known of the user's others so far."""

    __slots__ = ("alive", "limits", "member", "pages", "told", "user")

    def __init__(self, user: str, member: str, told: Told, limits: UserLimits) -> None:
        self.user = user
        self.member = member
        self.told = told
        self.limits = limits  # of when it came
        self.alive: list[str] = []  # the oldest, without those that count for nothing
        self.pages = 0  # parts looked at


class Users:
    """The users of one shard.

    Args:
        limits: What a user may have.
        reactor: Who is here.
        publisher: The way to the bus.
        names: What things are called there.
        owners: What this shard calls itself there, and what those did whose place it takes; none: anything.
        count: The shard's counters.
        wake: Asks for a pass, because an answer of the bus comes between two.
    """

    def __init__(
        self,
        limits: UserLimits,
        reactor: Reactor,
        publisher: BusPublisher,
        names: Names,
        owners: Sequence[str],
        count: Callable[[str, int], None],
        wake: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._publisher = publisher
        self._names = names
        self._count = count
        self._wake = wake
        self.owner: Final = owners[0] if owners else secrets.token_hex(6)
        self._dead: Final = frozenset(owners[1:])
        self._former = list(owners[1:])  # of whom the bus may still believe that they live
        self._known: dict[str, tuple[bool, float]] = {}
        self._alive_s = 0.0  # when we last said that we live
        self._is_alive = False  # and the bus has heard it
        self._refused_s = 0.0  # when refused removals were last repeated
        self._has_been_up = False
        self._trusting_s = 0.0  # until then nobody is held for dead
        self._now_s = 0.0  # of the last tick
        self._walked = 0
        self._walk_s = 0.0
        self._is_missing = False  # somebody was not put on the books by the walk under way
        self._unforgotten: deque[tuple[str, str]] = deque(maxlen=UNFORGOTTEN_MOST)
        self._refused: deque[tuple[str, str]] = deque(maxlen=UNFORGOTTEN_MOST)
        self._unasked: deque[_Entry] = (
            deque()
        )  # the way to the bus had no room: asked again with the next tick
        self.has_counted = False
        self._limits = NO_USER_LIMITS
        self.renew(limits)

    def renew(self, limits: UserLimits) -> None:
        """Other limits, from now on."""
        if limits.connections and not self._limits.connections:
            self._begin()  # who came before is to be counted as well
        self._limits = limits
        self.is_counting = limits.connections > 0
        self.has_counted = self.has_counted or self.is_counting
        self.rates: UserRates | None = None
        if limits.rate_per_s:
            self.rates = UserRates(limits.rate_per_s, self._lease, time.monotonic)

    # --- connections ----------------------------------------------------------------------------------

    def enter(self, conn: int, user: str, told: Told) -> None:
        """Count one more connection of a user; `told` is called once, later."""
        self._ask_who_is_there(_Entry(user, self._member(conn), told, self._limits))

    def leave(self, conn: int, user: str) -> None:
        """A connection is gone, or is not to stay."""
        self._forget(user, [self._member(conn)])

    def _member(self, conn: int) -> str:
        return f"{self._reactor.public_id(conn):016x}@{self.owner}"

    def _enter(self, user: str, member: str, left_out: int, most: int, done: CallDone) -> None:
        """Count a connection, and request up to `most` of those that are there when that is too many."""
        numbers = (b"%d" % each for each in (self._limits.connections, SET_TTL_S, left_out, most))
        USER_ENTER.run(self._publisher, self._names.user(user), (member.encode(), *numbers), done)

    def _is_here(self, member: str) -> bool:
        return self._reactor.find_public(int(member.partition("@")[0], 16)) != 0

    def _ask_who_is_there(self, entry: "_Entry") -> None:
        done = partial(self._on_entered, entry)
        self._enter(entry.user, entry.member, len(entry.alive), SHOWN_MOST, done)

    def _on_entered(self, entry: "_Entry", outcome: str, text: bytes) -> None:
        if outcome == FULL:
            # The bus is well and our own queue is full, which is no reason to leave a limit unchecked. As
            # many wait here as connections wait for their verdict.
            self._unasked.append(entry)
            return
        try:
            crowd = UserConnections.from_bytes(text) if text else None
        except ValueError:
            outcome, crowd = "refused", None
        if crowd is not None:
            self._look(crowd, partial(self._judge, entry, crowd))
            return
        if outcome:
            self._count("users_unchecked", 1)
        self._on_walked(entry.user, entry.member, outcome, b"")
        entry.told(True)
        self._wake()

    def _judge(self, entry: "_Entry", crowd: UserConnections) -> None:
        """Decide once enough of those who are there are known; request the next part until then.

        By the limits of when the connection came, as long as there still are any.
        """
        user, member, limits = entry.user, entry.member, entry.limits
        dead = {owner for owner in crowd.owners() if not self._lives(owner)}
        gone = [each for each in crowd.oldest if owner_of(each) in dead or self._is_ghost(each)]
        entry.alive += [each for each in crowd.oldest if each not in gone]
        entry.pages += 1
        total = crowd.total - len(gone)
        is_more = bool(crowd.oldest) and total > len(entry.alive) and entry.pages < PAGES_MOST
        if total > limits.connections and is_more and self.is_counting:
            # Behind those that were shown there may be some that count for nothing: look at all of them
            # before anybody is closed or refused.
            self._forget(user, gone)
            self._ask_who_is_there(entry)
            return
        verdict = UserConnections(total, entry.alive).judge(
            member, limits.connections, frozenset(), replaces=limits.replaces
        )
        if not self.is_counting:
            verdict = LimitDecision([], [], is_refused=False)
        self._forget(user, gone + [member] * verdict.is_refused)
        for each in verdict.replaced:
            conn, _, owner = each.partition("@")
            command = json.dumps({"op": "replace", "user": user, "conn": conn, "owner": owner}).encode()
            # Its owner takes it off the books when it is gone; one that has not heard this is told again when
            # the next one comes, because it is still the oldest.
            self._publisher.publish(self._names.control("")[0], command, _take_no_note)
        entry.told(not verdict.is_refused)
        self._wake()

    def _is_ghost(self, member: str) -> bool:
        """Whether a member is no connection at all, or one of this shard that is gone."""
        return not is_member(member) or (owner_of(member) == self.owner and not self._is_here(member))

    def _forget(self, user: str, members: list[str]) -> None:
        if members:
            key = self._names.user(user)
            self._publisher.call(key, pack("ZREM", key, *members), partial(self._on_forgotten, user, members))

    def _on_forgotten(self, user: str, members: list[str], outcome: str, _: bytes) -> None:
        """Repeat a removal that the bus does not have: this owner lives, so nobody else removes its members.

        The next tick repeats it, but a removal that the server refused (a key of another type, no permission)
        waits for the next sign of life: it may be refused for good.
        """
        if outcome:
            queue = self._refused if outcome == "refused" else self._unforgotten
            lost = len(queue) + len(members) - UNFORGOTTEN_MOST
            self._count("user_deregistrations_lost", max(0, lost))
            queue.extend((user, each) for each in members)

    # --- who lives ------------------------------------------------------------------------------------

    def _look(self, crowd: UserConnections, then: Callable[[], None]) -> None:
        """Find out which owners live, then go on. What cannot be found out lives."""
        now_s = time.monotonic()
        if len(self._known) > KNOWN_MOST:
            self._known.clear()
        asked = [owner for owner in crowd.owners() if self._known.get(owner, (True, 0.0))[1] < now_s]
        asked = [owner for owner in asked if owner != self.owner and owner not in self._dead]
        left = len(asked)
        if not left:
            then()
            return

        def on_answer(owner: str, outcome: str, text: bytes) -> None:
            nonlocal left
            if not outcome:
                self._known[owner] = text != b"0", time.monotonic() + KNOWN_S
            left -= 1
            if not left:
                then()

        for owner in asked:
            key = self._names.alive(owner)
            self._publisher.call(key, pack("EXISTS", key), partial(on_answer, owner))

    def _lives(self, owner: str) -> bool:
        if owner in self._dead:
            return False
        if owner == self.owner or time.monotonic() < self._trusting_s:
            return True
        return self._known.get(owner, (True, 0.0))[0]

    def tick(self, now_s: float) -> None:
        """Four times a second: say that we live, and walk on."""
        self._now_s = now_s
        if not self.has_counted:
            return
        if now_s - self._refused_s >= ALIVE_EVERY_S:
            self._refused_s = now_s
            self._unforgotten.extend(self._refused)
            self._refused.clear()
        for _ in range(min(len(self._unforgotten), AGAIN_PER_TICK)):
            user, member = self._unforgotten.popleft()
            self._forget(user, [member])
        for _ in range(min(len(self._unasked), AGAIN_PER_TICK)):
            entry = self._unasked.popleft()
            if self._is_here(entry.member):
                self._ask_who_is_there(entry)
        if not self.is_counting:
            return
        if now_s - self._alive_s >= ALIVE_EVERY_S:
            self._alive_s = now_s
            key = self._names.alive(self.owner)
            SIGN_OF_LIFE.run(self._publisher, key, (b"%d" % ALIVE_TTL_S,), self._on_alive)
            self._mourn()
        if self._is_alive and (self._walked or now_s >= self._walk_s):
            self._walk(now_s)

    def _on_alive(self, outcome: str, _: bytes) -> None:
        """Who is not known to live has nobody on the books for long: no walk before that."""
        self._is_alive = not outcome
        if outcome:
            self._alive_s = 0.0

    def _mourn(self) -> None:
        """Say that those before us live no more, which they had no time to."""
        former, self._former = self._former, []
        for owner in former:
            key = self._names.alive(owner)
            self._publisher.call(key, pack("DEL", key), partial(self._on_mourned, owner))

    def _on_mourned(self, owner: str, outcome: str, _: bytes) -> None:
        if outcome:
            self._former.append(owner)

    def on_up(self) -> None:
        """The bus is there, perhaps another one, or an empty one: say that we live, and who is here.

        After an outage others say it too, as soon as they can: until then none of them is held for dead.
        """
        if self._has_been_up:
            self._trusting_s = time.monotonic() + TRUST_S
        self._has_been_up = True
        self._begin()

    def _begin(self) -> None:
        self._alive_s = self._walk_s = 0.0
        self._walked = 0
        self._is_alive = False
        self._known.clear()

    def close(self, done: Callable[[], None]) -> None:
        """Say that we live no more: nobody is to be refused for those we leave behind."""
        if not self.has_counted:
            done()
            return
        key = self._names.alive(self.owner)
        self._publisher.call(key, pack("DEL", key), lambda *_: done())

    def _walk(self, now_s: float) -> None:
        """Put everybody on the books again, a few in each tick."""
        most = max(WALK_LEAST, int(self._reactor.counters()["now_connections"] / (WALK_S * 4 / 2)))
        conns, self._walked = self._reactor.connections(self._walked, most)
        if not self._walked:
            rest_s = WALK_S * random.uniform(0.5, 1.0)  # noqa: S311 - spreading, not secrecy
            self._walk_s = now_s + (AGAIN_S if self._is_missing else rest_s)
            self._is_missing = False
        for conn in conns:
            found: Member | None = self._reactor.meta(conn)
            if found is not None and found.user_utf8:
                member = self._member(conn)
                self._enter(found.user, member, 0, 1, partial(self._on_walked, found.user, member))

    def _on_walked(self, user: str, member: str, outcome: str, _: bytes) -> None:
        """Who is here and could not be put on the books, or is there and gone. A walk throws nobody out."""
        if outcome:
            self._is_missing = True
            self._walk_s = min(self._walk_s, self._now_s + AGAIN_S)
        elif not self._is_here(member):
            self._forget(user, [member])

    # --- messages -------------------------------------------------------------------------------------

    def _lease(self, user: str, want: int, debt: int, grant: Callable[[int, int], None]) -> None:
        arguments = (b"%d" % self._limits.rate_per_s, b"%d" % want, b"%d" % debt)
        done = partial(self._on_lease, want, grant)
        RATE_LEASE.run(self._publisher, self._names.rate(user), arguments, done)

    def _on_lease(self, want: int, grant: Callable[[int, int], None], outcome: str, text: bytes) -> None:
        granted, _, wait_ms = text.partition(b" ")
        is_sound = all(part.isdigit() and len(part) <= 18 for part in (granted, wait_ms))
        if outcome == FULL:
            grant(0, CROWDED_WAIT_MS)
        elif outcome or not is_sound:
            self._count("rates_unchecked", 1)
            grant(want, 0)
        else:
            grant(min(int(granted), want), min(int(wait_ms), WAIT_MOST_MS))


def _take_no_note(outcome: str) -> None:
    """Of a command whose loss is noticed elsewhere."""
