"""What a shard does about a bus that answers late, wrongly or not at all: no ghosts, nobody forgotten."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import pytest

from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.auth import NO_PERMISSIONS, Identity
from wsgate.bus import RATE_LEASE, SIGN_OF_LIFE, USER_ENTER, BusPublisher, Names
from wsgate.shard.options import UserLimits
from wsgate.shard.users import PAGES_MOST, SHOWN_MOST, UNFORGOTTEN_MOST, WAIT_MOST_MS, Users

Done = Callable[[str, bytes], None]
ENTER = USER_ENTER.digest
SIGN = SIGN_OF_LIFE.digest
LIMITS = UserLimits(connections=1, replaces=False)


class Bus:
    """Commands as they are sent; each is answered when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Done]] = []
        self.told: list[bytes] = []

    def call(self, key: bytes, command: bytes, done: Done) -> None:
        self.sent.append((command, done))

    def publish(self, name: bytes, data: bytes, done: Callable[[str], None]) -> None:
        self.told.append(data)
        done("")

    def answer(self, word: bytes, outcome: str = "", text: bytes = b"") -> int:
        """Answer every command that holds this word; how many there were."""
        meant = [each for each in self.sent if word in each[0]]
        self.sent = [each for each in self.sent if word not in each[0]]
        for _, done in meant:
            done(outcome, text)
        return len(meant)


class Desk:
    """One shard's users, its bus and its reactor."""

    def __init__(self, bench: Rig, limits: UserLimits, owners: Sequence[str]) -> None:
        self.bench, self.bus, self.counts = bench, Bus(), Counter[str]()
        self.verdicts: list[bool] = []
        self.users = Users(
            limits, bench.reactor, cast(BusPublisher, self.bus), Names("w"), owners, self._count, lambda: None
        )

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def come(self, user: str = "ann") -> Peer:
        peer = self.bench.connect()
        identity = Identity(user=user, permissions=NO_PERMISSIONS, expires_at_s=0)
        self.bench.reactor.set_meta(peer.conn, identity.member())
        self.users.enter(peer.conn, user, self.verdicts.append)
        return peer

    def member(self, peer: Peer) -> bytes:
        return f"{self.bench.reactor.public_id(peer.conn):016x}@{self.users.owner}".encode()

    def tick(self, now_s: float) -> None:
        self.users.tick(now_s)


@contextmanager
def desk(limits: UserLimits = LIMITS, owners: Sequence[str] = ()) -> Iterator[Desk]:
    with rig() as bench:
        yield Desk(bench, limits, owners)


def test_a_removal_that_the_bus_has_not_heard_is_said_again() -> None:
    with desk() as at:
        peer = at.come()
        at.bus.answer(ENTER)
        at.users.leave(peer.conn, "ann")
        for now_s in (1.0, 2.0, 3.0):
            assert at.bus.answer(b"ZREM", "down") == 1
            at.tick(now_s)
        assert [at.member(peer) in command for command, _ in at.bus.sent if b"ZREM" in command] == [True]
        assert at.bus.answer(b"ZREM", "", b"1") == 1
        at.tick(4.0)
        assert at.bus.answer(b"ZREM") == 0


def test_who_left_while_it_was_counted_is_taken_off() -> None:
    """A script that the server did not know is sent once more, behind the removal of who has left."""
    with desk() as at:
        peer = at.come()
        member = at.member(peer)
        at.bench.reactor.abort(peer.conn)
        at.users.leave(peer.conn, "ann")
        at.bus.answer(ENTER, "unscripted")
        at.bus.answer(b"ZREM", "", b"0")
        at.bus.answer(b"EVAL", "", b"")
        assert [member in command for command, _ in at.bus.sent if b"ZREM" in command] == [True]


def test_our_own_who_are_gone_count_for_nothing() -> None:
    with desk() as at:
        gone = at.come()
        ghost = at.member(gone)
        at.bench.reactor.abort(gone.conn)
        peer = at.come()
        at.bus.sent = at.bus.sent[-1:]
        at.bus.answer(ENTER, "", b"2 " + ghost + b" " + at.member(peer))
        assert at.verdicts == [True]
        assert [ghost in command for command, _ in at.bus.sent if b"ZREM" in command] == [True]


def test_those_whose_place_it_takes_are_dead_and_the_bus_is_told_so() -> None:
    with desk(owners=("new", "old", "older")) as at:
        assert at.users.owner == "new"
        peer = at.come()
        crowd = b"2 0000000000000001@old " + at.member(peer)
        at.bus.answer(ENTER, "", crowd)
        assert at.verdicts == [True], "not even asked for"
        assert at.bus.answer(b"EXISTS") == 0
        at.users.on_up()
        at.tick(100.0)
        told = [command for command, _ in at.bus.sent if b"DEL" in command]
        assert [b"w:alive:old\r" in told[0], b"w:alive:older\r" in told[1]] == [True, True]
        assert at.bus.answer(b"alive:older", "down") == 1
        assert at.bus.answer(b"alive:old", "", b"1") == 1
        at.tick(116.0)
        assert at.bus.answer(b"DEL") == 1, "said again, as often as it takes"


