"""Store revocations of users' tokens on the bus, and read them in shards that start or have missed some.

One sorted set stores all revocations: the user is the member, and the score is the Unix time; tokens issued
before it are not valid. A sorted set needs only one key, and therefore one server of a cluster. A later
revocation of a user replaces an earlier one (ZADD GT), revocations older than any valid token are a range of
scores, and the newest ones are read first.

A revocation is kept for `RETENTION_S` after its time, and at most `REVOCATIONS_MOST` users are kept. Beyond
that the users with the oldest times are removed, and counted. The stored entries are not trusted: an entry
that is no valid revocation is skipped.

Source: protocols/bus/v1/spec.md, "Revocations".
"""

import math
import random
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from wsgate.bus.names import Names
from wsgate.bus.publisher import CallDone, PublishOutcome
from wsgate.bus.push import REPLY_LIMIT_BYTES
from wsgate.bus.script import REVOCATIONS_PAGE, REVOKE, Caller

__all__ = [
    "RETENTION_S",
    "REVOCATIONS_MOST",
    "Page",
    "ReadPosition",
    "Revocation",
    "RevocationKeeper",
    "load_revocations",
    "read_page",
    "store_revocation",
]

RETENTION_S: Final = 90 * 86_400
"""How long a revocation is kept after its time. A token without `exp`, or one that lives longer than this,
is accepted again afterwards by shards that start: withdraw its key."""
REVOCATIONS_MOST: Final = 65_536
"""The most users on the bus, and in each shard. About 100 bytes each on the bus, 15 MiB with longest ids."""
ENTRY_BYTES: Final = 350
"""Memory of one user that the keeper remembers: the table entry, the time, and an id of 128 bytes."""
USER_LIMIT_BYTES: Final = 128
"""The longest `sub` of a token."""
PAGE_BYTES: Final = REPLY_LIMIT_BYTES - 4 * 1024
PAGES_MOST: Final = 4_096
"""The most pages of one reading; 65,536 users with the longest ids need 830."""
RELOAD_S: Final = 900.0
"""Time between two readings of all revocations. A reading finds those that were stored while this shard did
not receive the control channel."""
SECOND_READING_S: Final = 5.0
"""Time until the second reading after the bus returned. Another shard may still have to store a revocation
that it received and this shard missed."""
RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 60.0
STORES_PER_TICK: Final = 64
STORES_UNDER_WAY: Final = 256

_START: Final = re.compile(rb"([0-9]{1,9})\|")
_ENTRY: Final = re.compile(rb"([0-9a-z.+-]{1,32}) ([0-9]{1,3}):")


class Revocation(NamedTuple):
    """One revocation: tokens of a user that were issued before a time are not valid.

    Attributes:
        user: The claim `sub` of the tokens.
        before_s: The time, in seconds of Unix time, finite and not negative.
    """

    user: str
    before_s: float


class Page(NamedTuple):
    """One decoded page of the revocations that are stored on the bus.

    Attributes:
        revocations: The valid entries.
        last: The last entry, behind which the next page starts; None: the page is empty, the reading is
            complete.
        skipped: The number of entries that are no valid revocation.
    """

    revocations: list[Revocation]
    last: "ReadPosition | None"
    skipped: int


class ReadPosition(NamedTuple):
    """The last entry of a page, as the server sent it.

    Attributes:
        user: The user id of the entry; empty: the reading starts at the beginning.
        score: The time of the entry.
        number: The position of the entry among those with the same time.
    """

    user: bytes = b""
    score: bytes = b""
    number: int = 0


def store_revocation(
    caller: Caller,
    names: Names,
    revocation: Revocation,
    done: CallDone,
    *,
    retention_s: int = RETENTION_S,
) -> None:
    """Store one revocation on the bus. Storing it again changes nothing; the latest time of a user counts.

    Args:
        caller: A `Publisher` or `ClusterPublisher`.
        names: The names of keys and channels on the bus.
        revocation: The revocation to store.
        done: Called once, later, as by `Publisher.call`: with `("", b"<n>")` when it is stored, where n is
            the number of users removed to make room; else with the reason of the failure.
        retention_s: How long after its time the revocation is kept, in seconds.
    """
    user, before_s = revocation
    arguments = (user.encode(), repr(float(before_s)).encode(), b"%d" % retention_s, b"%d" % REVOCATIONS_MOST)
    REVOKE.run(caller, names.revoked(), arguments, done)


