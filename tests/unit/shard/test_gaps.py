"""Check notices of loss of one shard: their causes, recipients and number, and the work of one pass."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.support.reactor_rig import Peer, Rig
from wsgate.dialects import DIALECTS
from wsgate.reactor import Reactor, Settings
from wsgate.shard import gaps
from wsgate.shard.gaps import CHANNELS_MOST, MERGE_MS, SETTLE_MS, SLOTS_PER_PASS, Gaps, spread_ms_for
from wsgate.shard.publication_encoder import PublicationEncoder

SPREAD_MS = 60_000
SETTINGS = Settings(
    variant_opcodes=tuple(dialect.opcode for dialect in DIALECTS),
    max_subscriptions=5_000,
    report_vacated=True,
)


class GapsRig(Rig):
    """A rig with the notices of a shard on it, and a clock that the test moves."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.counts: Counter[str] = Counter()
        self.time_ms = 1_000_000
        self.spread_ms = SPREAD_MS
        forms = PublicationEncoder(512, self._count)
        self.gaps = Gaps(
            self.reactor,
            forms,
            self._count,
            lambda: self.spread_ms,
            lambda: self.time_ms,
            variants=len(DIALECTS),
        )

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def subscriber(self, *channels: bytes, variant: int = 0) -> Peer:
        peer = self.connect(variant=variant)
        for channel in channels:
            assert self.reactor.subscribe(peer.conn, channel) > 0
        return peer

    def run(self, *, is_settled: bool = True) -> int:
        """Run passes until none has more to do; return the number of passes."""
        for number in range(1, 5_000):
            has_more = self.gaps.step(is_settled=is_settled)
            self.turn()
            if not has_more:
                return number
        raise AssertionError("the passes do not end")

    def gaps_received(self, peer: Peer) -> list[dict[str, Any]]:
        """Return the gaps that a peer received since the last call."""
        self.turn()
        frames = [frame for frame in peer.frames() if frame.opcode in (1, 2)]
        return [
            json.loads(frame.payload) if frame.opcode == 1 else msgspec.msgpack.decode(frame.payload)
            for frame in frames
        ]


@pytest.fixture
def bench() -> Iterator[GapsRig]:
    made = GapsRig()
    try:
        yield made
    finally:
        made.close()


# --- a break of the bus -------------------------------------------------------------------------------


def test_loss_of_two_channels_sends_each_subscriber_one_gap_without_a_channel(bench: GapsRig) -> None:
    peers = [bench.subscriber(b"a", b"b", variant=number % 2) for number in range(4)]
    idle = bench.connect()
    for name in (b"a", b"b"):
        bench.gaps.mark(name)
    bench.run()
    for peer in peers:
        [gap] = bench.gaps_received(peer)
        assert (gap["op"], gap["reason"], "ch" in gap) == ("gap", "bus", False)
        assert 0 <= gap["retry_ms"] <= SPREAD_MS
    assert bench.gaps_received(idle) == []
    assert bench.counts["gaps_bus"] == 4


def test_retry_times_of_gaps_are_spread_over_the_whole_spread_time(bench: GapsRig) -> None:
    peers = [bench.subscriber(b"a") for _ in range(64)]
    for _ in range(4):
        bench.gaps.mark(b"a")
        bench.run()
        bench.time_ms += MERGE_MS
    times = [gap["retry_ms"] for peer in peers for gap in bench.gaps_received(peer)]
    assert len(times) == 4 * 64
    assert len(set(times)) >= 32, "16 in each of 4 rounds, but for coincidences"
    assert min(times) < SPREAD_MS / 2 < max(times)


def test_spread_time_grows_with_the_number_of_clients() -> None:
    assert [spread_ms_for(number) for number in (0, 10_000, 1_000_000)] == [2_000, 2_000, 200_000]


def test_gap_is_sent_after_the_settle_time_although_channels_are_not_resubscribed(bench: GapsRig) -> None:
    peer = bench.subscriber(b"a")
    bench.gaps.mark(b"a")
    bench.run(is_settled=False)
    bench.time_ms += SETTLE_MS - 1
    bench.run(is_settled=False)
    assert bench.gaps_received(peer) == []
    bench.time_ms += 1
    bench.run(is_settled=False)
    assert len(bench.gaps_received(peer)) == 1


def test_losses_in_quick_succession_send_one_gap_in_2_s_and_a_last_one(bench: GapsRig) -> None:
    peer = bench.subscriber(b"a")
    received = []
    for number in range(20):  # one every 300 ms
        bench.gaps.mark(b"a")
        bench.run()
        received += [(number, gap["reason"]) for gap in bench.gaps_received(peer)]
        bench.time_ms += 300
    assert received == [(0, "bus"), (7, "bus"), (14, "bus")], "one in 2 s"
    bench.time_ms += MERGE_MS
    bench.run()
    assert len(bench.gaps_received(peer)) == 1, "the loss after the last notice"
    bench.time_ms += MERGE_MS
    bench.run()
    assert bench.gaps_received(peer) == []


def test_loss_during_a_walk_is_notified_after_the_walk_and_the_merge_time(
    bench: GapsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "SLOTS_PER_PASS", 1)
    first, second = bench.subscriber(b"a"), bench.subscriber(b"b")
    bench.gaps.mark(b"a")
    bench.gaps.mark(b"b")
    assert bench.gaps.step(is_settled=True)
    assert (len(bench.gaps_received(first)), len(bench.gaps_received(second))) == (1, 0)
    bench.gaps.mark(b"a")
    bench.run()
    assert (len(bench.gaps_received(first)), len(bench.gaps_received(second))) == (0, 1)
    bench.time_ms += MERGE_MS
    bench.run()
    assert (len(bench.gaps_received(first)), len(bench.gaps_received(second))) == (1, 0)


