"""What a user may have on all nodes together: connections, and messages per second.

Asks the bus and does what the answers lead to; who gives way is judged in wsgate/admission. While the bus
is away everybody is let in, and that is counted: an outage is no reason to turn people away, and a walk
through who is here puts them on the books again.

On the bus (protocols/bus/v1, "Keys"): a sorted set per user, a key per shard that says it lives, a bucket
per user. All of them expire by themselves.
"""

import json
import random
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from wsgate.admission import Crowd, UserRates
from wsgate.bus import RATE_LEASE, USER_ENTER, BusPublisher, CallDone, Names, pack
from wsgate.bus.names import INBOX_MARK
from wsgate.reactor import Reactor
from wsgate.shard.options import UserLimits

__all__ = ["Users"]

ALIVE_TTL_S: Final = 60
ALIVE_EVERY_S: Final = 15.0
KNOWN_S: Final = 5.0
"""For so long another shard is believed to live, or not, without asking again."""
KNOWN_MOST: Final = 1_024
SET_TTL_S: Final = 3_600
WALK_S: Final = 900.0
"""From one walk through all channels to the next, at most: it keeps the sets of who stays from expiring."""
AGAIN_S: Final = 5.0
"""Somebody was let in without being counted: the next walk comes so soon."""
WALK_LEAST: Final = 64
"""Channels looked at in one tick, at least."""

Told = Callable[[bool], None]
"""Told whether a connection may stay."""