def read_page(text: bytes) -> Page:
    """Decode the result of the script `revocations_page` into a page.

    Raises:
        ValueError: The text does not have the form of such a result.
    """
    found: list[Revocation] = []
    if not text:
        return Page(found, None, 0)
    start = _START.match(text)
    if start is None or start.end() == len(text):
        raise ValueError("the result of revocations_page is not valid")
    place, skipped = start.end(), 0
    last = ReadPosition()
    while place < len(text):
        head = _ENTRY.match(text, place)
        if head is None:
            raise ValueError("the result of revocations_page is not valid")
        end = head.end() + int(head[2])
        user = text[head.end() : end]
        if not 1 <= len(user) == int(head[2]) <= USER_LIMIT_BYTES:
            raise ValueError("the result of revocations_page is not valid")
        place, last = end, ReadPosition(user, head[1], int(start[1]))
        revocation = _revocation(user, head[1])
        if revocation is None:
            skipped += 1
        else:
            found.append(revocation)
    return Page(found, last, skipped)


def _revocation(user: bytes, score: bytes) -> Revocation | None:
    """Convert an entry into a revocation; None if its time or its user is not valid."""
    try:
        before_s = float(score)
        name = user.decode()
    except ValueError:
        return None
    return Revocation(name, before_s) if math.isfinite(before_s) and before_s >= 0 else None


def load_revocations(
    caller: Caller,
    names: Names,
    learn: Callable[[Revocation], None],
    done: Callable[[PublishOutcome], None],
    *,
    retention_s: int = RETENTION_S,
) -> None:
    """Read all revocations from the bus, one page after the other, with one request under way.

    Args:
        caller: A `Publisher` or `ClusterPublisher`.
        names: The names of keys and channels on the bus.
        learn: Called for each revocation, the latest time first; the same revocation may come twice.
        done: Called once, at the end, with `""` when everything was read, else with the reason of the
            failure. Revocations passed to `learn` before a failure are valid.
        retention_s: How long after its time a revocation is kept, in seconds.
    """
    _Reading(caller, names, learn, done, retention_s).ask(ReadPosition())


class _Reading:
    """The state of one reading of all pages: its callbacks, and how many pages and users are left."""

    __slots__ = ("_caller", "_done", "_learn", "_left", "_names", "_pages", "_retention_s")

    def __init__(
        self,
        caller: Caller,
        names: Names,
        learn: Callable[[Revocation], None],
        done: Callable[[PublishOutcome], None],
        retention_s: int,
    ) -> None:
        self._caller = caller
        self._names = names
        self._learn = learn
        self._done = done
        self._retention_s = retention_s
        self._pages = PAGES_MOST
        self._left = REVOCATIONS_MOST

    def ask(self, last: ReadPosition) -> None:
        """Request the page that starts behind an entry."""
        numbers = (last.number, self._retention_s, PAGE_BYTES, USER_LIMIT_BYTES)
        arguments = (last.user, last.score, *(b"%d" % each for each in numbers))
        REVOCATIONS_PAGE.run(self._caller, self._names.revoked(), arguments, self._on_page)

    def _on_page(self, outcome: PublishOutcome, text: bytes) -> None:
        """Pass the revocations of a page on, and request the next page or report the end."""
        if outcome:
            self._done(outcome)
            return
        try:
            page = read_page(text)
        except ValueError:
            self._done("refused")
            return
        for revocation in page.revocations[: self._left]:
            self._learn(revocation)
        self._left -= len(page.revocations)
        self._pages -= 1
        if page.last is None or self._left <= 0 or self._pages <= 0:
            self._done("")
        else:
            self.ask(page.last)


