"""Memory accounts of the reactor: what is taken for an object is given back with the same size."""

import pytest

from tests.support.rig import rig

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
