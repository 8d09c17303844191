"""Check the user limits of a shard with a bus that answers late, wrongly or not at all."""

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import pytest

from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.auth import NO_PERMISSIONS, Identity
from wsgate.bus import RATE_LEASE, SIGN_OF_LIFE, USER_ENTER, BusPublisher, Names
from wsgate.shard.options import UserLimits
from wsgate.shard.users import (
    PAGES_MOST,
    REMOVAL_BYTES,
    SHOWN_MOST,
    UNFORGOTTEN_MOST,
    WAIT_MOST_MS,
    Users,
)

Done = Callable[[str, bytes], None]
ENTER = USER_ENTER.digest
SIGN = SIGN_OF_LIFE.digest
LIMITS = UserLimits(connections=1, replaces=False)


class Bus:
    """Record commands; each is answered when the test calls `answer`."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Done]] = []
        self.published: list[bytes] = []

    def call(self, key: bytes, command: bytes, done: Done) -> None:
        self.sent.append((command, done))

    def publish(self, name: bytes, data: bytes, done: Callable[[str], None]) -> None:
        self.published.append(data)
        done("")

    def answer(self, word: bytes, outcome: str = "", text: bytes = b"") -> int:
        """Answer every command that contains this word; return their number."""
        meant = [each for each in self.sent if word in each[0]]
        self.sent = [each for each in self.sent if word not in each[0]]
        for _, done in meant:
            done(outcome, text)
        return len(meant)


class UsersRig:
    """The user limits of one shard, with its bus and its reactor."""

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
def users_rig(limits: UserLimits = LIMITS, owners: Sequence[str] = ()) -> Iterator[UsersRig]:
    with rig() as bench:
        yield UsersRig(bench, limits, owners)


def test_failed_removal_of_a_connection_is_sent_again_at_each_tick() -> None:
    with users_rig() as at:
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


def test_connection_that_left_during_its_count_is_removed_after_the_repeated_script() -> None:
    """A script that the server did not know is sent once more, behind the removal of the connection."""
    with users_rig() as at:
        peer = at.come()
        member = at.member(peer)
        at.bench.reactor.abort(peer.conn)
        at.users.leave(peer.conn, "ann")
        at.bus.answer(ENTER, "unscripted")
        at.bus.answer(b"ZREM", "", b"0")
        at.bus.answer(b"EVAL", "", b"")
        assert [member in command for command, _ in at.bus.sent if b"ZREM" in command] == [True]


def test_ended_connection_of_the_same_shard_is_removed_and_does_not_count() -> None:
    with users_rig() as at:
        gone = at.come()
        stale = at.member(gone)
        at.bench.reactor.abort(gone.conn)
        peer = at.come()
        at.bus.sent = at.bus.sent[-1:]
        at.bus.answer(ENTER, "", b"2 " + stale + b" " + at.member(peer))
        assert at.verdicts == [True]
        assert [stale in command for command, _ in at.bus.sent if b"ZREM" in command] == [True]


def test_predecessors_of_the_shard_count_as_dead_and_their_liveness_keys_are_deleted() -> None:
    with users_rig(owners=("new", "old", "older")) as at:
        assert at.users.owner == "new"
        peer = at.come()
        crowd = b"2 0000000000000001@old " + at.member(peer)
        at.bus.answer(ENTER, "", crowd)
        assert at.verdicts == [True], "without a query for the liveness key"
        assert at.bus.answer(b"EXISTS") == 0
        at.users.on_up()
        at.tick(100.0)
        published = [command for command, _ in at.bus.sent if b"DEL" in command]
        assert [b"w:alive:old\r" in published[0], b"w:alive:older\r" in published[1]] == [True, True]
        assert at.bus.answer(b"alive:older", "down") == 1
        assert at.bus.answer(b"alive:old", "", b"1") == 1
        at.tick(116.0)
        assert at.bus.answer(b"DEL") == 1, "the failed deletion is sent again"


def test_full_command_queue_delays_the_count_and_admits_no_connection() -> None:
    with users_rig() as at:
        first, second = at.come(), at.come("bob")
        at.tick(1.0)
        assert at.bus.answer(ENTER, "full") == 2
        assert at.verdicts == [] and at.counts["users_unchecked"] == 0
        assert at.bus.answer(ENTER) == 0, "not at once, because the queue is full"
        at.bench.reactor.abort(second.conn)
        at.bench.turn()
        at.tick(1.25)
        crowd = b"2 0000000000000001@other " + at.member(first)
        assert at.bus.answer(ENTER, "", crowd) == 1, "the ended connection is not counted"
        at.bus.answer(b"EXISTS", "", b"1")
        assert at.verdicts == [False]


def test_full_command_queue_grants_no_further_messages_of_the_user_rate() -> None:
    with users_rig(UserLimits(rate_per_s=100)) as at:
        rates = at.users.rates
        assert rates is not None
        assert rates.take("ann", 1.0) == 0
        at.bus.answer(RATE_LEASE.digest, "full")
        assert at.counts["rates_unchecked"] == 0
        assert 0 < rates.take("ann", 0.0) <= 1_000_000_000


def test_failed_removal_beyond_the_limit_is_counted_as_lost() -> None:
    with users_rig() as at:
        at.users._unforgotten.extend([("ann", "x")] * UNFORGOTTEN_MOST)
        peer = at.come()
        at.users.leave(peer.conn, "ann")
        at.bus.answer(b"ZREM", "down")
        assert at.counts["user_deregistrations_lost"] == 1
        assert len(at.users._unforgotten) == UNFORGOTTEN_MOST


def test_waiting_removals_of_both_kinds_have_one_bound_and_are_accounted() -> None:
    with users_rig() as at:
        at.users.enter(at.come().conn, "ann", at.verdicts.append)
        at.bus.answer(ENTER)
        for outcome, count in (("refused", 40_000), ("down", 40_000), ("refused", 10)):
            for _ in range(count):
                at.users._on_forgotten("ann", ["0@x"], outcome, b"")
        assert at.users.waiting_bytes == UNFORGOTTEN_MOST * REMOVAL_BYTES
        assert at.counts["user_deregistrations_lost"] == 80_010 - UNFORGOTTEN_MOST
        assert len(at.users._unforgotten) == 40_000, "refused removals are dropped first"
        for now_s in range(20, 20 + UNFORGOTTEN_MOST // 256):
            at.tick(now_s)
            at.bus.answer(b"ZREM", "", b"1")
        assert at.users.waiting_bytes == 0
        assert at.counts["user_deregistrations_lost"] == 80_010 - UNFORGOTTEN_MOST


def test_memory_of_a_waiting_removal_is_at_most_what_is_accounted() -> None:
    with users_rig() as at:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(2_000):
                user = f"{number:0128}"
                at.users._on_forgotten(user, [f"{number:016x}@{at.users.owner}"], "down", b"")
            held = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        # The interpreter keeps free tuples, which are not traced when they are used again.
        assert at.users.waiting_bytes / 2 < held <= at.users.waiting_bytes


def test_50_stale_entries_are_removed_after_two_replies_and_the_connection_is_admitted() -> None:
    with users_rig(owners=("new", "old")) as at:
        peer = at.come()
        stale_count = [b"%016x@old" % number for number in range(1, 51)]
        at.bus.answer(ENTER, "", b" ".join([b"51", *stale_count[:30]]))
        assert at.verdicts == []
        assert at.bus.answer(b"ZREM", "", b"30") == 1
        assert at.bus.answer(ENTER, "", b" ".join([b"21", *stale_count[30:], at.member(peer)])) == 1
        assert at.verdicts == [True]
        assert at.bus.answer(b"ZREM", "", b"20") == 1


def test_replaced_connection_stays_registered_until_its_own_shard_removes_the_entry() -> None:
    """The other shard may have missed the command; then the next connection sends the command again."""
    with users_rig(UserLimits(connections=1, replaces=True)) as at:
        peer = at.come()
        at.bus.answer(ENTER, "", b"2 0000000000000001@other " + at.member(peer))
        at.bus.answer(b"EXISTS", "", b"1")
        assert at.verdicts == [True]
        assert len(at.bus.published) == 1 and b"0000000000000001" in at.bus.published[0]
        assert at.bus.answer(b"ZREM") == 0


def test_limits_disabled_during_a_count_admit_all_and_replace_none() -> None:
    with users_rig(UserLimits(connections=1, replaces=True)) as at:
        first, second = at.come(), at.come()
        crowd = b"2 " + at.member(first) + b" " + at.member(second)
        at.users.renew(UserLimits())
        at.bus.answer(ENTER, "", crowd)
        assert at.verdicts == [True, True]
        assert at.bus.published == []


def test_unparsable_reply_admits_the_connection_as_unchecked() -> None:
    with users_rig() as at:
        at.come()
        at.bus.answer(ENTER, "", b"\xff")
        assert at.verdicts == [True]
        assert at.counts["users_unchecked"] == 1


def test_reregistration_starts_only_after_the_liveness_key_is_confirmed() -> None:
    with users_rig() as at:
        at.come()
        at.bus.answer(ENTER)
        at.users.on_up()
        at.tick(100.0)
        assert at.bus.answer(ENTER) == 0
        assert at.bus.answer(SIGN, "down") == 1
        at.tick(100.25)
        assert at.bus.answer(ENTER) == 0
        assert at.bus.answer(SIGN, "", b"OK") == 1, "the liveness key is sent again at once"
        at.tick(100.5)
        assert at.bus.answer(ENTER, "down") == 1
        at.tick(107.0)
        assert at.bus.answer(ENTER) == 1, "one connection is missing, so the walk is repeated soon"


def test_reregistration_in_progress_starts_over_when_the_bus_is_back() -> None:
    with users_rig() as at:
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
def test_malformed_member_does_not_count_and_is_removed(odd: bytes, owner: str) -> None:
    with users_rig() as at:
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
def test_any_reply_to_a_count_leads_to_exactly_one_verdict(text: bytes, replaces: bool) -> None:
    with users_rig(UserLimits(connections=1, replaces=replaces)) as at:
        at.come()
        for _ in range(2 * PAGES_MOST):
            at.bus.answer(ENTER, "", text)
            at.bus.answer(b"EXISTS", "", b"1")
            at.bus.answer(b"ZREM", "", b"1")
        assert len(at.verdicts) == 1
        assert not at.bus.sent


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize("stale_count", [1, 5, 400])
def test_stale_entries_behind_299_live_ones_are_removed_and_the_connection_is_admitted(
    stale_count: int, replaces: bool
) -> None:
    """Reading only the oldest entries would never find the stale ones."""
    limit = 300
    with users_rig(UserLimits(connections=limit, replaces=replaces), owners=("new", "old")) as at:
        peer = at.come()
        entries = [b"%016x@other" % number for number in range(limit - 1)]
        entries += [b"%016x@old" % number for number in range(stale_count)] + [at.member(peer)]
        for _ in range(20):
            if at.verdicts:
                break
            assert len(at.bus.sent) == 1
            command, done = at.bus.sent.pop()
            left_out, most = (int(part) for part in command.split(b"\r\n")[-4:-1:2])
            assert most == SHOWN_MOST
            shown = entries[left_out : left_out + most]
            done("", b" ".join([b"%d" % len(entries), *shown]))
            at.bus.answer(b"EXISTS", "", b"1")
            for removal, _ in at.bus.sent:
                entries = [each for each in entries if b"ZREM" not in removal or each not in removal]
            at.bus.answer(b"ZREM", "", b"1")
        assert at.verdicts == [True]
        assert at.bus.published == [], "no connection is replaced"
        assert len(entries) == limit


def test_user_with_300_live_connections_is_refused_after_all_entries_are_checked() -> None:
    limit = 300
    with users_rig(UserLimits(connections=limit, replaces=False)) as at:
        peer = at.come()
        entries = [b"%016x@other" % number for number in range(limit)] + [at.member(peer)]
        for start in (0, SHOWN_MOST):
            at.bus.answer(ENTER, "", b" ".join([b"%d" % len(entries), *entries[start : start + SHOWN_MOST]]))
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
def test_any_reply_to_a_rate_lease_is_a_grant_within_bounds(text: bytes, granted: int, wait_ms: int) -> None:
    with users_rig() as at:
        grants: list[tuple[int, int]] = []
        at.users._lease("ann", 4, 0, lambda *each: grants.append(each))
        at.bus.answer(RATE_LEASE.digest, "", text)
        assert grants == [(granted, wait_ms)]


def test_removal_that_the_server_refuses_is_repeated_about_every_15_s() -> None:
    with users_rig() as at:
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