class RevocationKeeper:
    """Keep one shard and the bus in step: read all revocations, and store those that the shard receives.

    Call `on_up` when the bus is connected and the control channel is confirmed, `store` for each revocation
    that arrives on this channel, and `tick` a few times a second. Call all methods on the loop of the
    publisher.

    Args:
        caller: The shard's `Publisher` or `ClusterPublisher`.
        names: The names of keys and channels on the bus.
        known: The revocations of this shard, user to time. Those missing on the bus are stored again.
        learn: Called with user and time for each revocation on the bus that is newer than the one in `known`.
        count: Adds to a counter by name: `revocations_forgotten` for users removed at a limit, and
            `revocations_unread` for each failed reading.
        retention_s: How long after its time a revocation is kept, in seconds.

    Attributes:
        has_read: Whether a reading was complete since the shard started.
    """

    def __init__(
        self,
        caller: Caller,
        names: Names,
        known: Mapping[str, float],
        learn: Callable[[str, float], None],
        count: Callable[[str, int], None],
        *,
        retention_s: int = RETENTION_S,
    ) -> None:
        self._caller = caller
        self._names = names
        self._known = known
        self._learn = learn
        self._count = count
        self._retention_s = retention_s
        self._unstored: dict[str, float] = {}
        self._under_way = 0
        self._read_at_s: float | None = None  # when to read next; None: the bus was never connected
        self._is_reading = False
        self._is_second_due = False
        self._retry_s = RETRY_FIRST_S
        self._store_at_s = 0.0
        self._found: dict[str, float] = {}
        self._withdrawn: set[str] = set()  # users that were withdrawn while commands are unanswered
        self.has_read = False

    @property
    def waiting_bytes(self) -> int:
        """The memory of the users that are to be stored, were read or were withdrawn, in bytes. O(1)."""
        return (len(self._unstored) + len(self._found) + len(self._withdrawn)) * ENTRY_BYTES

    @property
    def waiting(self) -> int:
        """The number of revocations that the bus has not confirmed yet."""
        return len(self._unstored) + self._under_way

    def store(self, user: str, before_s: float) -> None:
        """Queue a revocation for storing on the bus; storing is retried until the bus confirms.

        At `REVOCATIONS_MOST` queued revocations the oldest queued one is dropped, and counted.
        """
        self._withdrawn.discard(user)
        self._queue(user, before_s)

    def _queue(self, user: str, before_s: float) -> None:
        """Queue a revocation, with the latest time if one of the user is queued already."""
        if len(self._unstored) >= REVOCATIONS_MOST and user not in self._unstored:
            self._unstored.pop(next(iter(self._unstored)))
            self._count("revocations_forgotten", 1)
        self._unstored[user] = max(before_s, self._unstored.get(user, before_s))

    def forget(self, user: str) -> None:
        """Drop a user's revocation, because it was withdrawn.

        A command that was sent before, to store it or to read a page with it, does not bring it back.
        """
        self._unstored.pop(user, None)
        if self._under_way or self._is_reading:
            self._withdrawn.add(user)

    def on_up(self) -> None:
        """Read everything with the next tick: the bus is connected again, and may have lost its data."""
        self._read_at_s = 0.0
        self._is_second_due = True
        self._retry_s = RETRY_FIRST_S
        self._store_at_s = 0.0

    def tick(self, now_s: float) -> None:
        """Send queued revocations to the bus, and start reading all revocations when a reading is due."""
        if self._read_at_s is not None and now_s >= self._read_at_s and not self._is_reading:
            self._is_reading = True
            self._found.clear()
            done = partial(self._on_read, now_s)
            load_revocations(self._caller, self._names, self._on_found, done, retention_s=self._retention_s)
        if now_s < self._store_at_s:
            return
        room = min(STORES_PER_TICK, STORES_UNDER_WAY - self._under_way, len(self._unstored))
        for _ in range(room):
            user = next(iter(self._unstored))
            revocation = Revocation(user, self._unstored.pop(user))
            self._under_way += 1
            done_storing = partial(self._on_stored, now_s, revocation)
            store_revocation(
                self._caller, self._names, revocation, done_storing, retention_s=self._retention_s
            )

    def _on_found(self, revocation: Revocation) -> None:
        """Note a revocation of the bus, and pass it to `learn` if it is newer than the known one."""
        if revocation.user in self._withdrawn:
            return
        self._found[revocation.user] = max(revocation.before_s, self._found.get(revocation.user, 0.0))
        if self._known.get(revocation.user, -1.0) < revocation.before_s:
            self._learn(revocation.user, revocation.before_s)

    def _on_read(self, asked_s: float, outcome: PublishOutcome) -> None:
        """Plan the next reading, and after a complete one store what the bus does not have."""
        self._is_reading = False
        self._end_withdrawals()
        found, self._found = self._found, {}
        if outcome:
            self._count("revocations_unread", 1)
            self._read_at_s = asked_s + self._wait_s(outcome)
            return
        self._retry_s = RETRY_FIRST_S
        self.has_read = True
        self._read_at_s = asked_s + RELOAD_S * random.uniform(0.8, 1.2)  # noqa: S311 - spreading
        if self._is_second_due:
            self._is_second_due = False
            self._read_at_s = asked_s + SECOND_READING_S
        if len(found) < REVOCATIONS_MOST:  # else the bus is full, and storing again would evict other users
            oldest_s = time.time() - self._retention_s
            for user, before_s in self._known.items():
                if before_s > found.get(user, -1.0) and before_s > oldest_s:
                    self.store(user, before_s)

    def _on_stored(
        self, asked_s: float, revocation: Revocation, outcome: PublishOutcome, text: bytes
    ) -> None:
        """Queue a revocation again if storing failed, else count the users removed for it."""
        self._under_way -= 1
        is_withdrawn = revocation.user in self._withdrawn
        self._end_withdrawals()
        if outcome:
            if not is_withdrawn:
                self._queue(*revocation)
            self._store_at_s = asked_s + self._wait_s(outcome)
        elif text.isdigit() and len(text) < 10:
            self._retry_s = RETRY_FIRST_S
            self._count("revocations_forgotten", int(text))

    def _end_withdrawals(self) -> None:
        """Forget which users were withdrawn, when no command from before is unanswered."""
        if not self._under_way and not self._is_reading:
            self._withdrawn.clear()

    def _wait_s(self, outcome: PublishOutcome) -> float:
        """Return the seconds before the next try, doubled each time; a full minute if the server refuses."""
        if outcome == "refused":
            return RETRY_MOST_S
        wait_s, self._retry_s = self._retry_s, min(RETRY_MOST_S, self._retry_s * 2)
        return wait_s
