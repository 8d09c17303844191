"""Enforce the limits of one user on all nodes together: connections, and messages per second.

This module counts on the bus and acts on the answers; `wsgate.admission` decides which connection gives way.
While the bus does not answer, every connection is admitted, and that is counted. A walk over the shard's
connections registers them later. A bus that has reached its `maxmemory` still answers: the scripts count all
the same, so that no client can switch a limit off by filling the memory.

On the bus (protocols/bus/v1, "Keys") are a sorted set of connections for each user, a liveness key for each
shard, and a token bucket for each user. All of them expire by themselves.

The states of a shard, each time the bus comes up:

    begin   nothing is known of other shards; set our liveness key, delete those of the processes before us
    alive   the bus has our liveness key: register the connections in a walk, a part in each tick
    rest    all connections are registered; the next walk starts within 15 minutes, or 5 s after a failure
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
"""How long the liveness of another shard is cached."""
KNOWN_MOST: Final = 1_024
SET_TTL_S: Final = 3_600
WALK_S: Final = 900.0
"""Longest time from one walk to the next, well below `SET_TTL_S`, so that no connection's entry expires."""
AGAIN_S: Final = 5.0
"""Time to the next walk after a connection was admitted without being counted."""
TRUST_S: Final = 10.0
"""How long every other shard counts as alive after an outage, because liveness keys may have expired."""
UNFORGOTTEN_MOST: Final = 65_536
"""Removals that wait to be repeated, also refused ones; beyond them the oldest are dropped and counted."""
REMOVAL_BYTES: Final = 360
"""Memory of a removal that waits: its entry, the name of the connection, and a user id of 128 bytes."""
AGAIN_PER_TICK: Final = 256
"""Removals, and counts, that one tick repeats at most."""
SHOWN_MOST: Final = 240
"""Connections in one answer: with 64 bytes each they are within the bus reader's limit."""
PAGES_MOST: Final = 16
"""Answers that are read before a decision: 3,840 connections, where a user may have 1,000 at most."""
WAIT_MOST_MS: Final = 60_000
"""Longest time that the bus can make a user wait for its next lease of messages."""
CROWDED_WAIT_MS: Final = 250
"""How long a user waits for its next lease when the publisher's queue is full."""
WALK_LEAST: Final = 64
"""Connections that a walk registers in one tick, at least."""

Told = Callable[[bool], None]
"""Called once with whether a connection may stay."""


class _Entry:
    """A connection that is being counted, with the user's older connections that are known until now."""

    __slots__ = ("alive", "limits", "member", "pages", "told", "user")

    def __init__(self, user: str, member: str, told: Told, limits: UserLimits) -> None:
        self.user = user
        self.member = member
        self.told = told
        self.limits = limits  # the limits at the time when the connection arrived
        self.alive: list[str] = []  # the user's oldest connections, without those that do not count
        self.pages = 0  # answers read


