"""Check the backlog of publications against a plain list, and the way of publications from reader to hub."""

import random
from collections import deque
from collections.abc import Callable
from typing import cast

import pytest

from tests.support.sizes import draw_size
from wsgate.bus import Backlog
from wsgate.bus.push import CONTROL, SUBSCRIBED, PushReader
from wsgate.reactor import Reactor
from wsgate.shard import pacing
from wsgate.shard.pacing import Pacer

PREFIX = b"wsgate:ch:"
MIB = 1 << 20


def message(name: bytes, payload: bytes) -> bytes:
    return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)


def drain(backlog: Backlog) -> list[tuple[bytes, bytes | None]]:
    taken = []
    while (each := backlog.take()) is not None:
        taken.append(each)
    return taken


# --- the queue --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_backlog_agrees_with_a_plain_list_after_random_steps(seed: int) -> None:
    """Names and payloads have every size. No byte changes, and the memory of all entries is accounted."""
    dice = random.Random(seed)
    backlog, model = Backlog(64 * MIB), deque[tuple[bytes, bytes | None]]()
    for _ in range(3_000):
        if dice.random() < 0.55:
            name = dice.randbytes(draw_size(dice, 2_000, least=1))
            payload = None if dice.random() < 0.05 else dice.randbytes(draw_size(dice, 70_000))
            backlog.put(name, payload)
            model.append((name, payload))
        else:
            assert backlog.take() == (model.popleft() if model else None)
        assert len(backlog) == len(model)
        waiting = sum(8 + len(name) + len(payload or b"") for name, payload in model)
        assert backlog.held_bytes >= waiting
    assert drain(backlog) == list(model)
    assert backlog.held_bytes <= 256 * 1024
    assert not backlog.has_lost and backlog.dropped == 0


def test_memory_of_the_backlog_is_freed_as_the_backlog_shrinks() -> None:
    backlog = Backlog(64 * MIB)
    for _ in range(20_000):
        backlog.put(b"news", bytes(1_000))
    full = backlog.held_bytes
    assert 20_000 * 1_012 < full < 20_000 * 1_012 * 1.02 + 512 * 1024
    for _ in range(15_000):
        backlog.take()
    assert backlog.held_bytes < full / 3
    drain(backlog)
    assert backlog.held_bytes <= 256 * 1024, "a chunk that was hardly used is kept"


def test_full_backlog_drops_the_oldest_publications_and_names_their_channels() -> None:
    backlog = Backlog(MIB)
    for number in range(3_000):
        backlog.put(b"old" if number < 10 else b"news", b"%04d" % number + bytes(1_000))
        assert backlog.held_bytes <= MIB + 200
    assert backlog.dropped == 3_000 - len(backlog)
    assert backlog.has_lost
    assert {backlog.take_lost(), backlog.take_lost()} == {b"old", b"news"}
    assert not backlog.has_lost
    numbers = [int((payload or b"")[:4]) for _, payload in drain(backlog)]
    assert numbers == list(range(backlog.dropped, 3_000)), "the youngest are left, in order"
    assert len(numbers) > 900


def test_publication_larger_than_the_limit_replaces_all_others_in_the_backlog() -> None:
    backlog = Backlog(64 * 1024)
    backlog.put(b"a", b"small")
    backlog.put(b"b", bytes(300_000))
    assert backlog.take_lost() == b"a"
    backlog.put(b"c", bytes(5_000))
    assert backlog.take_lost() == b"b"
    assert drain(backlog) == [(b"c", bytes(5_000))]
    assert backlog.held_bytes <= 64 * 1024


def test_losses_of_too_many_channels_are_reported_as_one_loss_of_all_channels() -> None:
    backlog = Backlog(64 * 1024)
    most = 0
    for number in range(200_000):
        backlog.put(b"channel %d" % number, b"")
        most = max(most, backlog.held_bytes)
    assert backlog.has_lost
    assert backlog.take_lost() is None
    assert not backlog.has_lost
    assert most < 64 * 1024 + 1_100 * 60


# --- out of the reader ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
def test_reader_puts_publications_into_the_backlog_and_returns_other_replies(step: int) -> None:
    reader, backlog = PushReader(PREFIX, 100), Backlog(MIB)
    wire = (
        message(PREFIX + b"a", b"1")
        + message(b"control", b"now")
        + message(PREFIX + b"a", bytes(101))
        + b"*3\r\n$9\r\nsubscribe\r\n$11\r\nwsgate:ch:b\r\n:1\r\n"
        + message(PREFIX + b"b", b"2")
        + message(b"control", bytes(101))
    )
    replies: list[tuple[int, bytes, bytes | None]] = []
    for place in range(0, len(wire), step):
        reader.feed(wire[place : place + step])
        replies += reader.take(16, backlog)
    assert replies == [(CONTROL, b"control", b"now"), (SUBSCRIBED, b"b", None), (CONTROL, b"control", b"")]
    assert drain(backlog) == [(b"a", b"1"), (b"a", None), (b"b", b"2")]
    assert reader.publications == 3


