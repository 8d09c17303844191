"""Limit the connections and the rate of one address over all shards, and trust listed proxies (A4)."""

import multiprocessing
import multiprocessing.queues
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.reactor_rig import Peer
from tests.support.tcp_rig import HEAD, REFUSAL, TOO_MANY, Hall, hall, settle
from wsgate.errors import SettingsError
from wsgate.reactor import GateLimits, Reactor, SharedAddresses

LOCAL = b"\0" * 10 + b"\xff\xff" + socket.inet_aton("127.0.0.1")
PROXY = ((LOCAL, 128),)


def answer(bench: Hall, peer: Peer) -> bytes:
    """Return all bytes that a refused peer receives."""

    def is_over() -> bool:
        peer.receive()
        return peer.ended

    settle(bench, is_over)
    return bytes(peer.received)


def shared(shards: int = 1, connections: int = 64) -> SharedAddresses:
    return SharedAddresses(shards=shards, connections=connections)


def v6(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text)


def test_connection_over_the_address_limit_is_refused_until_one_of_that_address_closes() -> None:
    with hall(limits=GateLimits(per_address_connections=2), addresses=shared()) as bench:
        first, second = (bench.meet(bench.dial(HEAD, source="127.0.0.2")) for _ in range(2))
        third = bench.dial(HEAD, source="127.0.0.2")
        assert answer(bench, third) == TOO_MANY
        assert bench.count("ended_refused_address_connections") == 1
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        # A connection that closes makes room for one.
        first.close()
        settle(bench, lambda: bench.count("now_connections") == 2)
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        second.send(b"")


def test_connections_open_before_the_address_limit_was_set_count_for_it() -> None:
    addresses = shared()
    with hall(addresses=addresses) as bench:
        early = [bench.meet(bench.dial(HEAD, source="127.0.0.2")) for _ in range(3)]
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        bench.meet(bench.dial(HEAD))  # from a proxy once the limit is set: the client behind it is not known
        limits = GateLimits(per_address_connections=2, trusted_networks=PROXY)
        bench.reactor.set_gate(limits, REFUSAL, TOO_MANY)
        bench.pass_ms(250)
        assert addresses.connections() == 4
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        for peer in early[:2]:
            peer.close()
        settle(bench, lambda: addresses.connections() == 2)
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        # The limit is removed and set again: no connection counts twice.
        bench.reactor.set_gate(GateLimits(), REFUSAL, TOO_MANY)
        bench.reactor.set_gate(limits, REFUSAL, TOO_MANY)
        bench.pass_ms(500)
        assert addresses.connections() == 3


def test_1300_refusals_of_one_address_do_not_pause_accepting_for_others() -> None:
    """As many refusals for the rate of the node would pause accepting."""
    limits = GateLimits(handshake_rate_per_s=300, per_address_connections=1, refusal_drains=0)
    with hall(limits=limits, addresses=shared()) as bench:
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        for _ in range(13):
            for peer in [bench.dial(HEAD, source="127.0.0.2") for _ in range(100)]:
                peer.close()
            bench.turn()
        settle(bench, lambda: bench.count("accepted") == 1_301)
        assert bench.count("accepts_paused") == 0
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))


@contextmanager
def two_halls(limits: GateLimits, addresses: SharedAddresses) -> Iterator[tuple[Hall, Hall]]:
    with (
        hall(limits=limits, addresses=addresses) as one,
        hall(limits=limits, addresses=addresses, shard=1) as two,
    ):
        yield one, two


def test_address_limit_counts_the_connections_of_two_shards_together() -> None:
    addresses = shared(shards=2)
    limits = GateLimits(per_address_connections=3)
    with (
        hall(limits=limits, addresses=addresses) as one,
        hall(limits=limits, addresses=addresses, shard=1) as two,
    ):
        one.meet(one.dial(HEAD))
        two.meet(two.dial(HEAD))
        two.meet(two.dial(HEAD))
        assert answer(one, one.dial(HEAD)) == TOO_MANY
        assert answer(two, two.dial(HEAD)) == TOO_MANY
        assert addresses.connections() == 3