class Users:
    """Counts the connections of users on the bus, and leases their messages from it.

    Args:
        limits: How many connections and messages a user may have.
        reactor: Holds the connections of this shard.
        publisher: Sends commands to the bus.
        names: The names of keys on the bus.
        owners: The name of this shard as an owner on the bus, then those of the processes that it replaces;
            empty: a random name, and no process before.
        count: Adds to a counter of the shard, by its name.
        wake: Requests a pass, because an answer of the bus arrives between two passes.
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
        self._former = list(owners[1:])  # owners whose liveness key may still be on the bus
        self._known: dict[str, tuple[bool, float]] = {}  # by owner: alive or not, and until when that holds
        self._alive_s = 0.0  # when our liveness key was last sent
        self._is_alive = False  # the bus has our liveness key
        self._refused_s = 0.0  # when refused removals were last repeated
        self._has_been_up = False
        self._trusting_s = 0.0  # until then every owner counts as alive
        self._now_s = 0.0  # of the last tick
        self._walked = 0  # where the walk goes on; 0: no walk is under way
        self._walk_s = 0.0  # when the next walk starts
        self._is_missing = False  # the walk under way could not register a connection
        self._unforgotten: deque[tuple[str, str]] = deque()  # users and members, as in the next one
        self._refused: deque[tuple[str, str]] = deque()  # removals that the server has refused
        self._unasked: deque[_Entry] = (
            deque()
        )  # connections that are counted again with the next tick, because the publisher's queue was full
        self.has_counted = False
        self._limits = NO_USER_LIMITS
        self.renew(limits)

    def renew(self, limits: UserLimits) -> None:
        """Use these limits from now on; if connections were not limited before, count all that are open."""
        if limits.connections and not self._limits.connections:
            self._begin()  # the connections that came before are to be counted as well
        self._limits = limits
        self.is_counting = limits.connections > 0
        self.has_counted = self.has_counted or self.is_counting
        self.rates: UserRates | None = None
        if limits.rate_per_s:
            self.rates = UserRates(limits.rate_per_s, self._lease, time.monotonic)

    @property
    def waiting_bytes(self) -> int:
        """Memory of the removals that wait to be repeated, in bytes; at most 24 MB."""
        return (len(self._unforgotten) + len(self._refused)) * REMOVAL_BYTES

    # --- connections ----------------------------------------------------------------------------------

    def enter(self, conn: int, user: str, told: Told) -> None:
        """Count one more connection of a user; `told` is called once, later, with whether it may stay."""
        self._ask_who_is_there(_Entry(user, self._member(conn), told, self._limits))

    def leave(self, conn: int, user: str) -> None:
        """Remove a connection from its user's set on the bus, because it has closed or may not stay."""
        self._forget(user, [self._member(conn)])

    def _member(self, conn: int) -> str:
        """Return a connection's name in the set of its user: its public id and its owner."""
        return f"{self._reactor.public_id(conn):016x}@{self.owner}"

    def _enter(self, user: str, member: str, left_out: int, most: int, done: CallDone) -> None:
        """Run the script that counts a connection and returns the user's oldest ones if they are too many.

        Args:
            user: The user.
            member: The connection's name in the set of the user.
            left_out: How many of the oldest connections the answer leaves out.
            most: How many connections the answer has at most.
            done: Called with the outcome and the answer.
        """
        numbers = (b"%d" % each for each in (self._limits.connections, SET_TTL_S, left_out, most))
        USER_ENTER.run(self._publisher, self._names.user(user), (member.encode(), *numbers), done)

    def _is_here(self, member: str) -> bool:
        """Return whether a member of a user's set is an open connection of this shard."""
        return self._reactor.find_public(int(member.partition("@")[0], 16)) != 0

    def _ask_who_is_there(self, entry: "_Entry") -> None:
        """Count a connection on the bus, and request the next part of its user's other connections."""
        done = partial(self._on_entered, entry)
        self._enter(entry.user, entry.member, len(entry.alive), SHOWN_MOST, done)

    def _on_entered(self, entry: "_Entry", outcome: str, text: bytes) -> None:
        """Admit a connection if its user's set has room or the bus did not answer; else check the set."""
        if outcome == FULL:
            # The bus answers and only our own queue is full, so the limit is still enforced. At most as many
            # wait here as connections are being counted.
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
        """Decide whether a connection may stay, once enough of its user's other connections are known.

        Until then the next part of the user's set is requested. The limits are those of the time when the
        connection arrived; if counting was switched off since, it may stay.
        """
        user, member, limits = entry.user, entry.member, entry.limits
        dead = {owner for owner in crowd.owners() if not self._lives(owner)}
        gone = [each for each in crowd.oldest if owner_of(each) in dead or self._is_ghost(each)]
        entry.alive += [each for each in crowd.oldest if each not in gone]
        entry.pages += 1
        total = crowd.total - len(gone)
        is_more = bool(crowd.oldest) and total > len(entry.alive) and entry.pages < PAGES_MOST
        if total > limits.connections and is_more and self.is_counting:
            # The rest of the set may have connections that do not count: read all of it before a connection
            # is closed or refused.
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
            # The owner removes the replaced connection from the set when it has closed. If the command is
            # lost, the next connection sends it again, because the replaced one is still the oldest.
            self._publisher.publish(self._names.control("")[0], command, _take_no_note)
        entry.told(not verdict.is_refused)
        self._wake()

    def _is_ghost(self, member: str) -> bool:
        """Return whether a member is not well-formed, or is a connection of this shard that has closed."""
        return not is_member(member) or (owner_of(member) == self.owner and not self._is_here(member))

    def _forget(self, user: str, members: list[str]) -> None:
        """Remove members from a user's set on the bus."""
        if members:
            key = self._names.user(user)
            self._publisher.call(key, pack("ZREM", key, *members), partial(self._on_forgotten, user, members))

    def _on_forgotten(self, user: str, members: list[str], outcome: str, _: bytes) -> None:
        """Queue a removal that failed, to be repeated: no other shard removes members of a live owner.

        The next tick repeats it. A removal that the server refused (a key of another type, no permission) is
        repeated only every `ALIVE_EVERY_S`, because it may always be refused.
        """
        if outcome:
            queue = self._refused if outcome == "refused" else self._unforgotten
            queue.extend((user, each) for each in members)
            while len(self._refused) + len(self._unforgotten) > UNFORGOTTEN_MOST:
                (self._refused or self._unforgotten).popleft()  # a refused one may always be refused
                self._count("user_deregistrations_lost", 1)

    # --- liveness of owners ---------------------------------------------------------------------------

    def _look(self, crowd: UserConnections, then: Callable[[], None]) -> None:
        """Request the liveness keys of all owners whose state is not known, then call `then`.

        An owner whose key cannot be read keeps the state that was read last; without one it counts as alive.
        """
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
        """Return whether an owner is alive, as far as this shard knows."""
        if owner in self._dead:
            return False
        if owner == self.owner or time.monotonic() < self._trusting_s:
            return True
        return self._known.get(owner, (True, 0.0))[0]

    def tick(self, now_s: float) -> None:
        """Repeat what has failed, renew the liveness key, and continue the walk; call this 4 times a second.

        Args:
            now_s: A monotonic clock.
        """
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
        """Note whether the bus has our liveness key; the walk waits for it.

        Other shards remove the connections of an owner that has no liveness key.
        """
        self._is_alive = not outcome
        if outcome:
            self._alive_s = 0.0

    def _mourn(self) -> None:
        """Delete the liveness keys of the processes that this shard replaces."""
        former, self._former = self._former, []
        for owner in former:
            key = self._names.alive(owner)
            self._publisher.call(key, pack("DEL", key), partial(self._on_mourned, owner))

    def _on_mourned(self, owner: str, outcome: str, _: bytes) -> None:
        """Keep an owner for the next try if the bus did not delete its liveness key."""
        if outcome:
            self._former.append(owner)

    def on_up(self) -> None:
        """Begin again with the liveness key and the walk, because the bus may be another or an empty one.

        After an outage every shard sets its key again. Until `TRUST_S` have passed, every other one counts as
        alive.
        """
        if self._has_been_up:
            self._trusting_s = time.monotonic() + TRUST_S
        self._has_been_up = True
        self._begin()

    def _begin(self) -> None:
        """Go to the state "begin": the next tick sends the liveness key, and a walk follows."""
        self._alive_s = self._walk_s = 0.0
        self._walked = 0
        self._is_alive = False
        self._known.clear()

    def close(self, done: Callable[[], None]) -> None:
        """Delete our liveness key, so that no user is refused for connections of a shard that has ended.

        Args:
            done: Called when the bus has answered, or at once if nothing was counted.
        """
        if not self.has_counted:
            done()
            return
        key = self._names.alive(self.owner)
        self._publisher.call(key, pack("DEL", key), lambda *_: done())

    def _walk(self, now_s: float) -> None:
        """Register the next part of the shard's connections on the bus, and plan the next walk at the end.

        A walk takes half of `WALK_S`, unless `WALK_LEAST` in each tick are done sooner.
        """
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
        """Handle the result of registering a connection again; it is never closed for that.

        If the bus did not answer, the next walk comes soon. If the connection has closed meanwhile, its entry
        is removed.
        """
        if outcome:
            self._is_missing = True
            self._walk_s = min(self._walk_s, self._now_s + AGAIN_S)
        elif not self._is_here(member):
            self._forget(user, [member])

    # --- messages -------------------------------------------------------------------------------------

    def _lease(self, user: str, want: int, debt: int, grant: Callable[[int, int], None]) -> None:
        """Lease messages of a user from its bucket on the bus.

        Args:
            user: The user.
            want: How many messages to lease.
            debt: How many messages the user has already sent without a lease.
            grant: Called with the number of messages, and the milliseconds to wait before the next lease.
        """
        arguments = (b"%d" % self._limits.rate_per_s, b"%d" % want, b"%d" % debt)
        done = partial(self._on_lease, want, grant)
        RATE_LEASE.run(self._publisher, self._names.rate(user), arguments, done)

    def _on_lease(self, want: int, grant: Callable[[int, int], None], outcome: str, text: bytes) -> None:
        """Grant what the bus has leased; all that is wanted if the bus did not answer or not correctly."""
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
    """Ignore the outcome of a publish, because the loss of a `replace` command is noticed elsewhere."""