def test_a_full_queue_of_ours_lets_nobody_in_uncounted() -> None:
    with desk() as at:
        first, second = at.come(), at.come("bob")
        at.tick(1.0)
        assert at.bus.answer(ENTER, "full") == 2
        assert at.verdicts == [] and at.counts["users_unchecked"] == 0
        assert at.bus.answer(ENTER) == 0, "not at once: there is no room"
        at.bench.reactor.abort(second.conn)
        at.bench.turn()
        at.tick(1.25)
        crowd = b"2 0000000000000001@other " + at.member(first)
        assert at.bus.answer(ENTER, "", crowd) == 1, "who is gone is not asked for"
        at.bus.answer(b"EXISTS", "", b"1")
        assert at.verdicts == [False]


def test_a_full_queue_of_ours_grants_no_messages() -> None:
    with desk(UserLimits(rate_per_s=100)) as at:
        rates = at.users.rates
        assert rates is not None
        assert rates.take("ann", 1.0) == 0
        at.bus.answer(RATE_LEASE.digest, "full")
        assert at.counts["rates_unchecked"] == 0
        assert 0 < rates.take("ann", 0.0) <= 1_000_000_000


def test_a_removal_too_many_to_remember_is_counted() -> None:
    with desk() as at:
        at.users._unforgotten.extend([("ann", "x")] * UNFORGOTTEN_MOST)
        peer = at.come()
        at.users.leave(peer.conn, "ann")
        at.bus.answer(b"ZREM", "down")
        assert at.counts["user_deregistrations_lost"] == 1
        assert len(at.users._unforgotten) == UNFORGOTTEN_MOST


def test_more_dead_ones_than_an_answer_shows_lock_nobody_out() -> None:
    with desk(owners=("new", "old")) as at:
        peer = at.come()
        ghosts = [b"%016x@old" % number for number in range(1, 51)]
        at.bus.answer(ENTER, "", b" ".join([b"51", *ghosts[:30]]))
        assert at.verdicts == []
        assert at.bus.answer(b"ZREM", "", b"30") == 1
        assert at.bus.answer(ENTER, "", b" ".join([b"21", *ghosts[30:], at.member(peer)])) == 1
        assert at.verdicts == [True]
        assert at.bus.answer(b"ZREM", "", b"20") == 1


def test_who_is_replaced_is_on_the_books_until_its_owner_takes_it_off() -> None:
    """Its owner may not have heard of it: then the next one has it told again."""
    with desk(UserLimits(connections=1, replaces=True)) as at:
        peer = at.come()
        at.bus.answer(ENTER, "", b"2 0000000000000001@other " + at.member(peer))
        at.bus.answer(b"EXISTS", "", b"1")
        assert at.verdicts == [True]
        assert len(at.bus.told) == 1 and b"0000000000000001" in at.bus.told[0]
        assert at.bus.answer(b"ZREM") == 0


def test_limits_switched_off_while_a_verdict_is_out_harm_nobody() -> None:
    with desk(UserLimits(connections=1, replaces=True)) as at:
        first, second = at.come(), at.come()
        crowd = b"2 " + at.member(first) + b" " + at.member(second)
        at.users.renew(UserLimits())
        at.bus.answer(ENTER, "", crowd)
        assert at.verdicts == [True, True]
        assert at.bus.told == []


def test_a_crowd_that_makes_no_sense_lets_in_and_is_counted() -> None:
    with desk() as at:
        at.come()
        at.bus.answer(ENTER, "", b"\xff")
        assert at.verdicts == [True]
        assert at.counts["users_unchecked"] == 1


def test_nobody_walks_before_the_bus_knows_that_we_live() -> None:
    with desk() as at:
        at.come()
        at.bus.answer(ENTER)
        at.users.on_up()
        at.tick(100.0)
        assert at.bus.answer(ENTER) == 0
        assert at.bus.answer(SIGN, "down") == 1
        at.tick(100.25)
        assert at.bus.answer(ENTER) == 0
        assert at.bus.answer(SIGN, "", b"OK") == 1, "said again at once"
        at.tick(100.5)
        assert at.bus.answer(ENTER, "down") == 1
        at.tick(107.0)
        assert at.bus.answer(ENTER) == 1, "somebody is missing: again soon"


def test_a_walk_under_way_begins_anew_when_the_bus_is_back() -> None:
    with desk() as at:
        for number in range(100):
            at.come(f"u{number}")
        at.bus.answer(ENTER)
        at.users.on_up()
        at.tick(100.0)
        at.bus.answer(SIGN, "", b"OK")
        at.tick(100.25)
        assert 0 < at.bus.answer(ENTER, "down") < 100
        at.users.on_up()
        at.tick(100.5)
        at.bus.answer(SIGN, "", b"OK")
        counted = 0
        for step in range(8):
            at.tick(100.75 + step / 4)
            counted += at.bus.answer(ENTER)
        assert counted == 100