def test_retired_shard_returns_its_counts_of_an_address() -> None:
    addresses = shared(shards=2)
    limits = GateLimits(per_address_connections=2)
    with (
        hall(limits=limits, addresses=addresses) as one,
        hall(limits=limits, addresses=addresses, shard=1) as two,
    ):
        two.meet(two.dial(HEAD))
        one.meet(one.dial(HEAD))
        assert answer(two, two.dial(HEAD)) == TOO_MANY
        assert addresses.retire(0) == 1  # as the keeper does after the shard has died
        assert addresses.retire(0) == 0
        two.meet(two.dial(HEAD))


@pytest.mark.parametrize("way", ["closed", "reset", "refused"])
def test_closed_reset_or_refused_connection_no_longer_counts_for_its_address(way: str) -> None:
    addresses = shared()
    # With a rate of one per second the second connection is counted and then refused for the rate.
    limits = GateLimits(per_address_connections=5, handshake_rate_per_s=1 if way == "refused" else 0)
    with hall(limits=limits, addresses=addresses) as bench:
        peer = bench.meet(bench.dial(HEAD))
        assert addresses.connections() == 1
        if way == "refused":
            assert answer(bench, bench.dial(HEAD)) == REFUSAL
            assert addresses.connections() == 1
        elif way == "closed":
            peer.close()
            settle(bench, lambda: bench.count("now_connections") == 0)
            assert addresses.connections() == 0
        else:
            bench.reactor.abort(peer.conn)
            assert addresses.connections() == 0
            bench.meet(bench.dial(HEAD))
    assert addresses.connections() == 0, "connections still count after the end of the reactor"


def test_address_rate_allows_one_second_of_connections_at_once_and_then_the_rate() -> None:
    with hall(limits=GateLimits(per_address_rate_per_s=4), addresses=shared()) as bench:
        for _ in range(4):
            bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        assert bench.count("ended_refused_address_rate") == 1
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        bench.now_ms += 250
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        # At most the connections of one second accumulate.
        bench.now_ms += 60_000
        for _ in range(4):
            bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY


def test_refusals_for_the_address_rate_do_not_use_the_rate_of_the_node() -> None:
    with hall(
        limits=GateLimits(per_address_rate_per_s=1, handshake_rate_per_s=3), addresses=shared()
    ) as bench:
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        for _ in range(20):
            assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        bench.meet(bench.dial(HEAD, source="127.0.0.4"))


def test_address_rate_is_right_when_its_clock_of_40_bits_overflows() -> None:
    """The clock overflows every twelve days; a time long ago must not look like one far ahead."""
    with hall(limits=GateLimits(per_address_rate_per_s=1), addresses=shared(), now_ms=1_000) as bench:
        for days in (0, 3, 6, 7, 9, 12, 13, 19, 25):
            bench.now_ms = 1_000 + days * 86_400_000
            bench.meet(bench.dial(HEAD))
            assert answer(bench, bench.dial(HEAD)) == TOO_MANY


def test_ipv6_addresses_of_one_64_bit_prefix_share_a_limit() -> None:
    limits = GateLimits(per_address_connections=2, trusted_networks=PROXY)
    with hall(limits=limits, addresses=shared()) as bench:
        conns = [bench.meet(bench.dial(HEAD)).conn for _ in range(5)]
        claims = ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:2::3", "2001:db8:1:3::1"]
        outcomes = [
            bench.reactor.claim_address(conn, v6(text)) for conn, text in zip(conns, claims, strict=False)
        ]
        assert [bool(each) for each in outcomes] == [False, False, True, False]
        # An IPv4 address counts whole, also when it is written as IPv6.
        assert bench.reactor.claim_address(conns[4], LOCAL[:12] + b"\x01\x01\x01\x01") == 0