class Users:
    """The users of one shard.

    Args:
        limits: What a user may have.
        reactor: Who is here.
        publisher: The way to the bus.
        names: What things are called there.
        count: The shard's counters.
        wake: Asks for a pass, because an answer of the bus comes between two.
    """

    def __init__(
        self,
        limits: UserLimits,
        reactor: Reactor,
        publisher: BusPublisher,
        names: Names,
        count: Callable[[str, int], None],
        wake: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._publisher = publisher
        self._names = names
        self._count = count
        self._wake = wake
        self.owner: Final = secrets.token_hex(6)
        self._known: dict[str, tuple[bool, float]] = {}
        self._alive_s = 0.0
        self._walked = 0
        self._walk_s = 0.0
        self.renew(limits)

    def renew(self, limits: UserLimits) -> None:
        """Other limits, from now on."""
        self._limits = limits
        self.is_counting = limits.connections > 0
        self.rates: UserRates | None = None
        if limits.rate_per_s:
            self.rates = UserRates(limits.rate_per_s, self._lease, time.monotonic)

    # --- connections ----------------------------------------------------------------------------------

    def enter(self, conn: int, user: str, told: Told) -> None:
        """Count one more connection of a user; `told` is called once, later."""
        member = self._member(conn)
        self._enter(user, member, partial(self._on_entered, user, member, told))

    def leave(self, conn: int, user: str) -> None:
        """A connection is gone, or is not to stay."""
        self._forget(user, [self._member(conn)])

    def _member(self, conn: int) -> str:
        return f"{self._reactor.public_id(conn):016x}@{self.owner}"

    def _enter(self, user: str, member: str, done: CallDone) -> None:
        now_ms = time.time_ns() // 1_000_000
        arguments = (member.encode(), b"%d" % now_ms, b"%d" % self._limits.connections, b"%d" % SET_TTL_S)
        USER_ENTER.run(self._publisher, self._names.user(user), arguments, done)

    def _on_entered(self, user: str, member: str, told: Told, outcome: str, text: bytes) -> None:
        try:
            crowd = Crowd.from_bytes(text) if text else None
        except ValueError:
            outcome, crowd = "refused", None
        if crowd is not None:
            self._look(crowd, partial(self._judge, user, member, told, crowd))
            return
        if outcome:
            self._count("users_unchecked", 1)
            self._on_walked(outcome, b"")
        told(True)
        self._wake()

    def _judge(self, user: str, member: str, told: Told, crowd: Crowd) -> None:
        dead = {owner for owner in crowd.owners() if not self._lives(owner)}
        verdict = crowd.judge(member, self._limits.connections, dead, replaces=self._limits.replaces)
        self._forget(user, verdict.gone + verdict.replaced + [member] * verdict.is_refused)
        for each in verdict.replaced:
            conn, _, owner = each.partition("@")
            command = {"op": "replace", "user": user, "conn": conn, "owner": owner}
            self._publisher.publish(self._names.control("")[0], json.dumps(command).encode(), _ignore)
        told(not verdict.is_refused)
        self._wake()

    def _forget(self, user: str, members: list[str]) -> None:
        if members:
            key = self._names.user(user)
            self._publisher.call(key, pack("ZREM", key, *members), _ignore_answer)

    # --- who lives ------------------------------------------------------------------------------------

    def _look(self, crowd: Crowd, then: Callable[[], None]) -> None:
        """Find out which owners live, then go on. What cannot be found out lives."""
        now_s = time.monotonic()
        if len(self._known) > KNOWN_MOST:
            self._known.clear()
        asked = [owner for owner in crowd.owners() if self._known.get(owner, (True, 0.0))[1] < now_s]
        asked = [owner for owner in asked if owner != self.owner]
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
        return owner == self.owner or self._known.get(owner, (True, 0.0))[0]

    def tick(self, now_s: float) -> None:
        """Four times a second: say that we live, and walk on."""
        if not self.is_counting:
            return
        if now_s - self._alive_s >= ALIVE_EVERY_S:
            self._alive_s = now_s
            key = self._names.alive(self.owner)
            self._publisher.call(key, pack("SET", key, "1", "EX", str(ALIVE_TTL_S)), _ignore_answer)
        if self._walked or now_s >= self._walk_s:
            self._walk(now_s)

    def on_up(self) -> None:
        """The bus is there, perhaps another one, or an empty one: say that we live, and who is here."""
        self._alive_s = self._walk_s = 0.0

    def _walk(self, now_s: float) -> None:
        """Put everybody on the books again, a few in each tick."""
        most = max(WALK_LEAST, int(self._reactor.counters()["now_channels"] / (WALK_S * 4 / 2)))
        names, self._walked = self._reactor.channels(self._walked, most)
        if not self._walked:
            self._walk_s = now_s + WALK_S * random.uniform(0.5, 1.0)  # noqa: S311 - spreading, not secrecy
        for name in names:
            if not name.startswith(INBOX_MARK.encode()):
                continue
            user = name[len(INBOX_MARK) :].decode()
            for conn in self._reactor.subscribed(name):
                self._enter(user, self._member(conn), self._on_walked)

    def _on_walked(self, outcome: str, _: bytes) -> None:
        """Somebody who is here was not put on the books: walk again soon. Nobody is thrown out by a walk."""
        if outcome:
            self._walk_s = min(self._walk_s, time.monotonic() + AGAIN_S)

    # --- messages -------------------------------------------------------------------------------------

    def _lease(self, user: str, want: int, debt: int, grant: Callable[[int, int], None]) -> None:
        arguments = (b"%d" % self._limits.rate_per_s, b"%d" % want, b"%d" % debt)
        done = partial(self._on_lease, want, grant)
        RATE_LEASE.run(self._publisher, self._names.rate(user), arguments, done)

    def _on_lease(self, want: int, grant: Callable[[int, int], None], outcome: str, text: bytes) -> None:
        granted, _, wait_ms = text.partition(b" ")
        if outcome or not (granted.isdigit() and wait_ms.isdigit()):
            self._count("rates_unchecked", 1)
            grant(want, 0)
        else:
            grant(int(granted), int(wait_ms))


def _ignore(_: object) -> None:
    """Nobody waits for it."""


def _ignore_answer(_: str, __: bytes) -> None:
    """Nobody waits for it."""