def test_one_pass_visits_at_most_the_configured_number_of_slots(
    bench: GapsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "SLOTS_PER_PASS", 8)
    peers = [bench.subscriber(b"a") for _ in range(40)]
    bench.gaps.mark(b"a")
    passes, most = 0, 0
    while bench.gaps.step(is_settled=True):
        passes += 1
        received = sum(len(bench.gaps_received(peer)) for peer in peers)
        most = max(most, received)
    assert (passes, most) == (1_024 // 8 - 1, 8)
    assert bench.counts["gaps_bus"] == 40


def test_number_of_gap_encodings_depends_on_passes_and_not_on_connections(
    bench: GapsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(200):
        bench.subscriber(b"a")
    bench.gaps.mark(b"a")
    made = 0
    encode = bench.gaps._encode

    def counted(*arguments: Any) -> bytes:
        nonlocal made
        made += 1
        return encode(*arguments)

    monkeypatch.setattr(bench.gaps, "_encode", counted)
    passes = bench.run()
    assert made == passes * gaps.FORMS_PER_PASS * len(DIALECTS)
    assert passes == 1_024 // SLOTS_PER_PASS


# --- one publication ----------------------------------------------------------------------------------


def test_skipped_publication_sends_a_gap_with_its_channel_and_reason(bench: GapsRig) -> None:
    news, inbox = bench.subscriber(b"news"), bench.subscriber(b"@ann", variant=1)
    bench.gaps.gap(b"news", "too_large")
    bench.gaps.gap(b"@ann", "slow")
    bench.gaps.gap(b"nobody", "slow")
    [of_news], [of_inbox] = bench.gaps_received(news), bench.gaps_received(inbox)
    assert (of_news["ch"], of_news["reason"]) == ("news", "too_large")
    assert (of_inbox["ch"], of_inbox["reason"]) == ("@me", "slow")
    assert (bench.counts["gaps_too_large"], bench.counts["gaps_slow"]) == (1, 1)


def test_1000_skipped_publications_of_a_channel_send_two_gaps(bench: GapsRig) -> None:
    peer = bench.subscriber(b"news")
    for _ in range(1_000):
        bench.gaps.gap(b"news", "too_large")
        bench.run()
    assert len(bench.gaps_received(peer)) == 1
    bench.time_ms += MERGE_MS
    bench.run()
    assert len(bench.gaps_received(peer)) == 1, "the losses after the first gap"
    bench.time_ms += MERGE_MS
    bench.run()
    assert bench.gaps_received(peer) == []
    bench.gaps.gap(b"news", "too_large")
    assert len(bench.gaps_received(peer)) == 1, "at once, after a quiet time"


def test_gap_of_a_large_channel_is_sent_by_passes_and_not_at_once(
    bench: GapsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "AT_ONCE", 10)
    monkeypatch.setattr(gaps, "SLOTS_PER_PASS", 16)
    peers = [bench.subscriber(b"news") for _ in range(40)]
    other = bench.subscriber(b"other")
    bench.gaps.gap(b"news", "too_large")
    assert [bench.gaps_received(peer) for peer in peers] == [[]] * 40
    bench.run()
    received = [bench.gaps_received(peer) for peer in peers]
    assert [len(each) for each in received] == [1] * 40
    assert {each[0]["ch"] for each in received} == {"news"}
    assert len({each[0]["retry_ms"] for each in received}) > 10
    assert bench.gaps_received(other) == []


def test_gaps_beyond_the_channel_limit_are_merged_into_one_for_all_channels(bench: GapsRig) -> None:
    names = [b"c%d" % number for number in range(CHANNELS_MOST + 50)]
    peer = bench.subscriber(*names)
    received = []
    for name in names:
        bench.gaps.gap(name, "slow")
        received += bench.gaps_received(peer)
    bench.run()
    received += bench.gaps_received(peer)
    assert [each.get("ch") for each in received[:-1]] == [name.decode() for name in names[:CHANNELS_MOST]]
    assert "ch" not in received[-1]
    assert received[-1]["reason"] == "slow"
    for _ in range(CHANNELS_MOST):
        bench.time_ms += MERGE_MS
        bench.run()
    assert not bench.gaps._told, "the state of each channel is dropped in the end"


def test_gap_of_a_slow_consumer_has_reason_slow_and_a_retry_time(bench: GapsRig) -> None:
    bench.spread_ms = 7
    for dialect in DIALECTS:
        text = bench.gaps.encode_slow(dialect.variant, b"@ann", 0, 0)
        gap = json.loads(text) if dialect.opcode == 1 else msgspec.msgpack.decode(text)
        assert gap.pop("retry_ms") in range(8)
        assert gap == {"op": "gap", "ch": "@me", "reason": "slow"}


def test_connections_with_compressed_variants_receive_gaps() -> None:
    from wsgate.shard.publication_encoder import VARIANTS, opcodes

    reactor_settings = Settings(variant_opcodes=opcodes(is_compressing=True))
    bench = Rig(reactor_settings)
    try:
        made: Reactor = bench.reactor
        gaps_of = Gaps(
            made,
            PublicationEncoder(512, lambda *_: None),
            lambda *_: None,
            lambda: 1,
            lambda: 0,
            variants=len(VARIANTS),
        )
        peers = [bench.connect(variant=variant) for variant in range(len(VARIANTS))]
        for peer in peers:
            made.subscribe(peer.conn, b"a")
        gaps_of.mark(b"a")
        while gaps_of.step(is_settled=True):
            bench.turn()
        bench.turn()
        assert [[frame.opcode for frame in peer.frames()] for peer in peers] == [
            [variant.dialect.opcode] for variant in VARIANTS
        ]
    finally:
        bench.close()
