"""Check that the reactor frees each object with the size that it was allocated with."""

import pytest

from tests.support.reactor_rig import rig
from wsgate.reactor import Settings

CLASS_BOUNDS = (24, 32, 64, 128, 256, 512, 1_024)
"""Sizes at which a name moves into its own block, and at which the size class of that block ends."""
NAME_SIZES = sorted(
    {size for bound in CLASS_BOUNDS for size in range(bound - 1, bound + 2)} & set(range(1, 1_025))
)


@pytest.mark.parametrize("size", NAME_SIZES)
def test_channel_memory_account_is_unchanged_after_subscribing_and_unsubscribing_a_name_of_any_size(
    size: int,
) -> None:
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.subscribe(peer.conn, b"first")
        bench.reactor.unsubscribe(peer.conn, b"first")
        start = bench.held()
        for number in range(40):
            name = b"%d:" % number
            name += b"n" * (size - len(name))
            bench.reactor.subscribe(peer.conn, name[:size])
            bench.reactor.unsubscribe(peer.conn, name[:size])
        assert bench.held() == start


def test_blocks_of_long_names_are_not_reused_for_longer_ones() -> None:
    """A block that was freed into a larger class than its own would be written beyond its end."""
    with rig() as bench:
        peer = bench.connect()
        for size in (30, 64):
            names = [b"%0*d" % (size, number) for number in range(100)]
            for name in names:
                assert bench.reactor.subscribe(peer.conn, name) == 1
            assert set(bench.reactor.subscriptions(peer.conn)) == set(names)
            for name in names:
                assert bench.reactor.unsubscribe(peer.conn, name) == 0


def test_channel_name_is_counted_until_the_caller_takes_its_vacancy() -> None:
    with rig(Settings(report_vacated=True)) as bench:
        one, two = bench.connect(), bench.connect()
        for peer in (one, two):
            bench.reactor.subscribe(peer.conn, b"n" * 100)
        bench.reactor.subscribe(one.conn, b"news")
        assert bench.reactor.channel_names() == (2, 104)
        bench.reactor.unsubscribe(one.conn, b"n" * 100)
        assert not bench.reactor.is_vacated(b"n" * 100), "one subscriber is left"
        bench.reactor.unsubscribe(two.conn, b"n" * 100)
        assert bench.reactor.is_vacated(b"n" * 100) and not bench.reactor.is_vacated(b"other")
        assert bench.reactor.channel_names() == (2, 104), "the caller has not taken the vacancy yet"
        bench.reactor.subscribe(two.conn, b"n" * 100)
        assert not bench.reactor.is_vacated(b"n" * 100)
        bench.reactor.unsubscribe(two.conn, b"n" * 100)
        assert bench.reactor.take_vacated(10) == [b"n" * 100]
        assert not bench.reactor.is_vacated(b"n" * 100)
        assert bench.reactor.channel_names() == (1, 4)
