"""Check which half-sent head is displaced by a new connection when every handshake place is taken."""

import socket

from tests.support.reactor_rig import Peer
from tests.support.tcp_rig import HEAD, Hall, hall, settle
from wsgate.reactor import GateLimits, Settings

HALF = HEAD[:40]
KEY = bytes(range(16))
"""With this key each address of these tests hashes into a group of its own."""
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
SETTINGS = Settings(head_timeout_response=TIMEOUT)
CROWD = "127.0.0.66"
OTHER = "127.0.0.3"
THIRD = "127.0.0.4"
LOCAL = b"\0" * 10 + b"\xff\xff" + socket.inet_aton("127.0.0.1")


def begin(bench: Hall, count: int, source: str) -> list[Peer]:
    """Connect clients of one address, each with half a head that the reactor has read."""
    crowd = []
    for _ in range(count):
        before = bench.count("accepted")
        crowd.append(bench.dial(HALF, source=source))
        settle(bench, lambda before=before: bench.count("accepted") == before + 1)  # type: ignore[misc]
        bench.now_ms += 1
    return crowd


def displaced(bench: Hall, peers: list[Peer]) -> list[int]:
    """Return the places in the list of the clients that were answered 408."""
    for peer in peers:
        peer.receive()
    return [place for place, peer in enumerate(peers) if bytes(peer.received) == TIMEOUT]


def test_half_heads_of_one_address_displace_each_other_and_no_other_address() -> None:
    with hall(SETTINGS, limits=GateLimits(handshakes_in_progress=8), hash_key=KEY) as bench:
        others = begin(bench, 3, OTHER)
        crowd = begin(bench, 30, CROWD)
        settle(bench, lambda: len(displaced(bench, crowd)) == 25)
        assert displaced(bench, crowd) == list(range(25)), (
            "the oldest first, and the newest keep their places"
        )
        assert displaced(bench, others) == []
        assert bench.count("ended_refused_handshakes") == 0
        for peer in others:
            peer.send(HEAD[40:])
            bench.meet(peer)


def test_complete_heads_are_accepted_while_one_address_fills_all_places_with_half_heads() -> None:
    with hall(SETTINGS, limits=GateLimits(handshakes_in_progress=8), hash_key=KEY) as bench:
        crowd = begin(bench, 8, CROWD)
        for source in (OTHER, CROWD, THIRD, CROWD):
            bench.meet(bench.dial(HEAD, source=source))
        settle(bench, lambda: displaced(bench, crowd) == [0])
        assert bench.count("now_head") == 7
        assert bench.count("ended_refused_handshakes") == 0


def test_oldest_half_head_is_displaced_when_all_addresses_have_equally_many() -> None:
    with hall(SETTINGS, limits=GateLimits(handshakes_in_progress=6), hash_key=KEY) as bench:
        peers = [begin(bench, 1, source)[0] for source in (OTHER, THIRD, CROWD) * 2]
        begin(bench, 1, "127.0.0.5")
        settle(bench, lambda: displaced(bench, peers) == [0])
        begin(bench, 1, "127.0.0.6")
        settle(bench, lambda: displaced(bench, peers) == [0, 1])


def test_half_heads_behind_a_proxy_count_for_the_address_in_the_proxy_header() -> None:
    limits = GateLimits(handshakes_in_progress=6, trusted_networks=((LOCAL, 128),), reads_proxy_header=True)
    with hall(SETTINGS, limits=limits, hash_key=KEY) as bench:
        named = [b"192.0.2.1", *[b"192.0.2.9"] * 5]
        peers = []
        for name in named:
            line = b"PROXY TCP4 %s 192.0.2.200 1000 443\r\n" % name
            before = bench.held()["partial"]
            peers.append(bench.dial(line + HALF))
            settle(bench, lambda before=before: bench.held()["partial"] > before)  # type: ignore[misc]
            bench.now_ms += 1
        bench.dial(HALF, source=OTHER)
        settle(bench, lambda: displaced(bench, peers) == [1])