def test_oversized_publication_of_50_mb_is_skipped_within_512_kib() -> None:
    reader, backlog = PushReader(PREFIX, 100), Backlog(MIB)
    size = 50_000_000
    reader.feed(b"*3\r\n$7\r\nmessage\r\n$11\r\nwsgate:ch:a\r\n$%d\r\n" % size)
    most = 0
    for _ in range(size // 50_000):
        assert reader.take(16, backlog) == []
        reader.feed(bytes(50_000))
        most = max(most, reader.buffered + backlog.held_bytes)
    reader.feed(b"\r\n" + message(PREFIX + b"a", b"next"))
    assert reader.take(16, backlog) == []
    assert drain(backlog) == [(b"a", None), (b"a", b"next")]
    assert most < 512 * 1024


# --- to the hub -------------------------------------------------------------------------------------


class Room:
    """A reactor that has room for so many publications."""

    def __init__(self, room: int) -> None:
        self.room = room

    @property
    def is_full(self) -> bool:
        return self.room <= 0


class FakeHub:
    """A hub that records its calls."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.calls: list[object] = []
        self.gaps_left = 0

    def on_message(self, name: bytes, data: bytes | None) -> None:
        self.room.room -= 1
        if data == b"poison":
            raise ValueError("planted")
        self.calls.append(data)

    def on_dropped(self, name: bytes | None) -> None:
        self.calls.append(("gap", name))
        self.gaps_left += 2 * (name is None)

    @property
    def has_gaps(self) -> bool:
        return self.gaps_left > 0

    def gap_step(self) -> None:
        self.gaps_left -= 1
        self.calls.append("gap step")


def pacer(limit: int = MIB, room: int = 1_000_000) -> tuple[Backlog, Room, FakeHub, Pacer, list[Exception]]:
    backlog, space, faults = Backlog(limit), Room(room), list[Exception]()
    hub = FakeHub(space)
    return backlog, space, hub, Pacer(backlog, hub, cast(Reactor, space), faults.append), faults


def test_pacer_passes_on_only_as_many_publications_as_the_reactor_has_room_for() -> None:
    backlog, space, hub, paced, _ = pacer(room=3)
    for number in range(8):
        backlog.put(b"a", b"%d" % number)
    paced.step()
    assert not paced.is_ready
    assert hub.calls == [b"0", b"1", b"2"]
    space.room = 2
    paced.step()
    space.room = 100
    paced.step()
    assert hub.calls == [b"%d" % number for number in range(8)]


def test_pacer_passes_on_no_publication_while_the_backlog_is_held() -> None:
    backlog, _, hub, paced, _ = pacer()
    backlog.put(b"a", b"1")
    backlog.hold()
    paced.step()
    assert not paced.is_ready
    assert hub.calls == []
    backlog.release()
    paced.step()
    assert hub.calls == [b"1"]


def test_loss_of_a_channel_is_reported_before_later_publications() -> None:
    backlog, _, hub, paced, _ = pacer(limit=64 * 1024)
    for number in range(200):
        backlog.put(b"a", b"%03d" % number + bytes(1_000))
    while paced.is_ready:
        paced.step()
    assert hub.calls[0] == ("gap", b"a")
    assert [cast(bytes, data)[:3] for data in hub.calls[1:]] == [
        b"%03d" % number for number in range(backlog.dropped, 200)
    ]


def test_loss_of_all_channels_is_notified_in_steps_before_later_publications() -> None:
    backlog, _, hub, paced, _ = pacer(limit=64 * 1024)
    for number in range(100_000):
        backlog.put(b"channel %d" % number, b"")
    while paced.is_ready:
        paced.step()
    assert hub.calls[:3] == [("gap", None), "gap step", "gap step"]
    assert set(hub.calls[3:]) == {b""}


def test_one_pass_is_bounded_by_number_of_publications_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    backlog, _, hub, paced, _ = pacer()
    for _ in range(1_000):
        backlog.put(b"a", b"1")
    paced.step()
    assert len(hub.calls) <= pacing.PASS_PUBLICATIONS
    clock = iter(range(1_000_000))
    times: Callable[[], float] = lambda: next(clock) / 1000  # noqa: E731
    monkeypatch.setattr(pacing, "time", type("Clock", (), {"monotonic": staticmethod(times)}))
    before = len(hub.calls)
    paced.step()
    assert len(hub.calls) - before <= 3 * pacing.STEP


def test_exception_in_the_hub_loses_only_that_publication() -> None:
    backlog, _, hub, paced, faults = pacer()
    for payload in (b"1", b"poison", b"2"):
        backlog.put(b"a", payload)
    paced.step()
    assert hub.calls == [b"1", b"2"]
    assert [type(fault) for fault in faults] == [ValueError]