ODD = [
    *(b"nothex@%b", b"@%b", b"%b", b"00000000000000ZZ@%b", b"000000000000000A@%b", b"1@%b"),
    *(b"0000000000000001", b"0000000000000001@", b"@", b"@@", b"+000000000000001@%b"),
    *(b"\xc2\xb2000000000000001@%b", b"000000000000000_@%b", b"0x00000000000001@%b"),
    b"0000000000000001@" + b"x" * 99,
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("owner", ["self", "other"])
def test_an_odd_member_counts_for_nothing_and_is_removed(odd: bytes, owner: str) -> None:
    with desk() as at:
        peer = at.come()
        member = odd.replace(b"%b", at.users.owner.encode() if owner == "self" else b"other")
        at.bus.answer(ENTER, "", b"2 " + member + b" " + at.member(peer))
        at.bus.answer(b"EXISTS", "", b"1")
        assert at.verdicts == [True]
        assert [b"\r\n" + member + b"\r\n" in command for command, _ in at.bus.sent] == [True]


@pytest.mark.parametrize(
    "text",
    [
        b"2",
        b"2 ",
        b" ",
        b"-1",
        b"99999999999999999999",
        b"1e9 x",
        b"2 a b c d",
        b"9" * 5_000,
        b"3 \x00",
        b"\xb2 x",
    ],
)
@pytest.mark.parametrize("replaces", [True, False])
def test_any_answer_to_counting_leads_to_a_verdict(text: bytes, replaces: bool) -> None:
    with desk(UserLimits(connections=1, replaces=replaces)) as at:
        at.come()
        for _ in range(2 * PAGES_MOST):
            at.bus.answer(ENTER, "", text)
            at.bus.answer(b"EXISTS", "", b"1")
            at.bus.answer(b"ZREM", "", b"1")
        assert len(at.verdicts) == 1
        assert not at.bus.sent


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize("ghosts", [1, 5, 400])
def test_ghosts_behind_many_who_live_lock_nobody_out(ghosts: int, replaces: bool) -> None:
    """Whoever reads the oldest only finds nobody who is dead there, however often."""
    limit = 300
    with desk(UserLimits(connections=limit, replaces=replaces), owners=("new", "old")) as at:
        peer = at.come()
        books = [b"%016x@other" % number for number in range(limit - 1)]
        books += [b"%016x@old" % number for number in range(ghosts)] + [at.member(peer)]
        for _ in range(20):
            if at.verdicts:
                break
            assert len(at.bus.sent) == 1
            command, done = at.bus.sent.pop()
            left_out, most = (int(part) for part in command.split(b"\r\n")[-4:-1:2])
            assert most == SHOWN_MOST
            shown = books[left_out : left_out + most]
            done("", b" ".join([b"%d" % len(books), *shown]))
            at.bus.answer(b"EXISTS", "", b"1")
            for removal, _ in at.bus.sent:
                books = [each for each in books if b"ZREM" not in removal or each not in removal]
            at.bus.answer(b"ZREM", "", b"1")
        assert at.verdicts == [True]
        assert at.bus.told == [], "nobody is replaced"
        assert len(books) == limit


def test_a_user_that_really_has_too_many_is_refused_after_all_were_looked_at() -> None:
    limit = 300
    with desk(UserLimits(connections=limit, replaces=False)) as at:
        peer = at.come()
        books = [b"%016x@other" % number for number in range(limit)] + [at.member(peer)]
        for start in (0, SHOWN_MOST):
            at.bus.answer(ENTER, "", b" ".join([b"%d" % len(books), *books[start : start + SHOWN_MOST]]))
            at.bus.answer(b"EXISTS", "", b"1")
        assert at.verdicts == [False]
        assert [at.member(peer) in command for command, _ in at.bus.sent] == [True]


@pytest.mark.parametrize(
    ("text", "granted", "wait_ms"),
    [
        (b"3 0", 3, 0),
        (b"0 250", 0, 250),
        (b"999999 0", 4, 0),
        (b"0 999999999999999999", 0, WAIT_MOST_MS),
        *(
            (odd, 4, 0)
            for odd in (b"", b"x", b"1", b"1 x", b"-1 5", b"9" * 5_000 + b" 1", b"0 " + b"9" * 5_000)
        ),
    ],
)
def test_any_answer_about_an_allowance_is_a_grant_within_bounds(
    text: bytes, granted: int, wait_ms: int
) -> None:
    with desk() as at:
        grants: list[tuple[int, int]] = []
        at.users._lease("ann", 4, 0, lambda *each: grants.append(each))
        at.bus.answer(RATE_LEASE.digest, "", text)
        assert grants == [(granted, wait_ms)]


def test_a_removal_that_the_server_refuses_is_not_repeated_with_every_tick() -> None:
    with desk() as at:
        at.tick(100.0)
        peer = at.come()
        at.bus.answer(ENTER)
        at.users.leave(peer.conn, "ann")
        assert at.bus.answer(b"ZREM", "refused") == 1
        sent = 0
        for quarter in range(400):
            at.tick(100.0 + quarter / 4)
            sent += at.bus.answer(b"ZREM", "refused")
        assert 5 <= sent <= 8, "about every 15 of 100 seconds"