def test_connections_of_a_listed_proxy_do_not_count_for_its_own_address() -> None:
    limits = GateLimits(per_address_connections=1, per_address_rate_per_s=1, trusted_networks=PROXY)
    with hall(limits=limits, addresses=shared()) as bench:
        peers = [bench.meet(bench.dial(HEAD)) for _ in range(5)]
        assert all(bench.reactor.is_from_proxy(peer.conn) for peer in peers)
        other = bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert not bench.reactor.is_from_proxy(other.conn)
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY


HEADER = b"PROXY TCP4 203.0.113.%d 127.0.0.1 4711 443\r\n"


def test_proxy_header_counts_for_its_address_and_is_removed_before_the_head() -> None:
    limits = GateLimits(per_address_connections=1, trusted_networks=PROXY, reads_proxy_header=True)
    addresses = shared()
    with hall(limits=limits, addresses=addresses) as bench:
        bench.meet(bench.dial(HEADER % 1 + HEAD))
        late = bench.dial(HEADER % 1 + HEAD)
        assert answer(bench, late) == TOO_MANY
        late.close()
        bench.meet(bench.dial(HEADER % 2 + HEAD))
        assert addresses.connections() == 2
        settle(bench, lambda: bench.count("ended_refused_address_connections") == 1)
        # The header names no address: a health check of the proxy.
        for _ in range(3):
            bench.meet(bench.dial(b"PROXY UNKNOWN\r\n" + HEAD))
        assert addresses.connections() == 2


