"""Memory accounts of the reactor: what is taken for an object is given back with the same size."""

import pytest

from tests.support.reactor_rig import rig
from wsgate.reactor import Settings

CLASS_BOUNDS = (24, 32, 64, 128, 256, 512, 1_024)
"""Where a channel name moves into a block of its own, and where that block's size class ends."""
NAME_SIZES = sorted(
    {size for bound in CLASS_BOUNDS for size in range(bound - 1, bound + 2)} & set(range(1, 1_025))
)


@pytest.mark.parametrize("size", NAME_SIZES)
def test_channel_account_returns_to_its_start_after_names_of_this_size(size: int) -> None:
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
    """A block that went back into a larger class than its own would be written behind its end."""
    with rig() as bench:
        peer = bench.connect()
        for size in (30, 64):
            names = [b"%0*d" % (size, number) for number in range(100)]
            for name in names:
                assert bench.reactor.subscribe(peer.conn, name) == 1
            assert set(bench.reactor.subscriptions(peer.conn)) == set(names)
            for name in names:
                assert bench.reactor.unsubscribe(peer.conn, name) == 0


def test_names_of_channels_are_counted_until_the_last_trace_of_each_is_gone() -> None:
    with rig(Settings(report_vacated=True)) as bench:
        one, two = bench.connect(), bench.connect()
        for peer in (one, two):
            bench.reactor.subscribe(peer.conn, b"n" * 100)
        bench.reactor.subscribe(one.conn, b"news")
        assert bench.reactor.channel_names() == (2, 104)
        bench.reactor.unsubscribe(one.conn, b"n" * 100)
        assert not bench.reactor.is_vacated(b"n" * 100), "somebody is still there"
        bench.reactor.unsubscribe(two.conn, b"n" * 100)
        assert bench.reactor.is_vacated(b"n" * 100) and not bench.reactor.is_vacated(b"other")
        assert bench.reactor.channel_names() == (2, 104), "its owner has not been told"
        bench.reactor.subscribe(two.conn, b"n" * 100)
        assert not bench.reactor.is_vacated(b"n" * 100)
        bench.reactor.unsubscribe(two.conn, b"n" * 100)
        assert bench.reactor.take_vacated(10) == [b"n" * 100]
        assert not bench.reactor.is_vacated(b"n" * 100)
        assert bench.reactor.channel_names() == (1, 4)
