"""Check revocations on the bus: replies are validated, failed commands repeated, and all work bounded."""

import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.resp import BOUNDS
from wsgate.bus import Names, revocations
from wsgate.bus.push import REPLY_LIMIT_BYTES
from wsgate.bus.revocations import (
    PAGE_BYTES,
    PAGES_MOST,
    RELOAD_S,
    RETENTION_S,
    REVOCATIONS_MOST,
    SECOND_READING_S,
    STORES_PER_TICK,
    ReadPosition,
    Revocation,
    RevocationKeeper,
    load_revocations,
    read_page,
)

Done = Callable[[str, bytes], None]
NOW_S = 1_000.0


def page(*entries: tuple[bytes, bytes]) -> bytes:
    return b"7|" + b"".join(b"%b %d:%b" % (score, len(user), user) for user, score in entries)


class Bus:
    """Record commands in their order; the test answers them."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Done]] = []

    def call(self, key: bytes, command: bytes, done: Done) -> None:
        assert key == b"w:revoked"
        self.sent.append((command, done))

    def answer(self, outcome: str = "", text: bytes = b"") -> bytes:
        """Answer the oldest command and return it."""
        command, done = self.sent.pop(0)
        done(outcome, text)
        return command


class KeeperRig:
    """One keeper of revocations, the revocations that its shard knows, and its counters."""

    def __init__(self, known: dict[str, float] | None = None) -> None:
        self.bus, self.counts, self.known = Bus(), Counter[str](), dict(known or {})
        self.learned: list[tuple[str, float]] = []
        self.keeper = RevocationKeeper(self.bus, Names("w"), self.known, self._learn, self._count)

    def _learn(self, user: str, before_s: float) -> None:
        self.learned.append((user, before_s))
        self.known[user] = before_s

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"1",
            b"1 ",
            b"1 2",
            b"1 2:",
            b"1 2:a",
            b"1 3:ab",
            b"1 0:",
            b"1 129:" + b"x" * 129,
            b" 1:a",
            b"\xff",
        ),
        *(
            b"1 1:a1",
            b"1 -1:a",
            b"1 1:ab",
            b"1 999:" + b"x" * 999,
            b"1  1:a",
            b"1,5 1:a",
        ),
        *(b"1 %d:a" % bound for bound in BOUNDS if bound != 1),
    ],
)
def test_malformed_page_of_revocations_raises_value_error(text: bytes) -> None:
    for whole in (text, b"7|" + text):
        with pytest.raises(ValueError, match="page"):
            read_page(whole)
    assert read_page(b"7|1 1:a").revocations == [Revocation("a", 1.0)]


@pytest.mark.parametrize("start", [b"", b"|", b"7", b"7|", b"-1|", b"x|", b"9999999999|", b"7 |"])
def test_page_without_a_valid_end_position_raises_value_error(start: bytes) -> None:
    with pytest.raises(ValueError, match="page"):
        read_page(start if start == b"7|" else start + b"1 1:a")


def test_invalid_entries_of_a_page_are_skipped_and_counted() -> None:
    odd = [
        (b"\xff", b"5"),
        (b"a", b"inf"),
        (b"b", b"nan"),
        (b"c", b"-1"),
        (b"d", b"1e999"),
        (b"f", b"0x1f"),
        (b"e", b"1.2.3"),
    ]
    found = read_page(page((b"ann", b"7.5"), *odd))
    assert found.revocations == [Revocation("ann", 7.5)]
    assert (found.last, found.skipped) == (ReadPosition(b"e", b"1.2.3", 7), len(odd))
    assert read_page(page((b"x" * 128, b"1e+22"))).revocations == [Revocation("x" * 128, 1e22)]
    assert read_page(b"") == ([], None, 0)


@pytest.mark.parametrize("seed", range(10))
def test_randomly_changed_page_is_read_or_raises_value_error(seed: int) -> None:
    dice = random.Random(seed)
    good = page((b"ann", b"1732600000.25"), (b"b o:b 1", b"5"), (b"\xff", b"1"))
    for _ in range(2_000):
        bent = bytearray(good)
        for _ in range(dice.randrange(4)):
            place = dice.randrange(len(bent))
            bent[place : place + dice.randrange(3)] = dice.choice((b"", b"9", b":", b" ", dice.randbytes(2)))
        try:
            found = read_page(bytes(bent))
        except ValueError:
            continue
        assert all(0 <= each.before_s < float("inf") and each.user for each in found.revocations)


def test_pages_of_revocations_are_requested_until_an_empty_one() -> None:
    bus, learned, outcomes = Bus(), list[Revocation](), list[str]()
    load_revocations(bus, Names("w"), learned.append, outcomes.append)
    assert b"$0\r\n\r\n$0\r\n\r\n$1\r\n0\r\n" in bus.answer("", page((b"ann", b"9"), (b"bob", b"8")))
    assert b"$3\r\nbob\r\n$1\r\n8\r\n$1\r\n7\r\n" in bus.answer("", page((b"cy", b"7")))
    assert not outcomes
    bus.answer("", b"")
    assert learned == [("ann", 9.0), ("bob", 8.0), ("cy", 7.0)]
    assert outcomes == [""]
    assert not bus.sent


def test_reading_stops_after_the_most_pages_although_the_bus_has_more() -> None:
    bus, learned, outcomes = Bus(), list[Revocation](), list[str]()
    load_revocations(bus, Names("w"), learned.append, outcomes.append)
    text = page(*((b"u%d" % number, b"5") for number in range(8)))
    for _ in range(PAGES_MOST):
        assert not outcomes
        bus.answer("", text)
    assert outcomes == [""]
    assert not bus.sent
    assert len(learned) <= REVOCATIONS_MOST


@pytest.mark.parametrize("outcome", ["down", "full", "unknown", "refused"])
def test_failed_reading_of_revocations_is_counted_and_repeated_later(outcome: str) -> None:
    rig = KeeperRig()
    rig.keeper.tick(NOW_S)
    assert not rig.bus.sent, "the bus has not been up yet"
    rig.keeper.on_up()
    rig.keeper.tick(NOW_S)
    rig.keeper.tick(NOW_S)
    assert len(rig.bus.sent) == 1, "one reading at a time"
    rig.bus.answer(outcome)
    assert rig.counts["revocations_unread"] == 1
    rig.keeper.tick(NOW_S + 0.5)
    assert not rig.bus.sent
    rig.keeper.tick(NOW_S + revocations.RETRY_MOST_S)
    rig.bus.answer("", b"nonsense")
    assert rig.counts["revocations_unread"] == 2
    rig.keeper.tick(NOW_S + 3 * revocations.RETRY_MOST_S)
    rig.bus.answer("", page((b"ann", b"5")))
    assert not rig.keeper.has_read
    rig.bus.answer("", b"")
    assert rig.keeper.has_read
    assert rig.learned == [("ann", 5.0)]


def test_revocations_are_read_again_soon_after_a_reconnect_and_then_rarely() -> None:
    rig = KeeperRig()
    rig.keeper.on_up()
    rig.keeper.tick(NOW_S)
    rig.bus.answer()
    rig.keeper.tick(NOW_S + SECOND_READING_S - 1)
    assert not rig.bus.sent
    rig.keeper.tick(NOW_S + SECOND_READING_S)
    rig.bus.answer()
    rig.keeper.tick(NOW_S + SECOND_READING_S + RELOAD_S / 2)
    assert not rig.bus.sent
    rig.keeper.tick(NOW_S + SECOND_READING_S + RELOAD_S * 2)
    assert len(rig.bus.sent) == 1


def test_revocation_from_the_bus_is_applied_only_if_later_than_the_known_one() -> None:
    rig = KeeperRig({"ann": 9.0, "bob": 3.0})
    rig.keeper.on_up()
    rig.keeper.tick(NOW_S)
    rig.bus.answer("", page((b"ann", b"8"), (b"bob", b"4"), (b"bob", b"4")))
    assert rig.learned == [("bob", 4.0)]


def test_revocation_missing_on_the_bus_is_stored_again_unless_past_its_retention() -> None:
    now_s = time.time()
    kept, old = now_s - 60, now_s - RETENTION_S - 60
    rig = KeeperRig({"ann": kept, "bob": kept, "cy": old})
    rig.keeper.on_up()
    rig.keeper.tick(NOW_S)
    rig.bus.answer("", page((b"bob", repr(kept).encode())))
    rig.bus.answer()
    rig.keeper.tick(NOW_S + 1)
    assert [b"\r\nann\r\n" in command for command, _ in rig.bus.sent] == [True]
    assert rig.keeper.waiting == 1
    rig.bus.answer("", b"0")
    assert rig.keeper.waiting == 0


@pytest.mark.parametrize("outcome", ["down", "full", "unknown", "refused"])
def test_failed_store_of_a_revocation_is_repeated_until_the_bus_accepts(outcome: str) -> None:
    rig = KeeperRig()
    rig.keeper.store("ann", 5.0)
    rig.keeper.store("ann", 4.0)
    rig.keeper.tick(NOW_S)
    assert b"\r\nann\r\n$3\r\n5.0\r\n" in rig.bus.answer(outcome)
    assert rig.keeper.waiting == 1
    rig.keeper.tick(NOW_S + 0.5)
    assert not rig.bus.sent
    rig.keeper.tick(NOW_S + revocations.RETRY_MOST_S)
    rig.bus.answer("", b"3")
    assert rig.keeper.waiting == 0
    assert rig.counts["revocations_forgotten"] == 3
    rig.keeper.tick(NOW_S + 10_000)
    assert not rig.bus.sent


@pytest.mark.parametrize("text", [b"", b"x", b"-1", b"9" * 5_000, b"\xb2"])
def test_malformed_reply_to_a_store_is_accepted_without_an_error(text: bytes) -> None:
    rig = KeeperRig()
    rig.keeper.store("ann", 5.0)
    rig.keeper.tick(NOW_S)
    rig.bus.answer("", text)
    assert rig.keeper.waiting == 0
    assert not rig.counts


def test_stores_are_bounded_in_each_tick_in_progress_and_in_total() -> None:
    rig = KeeperRig()
    for number in range(REVOCATIONS_MOST + 2):
        rig.keeper.store(f"u{number}", 5.0)
    assert rig.keeper.waiting == REVOCATIONS_MOST
    assert rig.counts["revocations_forgotten"] == 2
    for tick in range(20):
        rig.keeper.tick(NOW_S + tick)
        assert len(rig.bus.sent) == min(STORES_PER_TICK * (tick + 1), revocations.STORES_UNDER_WAY)
    assert PAGE_BYTES < REPLY_LIMIT_BYTES


@pytest.mark.parametrize("outcome", ["down", "unknown", "refused"])
def test_revocation_that_is_withdrawn_while_it_is_being_stored_is_not_stored_again(outcome: str) -> None:
    rig = KeeperRig()
    rig.keeper.store("ann", 5.0)
    rig.keeper.tick(NOW_S)
    rig.keeper.forget("ann")
    rig.bus.answer(outcome)
    rig.keeper.tick(NOW_S + 1_000)
    assert (rig.bus.sent, rig.keeper.waiting) == ([], 0)
    # A new revocation of the user is stored.
    rig.keeper.store("ann", 6.0)
    rig.keeper.tick(NOW_S + 2_000)
    assert len(rig.bus.sent) == 1


def test_new_revocation_after_a_withdrawal_is_stored_although_an_older_command_fails() -> None:
    rig = KeeperRig()
    rig.keeper.store("ann", 5.0)
    rig.keeper.tick(NOW_S)
    rig.keeper.forget("ann")
    rig.keeper.store("ann", 7.0)
    rig.bus.answer("down")
    rig.keeper.tick(NOW_S + 1_000)
    assert b"7" in rig.bus.answer()
    assert rig.keeper.waiting == 0


def test_revocation_that_is_withdrawn_during_a_reading_is_not_learned_from_it() -> None:
    rig = KeeperRig()
    rig.keeper.on_up()
    rig.keeper.tick(NOW_S)
    rig.keeper.forget("ann")
    score = b"%d" % int(time.time())
    rig.bus.answer("", page((b"ann", score), (b"bob", score)))
    assert [user for user, _ in rig.learned] == ["bob"]
    while rig.bus.sent:
        rig.bus.answer("", b"")
    # The next reading finds what is on the bus then.
    rig.keeper.tick(NOW_S + 10_000)
    rig.bus.answer("", page((b"ann", score)))
    assert "ann" in rig.known
