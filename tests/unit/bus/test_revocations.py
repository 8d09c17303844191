"""Revocations on the bus: what is read is checked, what is not stored is tried again, all of it bounded."""

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
    """Commands as they are sent, in order; the test answers them."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Done]] = []

    def call(self, key: bytes, command: bytes, done: Done) -> None:
        assert key == b"w:revoked"
        self.sent.append((command, done))

    def answer(self, outcome: str = "", text: bytes = b"") -> bytes:
        """Answer the oldest command, which is returned."""
        command, done = self.sent.pop(0)
        done(outcome, text)
        return command


class Desk:
    """One keeper, what its shard knows, and what was counted."""

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
def test_a_page_that_the_script_does_not_return_is_refused(text: bytes) -> None:
    for whole in (text, b"7|" + text):
        with pytest.raises(ValueError, match="page"):
            read_page(whole)
    assert read_page(b"7|1 1:a").revocations == [Revocation("a", 1.0)]


@pytest.mark.parametrize("start", [b"", b"|", b"7", b"7|", b"-1|", b"x|", b"9999999999|", b"7 |"])
def test_a_page_that_does_not_say_where_it_ends_is_refused(start: bytes) -> None:
    with pytest.raises(ValueError, match="page"):
        read_page(start if start == b"7|" else start + b"1 1:a")


def test_an_entry_that_is_no_revocation_is_skipped_and_reading_goes_on_behind_it() -> None:
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
def test_a_page_of_any_bytes_is_read_or_refused(seed: int) -> None:
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


def test_pages_are_read_one_after_the_other_until_one_is_empty() -> None:
    bus, learned, outcomes = Bus(), list[Revocation](), list[str]()
    load_revocations(bus, Names("w"), learned.append, outcomes.append)
    assert b"$0\r\n\r\n$0\r\n\r\n$1\r\n0\r\n" in bus.answer("", page((b"ann", b"9"), (b"bob", b"8")))
    assert b"$3\r\nbob\r\n$1\r\n8\r\n$1\r\n7\r\n" in bus.answer("", page((b"cy", b"7")))
    assert not outcomes
    bus.answer("", b"")
    assert learned == [("ann", 9.0), ("bob", 8.0), ("cy", 7.0)]
    assert outcomes == [""]
    assert not bus.sent


def test_a_bus_that_always_has_one_more_page_is_read_within_a_bound() -> None:
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
def test_a_reading_that_fails_is_counted_and_tried_again(outcome: str) -> None:
    desk = Desk()
    desk.keeper.tick(NOW_S)
    assert not desk.bus.sent, "the bus was never there"
    desk.keeper.on_up()
    desk.keeper.tick(NOW_S)
    desk.keeper.tick(NOW_S)
    assert len(desk.bus.sent) == 1, "one reading at a time"
    desk.bus.answer(outcome)
    assert desk.counts["revocations_unread"] == 1
    desk.keeper.tick(NOW_S + 0.5)
    assert not desk.bus.sent
    desk.keeper.tick(NOW_S + revocations.RETRY_MOST_S)
    desk.bus.answer("", b"nonsense")
    assert desk.counts["revocations_unread"] == 2
    desk.keeper.tick(NOW_S + 3 * revocations.RETRY_MOST_S)
    desk.bus.answer("", page((b"ann", b"5")))
    assert not desk.keeper.has_read
    desk.bus.answer("", b"")
    assert desk.keeper.has_read
    assert desk.learned == [("ann", 5.0)]


def test_everything_is_read_again_soon_after_the_bus_came_back_and_then_seldom() -> None:
    desk = Desk()
    desk.keeper.on_up()
    desk.keeper.tick(NOW_S)
    desk.bus.answer()
    desk.keeper.tick(NOW_S + SECOND_READING_S - 1)
    assert not desk.bus.sent
    desk.keeper.tick(NOW_S + SECOND_READING_S)
    desk.bus.answer()
    desk.keeper.tick(NOW_S + SECOND_READING_S + RELOAD_S / 2)
    assert not desk.bus.sent
    desk.keeper.tick(NOW_S + SECOND_READING_S + RELOAD_S * 2)
    assert len(desk.bus.sent) == 1


def test_only_a_later_time_is_learned() -> None:
    desk = Desk({"ann": 9.0, "bob": 3.0})
    desk.keeper.on_up()
    desk.keeper.tick(NOW_S)
    desk.bus.answer("", page((b"ann", b"8"), (b"bob", b"4"), (b"bob", b"4")))
    assert desk.learned == [("bob", 4.0)]


def test_what_the_bus_has_lost_is_written_back_while_a_token_may_live() -> None:
    now_s = time.time()
    kept, old = now_s - 60, now_s - RETENTION_S - 60
    desk = Desk({"ann": kept, "bob": kept, "cy": old})
    desk.keeper.on_up()
    desk.keeper.tick(NOW_S)
    desk.bus.answer("", page((b"bob", repr(kept).encode())))
    desk.bus.answer()
    desk.keeper.tick(NOW_S + 1)
    assert [b"\r\nann\r\n" in command for command, _ in desk.bus.sent] == [True]
    assert desk.keeper.waiting == 1
    desk.bus.answer("", b"0")
    assert desk.keeper.waiting == 0


@pytest.mark.parametrize("outcome", ["down", "full", "unknown", "refused"])
def test_a_revocation_is_stored_until_the_bus_has_it(outcome: str) -> None:
    desk = Desk()
    desk.keeper.store("ann", 5.0)
    desk.keeper.store("ann", 4.0)
    desk.keeper.tick(NOW_S)
    assert b"\r\nann\r\n$3\r\n5.0\r\n" in desk.bus.answer(outcome)
    assert desk.keeper.waiting == 1
    desk.keeper.tick(NOW_S + 0.5)
    assert not desk.bus.sent
    desk.keeper.tick(NOW_S + revocations.RETRY_MOST_S)
    desk.bus.answer("", b"3")
    assert desk.keeper.waiting == 0
    assert desk.counts["revocations_forgotten"] == 3
    desk.keeper.tick(NOW_S + 10_000)
    assert not desk.bus.sent


@pytest.mark.parametrize("text", [b"", b"x", b"-1", b"9" * 5_000, b"\xb2"])
def test_an_odd_answer_to_storing_raises_nothing(text: bytes) -> None:
    desk = Desk()
    desk.keeper.store("ann", 5.0)
    desk.keeper.tick(NOW_S)
    desk.bus.answer("", text)
    assert desk.keeper.waiting == 0
    assert not desk.counts


def test_storing_is_bounded_in_each_tick_and_in_all() -> None:
    desk = Desk()
    for number in range(REVOCATIONS_MOST + 2):
        desk.keeper.store(f"u{number}", 5.0)
    assert desk.keeper.waiting == REVOCATIONS_MOST
    assert desk.counts["revocations_forgotten"] == 2
    for tick in range(20):
        desk.keeper.tick(NOW_S + tick)
        assert len(desk.bus.sent) == min(STORES_PER_TICK * (tick + 1), revocations.STORES_UNDER_WAY)
    assert PAGE_BYTES < REPLY_LIMIT_BYTES