@pytest.mark.parametrize("size", range(1, len(HEADER % 1) + 3))
def test_proxy_header_split_at_any_byte_is_accepted(size: int) -> None:
    limits = GateLimits(per_address_connections=1, trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        whole = HEADER % 1 + HEAD
        peer = bench.dial(whole[:size])
        settle(bench, lambda: bench.count("receives") >= 1)
        peer.send(whole[size:])
        bench.meet(peer)
        assert bench.held()["partial"] == 0


def test_proxy_header_sent_byte_by_byte_is_accepted() -> None:
    limits = GateLimits(per_address_connections=1, trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        peer = bench.dial()
        for byte in HEADER % 1 + HEAD:
            peer.send(bytes([byte]))
            bench.turn()
        bench.meet(peer)
        assert bench.held()["partial"] == 0


@pytest.mark.parametrize("said", [HEAD, b"PROXY TCP4 nobody\r\n" + HEAD, b"\r\n\r\n\0\r\nQUIX\n" + HEAD])
def test_listed_proxy_without_a_valid_proxy_header_is_closed(said: bytes) -> None:
    limits = GateLimits(trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        assert answer(bench, bench.dial(said)) == b""
        assert bench.count("ended_bad_proxy_header") == 1


def test_proxy_header_from_an_unlisted_peer_is_405() -> None:
    """The reactor does not remove it, so it is read as a request line with an unknown method."""
    limits = GateLimits(per_address_connections=1, trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        assert answer(bench, bench.dial(HEADER % 1 + HEAD, source="127.0.0.2")).startswith(b"HTTP/1.1 405 ")
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))


def test_incomplete_proxy_header_ends_at_the_head_deadline() -> None:
    limits = GateLimits(trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        peer = bench.dial(HEADER[:9])
        settle(bench, lambda: bench.count("now_head") == 1)
        for _ in range(50):
            peer.send(b"")
            bench.pass_ms(250)
        assert bench.count("ended_head_timeout") == 1


def test_full_table_of_addresses_accepts_the_connection_and_counts_it_as_uncounted() -> None:
    """The table is made for one connection, so that the second address finds no place."""
    addresses = shared(connections=1)
    limits = GateLimits(per_address_connections=1, trusted_networks=PROXY)
    with hall(limits=limits, addresses=addresses) as bench:
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        late = bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        assert bench.count("addresses_uncounted") == 1
        assert addresses.connections() == 1
        late.close()


@pytest.mark.parametrize(("shards", "connections"), [(0, 1), (1, 0), (5_000, 1), (1, (1 << 24) + 1)])
def test_table_of_addresses_with_sizes_out_of_range_raises_settings_error(
    shards: int, connections: int
) -> None:
    with pytest.raises(SettingsError):
        SharedAddresses(shards=shards, connections=connections)
    with pytest.raises(SettingsError):
        SharedAddresses(shards=1, connections=1, key=b"short")


def test_address_limit_without_a_table_raises_settings_error() -> None:
    reactor = Reactor(now_ms=0)
    with pytest.raises(SettingsError, match="memory"):
        reactor.set_gate(GateLimits(per_address_connections=1), b"")
    reactor.shutdown()


# --- many processes at once ---------------------------------------------------------------------------

Results = multiprocessing.queues.Queue
ROUNDS = 3_000
AT_MOST = 8


def claim_and_leave(addresses: SharedAddresses, shard: int, seed: int, results: "Results[int]") -> None:
    """Claim and leave at random; report the most connections that were open at once."""
    chance = random.Random(seed)
    limits = GateLimits(per_address_connections=AT_MOST, trusted_networks=PROXY)
    with hall(limits=limits, addresses=addresses, shard=shard) as bench:
        held: list[int] = []
        theirs: list[socket.socket] = []  # open to the end, so that the reactor does not close by itself
        most = 0
        for _ in range(ROUNDS):
            if held and chance.random() < 0.5:
                bench.reactor.abort(held.pop(chance.randrange(len(held))))
            else:
                ours, other = socket.socketpair()
                theirs.append(other)
                conn = bench.reactor.adopt(ours.detach(), now_ms=bench.now_ms, upgraded=True)
                if bench.reactor.claim_address(conn, v6("2001:db8::1")):
                    bench.reactor.abort(conn)
                else:
                    held.append(conn)
            most = max(most, len(held))
            bench.reactor.poll(bench.now_ms)
        while held:
            bench.reactor.abort(held.pop())
        for each in theirs:
            each.close()
        results.put(most)


def test_two_processes_with_one_address_never_exceed_its_limit_and_lose_no_count() -> None:
    addresses = shared(shards=2, connections=1024)
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    seed = int.from_bytes(os.urandom(4))
    workers = [
        context.Process(target=claim_and_leave, args=(addresses, shard, seed + shard, results))
        for shard in range(2)
    ]
    for worker in workers:
        worker.start()
    most = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert max(most) <= AT_MOST, f"seed {seed}"
    assert addresses.connections() == 0, f"seed {seed}"


def test_shard_whose_clock_is_3_ms_behind_does_not_refill_the_rate_of_an_address() -> None:
    """Each shard reads the clock when its pass starts; a bucket that another shard emptied stays empty."""
    addresses = shared(shards=2)
    limits = GateLimits(per_address_rate_per_s=20, trusted_networks=PROXY)
    with two_halls(limits, addresses) as (ahead, behind):
        ahead.now_ms = behind.now_ms + 3
        ahead.turn()
        claimed = 0
        for number in range(200):
            bench = (ahead, behind)[number % 2]
            ours, theirs = socket.socketpair()
            conn = bench.reactor.adopt(ours.detach(), now_ms=bench.now_ms, upgraded=True)
            claimed += bench.reactor.claim_address(conn, v6("2001:db8::1")) == 0
            bench.reactor.abort(conn)
            theirs.close()
        assert claimed <= 21


def test_connection_counted_before_its_proxy_was_listed_counts_once_afterwards() -> None:
    addresses = shared()
    with hall(limits=GateLimits(per_address_connections=4), addresses=addresses) as bench:
        peer = bench.meet(bench.dial(HEAD))
        assert addresses.connections() == 1
        bench.reactor.set_gate(GateLimits(per_address_connections=4, trusted_networks=PROXY), REFUSAL)
        assert bench.reactor.claim_address(peer.conn, v6("2001:db8::1")) == 0
        assert addresses.connections() == 1
        peer.close()
        settle(bench, lambda: bench.count("now_connections") == 0)
        assert addresses.connections() == 0
