"""What one address may have, counted by all shards together; whom a listed proxy names (A4)."""

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
    """All that a refused peer hears."""

    def is_over() -> bool:
        peer.receive()
        return peer.ended

    settle(bench, is_over)
    return bytes(peer.received)


def shared(shards: int = 1, connections: int = 64) -> SharedAddresses:
    return SharedAddresses(shards=shards, connections=connections)


def v6(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text)


def test_an_address_has_so_many_and_another_has_its_own() -> None:
    with hall(limits=GateLimits(per_address_connections=2), addresses=shared()) as bench:
        first, second = (bench.meet(bench.dial(HEAD, source="127.0.0.2")) for _ in range(2))
        third = bench.dial(HEAD, source="127.0.0.2")
        assert answer(bench, third) == TOO_MANY
        assert bench.count("ended_refused_address_connections") == 1
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        # Who leaves makes room for one.
        first.close()
        settle(bench, lambda: bench.count("now_connections") == 2)
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        second.send(b"")


def test_who_came_before_there_was_a_limit_counts_as_well() -> None:
    addresses = shared()
    with hall(addresses=addresses) as bench:
        early = [bench.meet(bench.dial(HEAD, source="127.0.0.2")) for _ in range(3)]
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        bench.meet(bench.dial(HEAD))  # a proxy, since the limit was set: for whom it spoke is not known
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
        # Switched off and on again: nobody counts twice.
        bench.reactor.set_gate(GateLimits(), REFUSAL, TOO_MANY)
        bench.reactor.set_gate(limits, REFUSAL, TOO_MANY)
        bench.pass_ms(500)
        assert addresses.connections() == 3


def test_one_address_over_its_limit_keeps_nobody_waiting() -> None:
    """Twelve hundred of everybody's would make accepting wait; those of one address are its own affair."""
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


def test_shards_count_together() -> None:
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


def test_a_dead_shard_s_are_taken_back() -> None:
    addresses = shared(shards=2)
    limits = GateLimits(per_address_connections=2)
    with (
        hall(limits=limits, addresses=addresses) as one,
        hall(limits=limits, addresses=addresses, shard=1) as two,
    ):
        two.meet(two.dial(HEAD))
        one.meet(one.dial(HEAD))
        assert answer(two, two.dial(HEAD)) == TOO_MANY
        assert addresses.retire(0) == 1  # as the keeper does when it has buried it
        assert addresses.retire(0) == 0
        two.meet(two.dial(HEAD))


@pytest.mark.parametrize("way", ["closed", "reset", "refused"])
def test_however_one_ends_it_is_not_counted_any_more(way: str) -> None:
    addresses = shared()
    # With one descriptor's worth of rate the second is judged, counted, and refused for the rate.
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
    assert addresses.connections() == 0, "the reactor's end is everybody's"


def test_an_address_opens_so_many_a_second() -> None:
    with hall(limits=GateLimits(per_address_rate_per_s=4), addresses=shared()) as bench:
        for _ in range(4):
            bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        assert bench.count("ended_refused_address_rate") == 1
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        bench.now_ms += 250
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        # A second's worth gathers, and no more.
        bench.now_ms += 60_000
        for _ in range(4):
            bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY


def test_who_asks_too_often_does_not_use_up_the_rate_of_all() -> None:
    with hall(
        limits=GateLimits(per_address_rate_per_s=1, handshake_rate_per_s=3), addresses=shared()
    ) as bench:
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        for _ in range(20):
            assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        bench.meet(bench.dial(HEAD, source="127.0.0.4"))


def test_the_clock_s_forty_bits_turn_over() -> None:
    """Twelve days are one turn: a place used long ago must not look like one that is far ahead."""
    with hall(limits=GateLimits(per_address_rate_per_s=1), addresses=shared(), now_ms=1_000) as bench:
        for days in (0, 3, 6, 7, 9, 12, 13, 19, 25):
            bench.now_ms = 1_000 + days * 86_400_000
            bench.meet(bench.dial(HEAD))
            assert answer(bench, bench.dial(HEAD)) == TOO_MANY


def test_an_ipv6_customer_is_one_address() -> None:
    limits = GateLimits(per_address_connections=2, trusted_networks=PROXY)
    with hall(limits=limits, addresses=shared()) as bench:
        conns = [bench.meet(bench.dial(HEAD)).conn for _ in range(5)]
        claims = ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:2::3", "2001:db8:1:3::1"]
        outcomes = [
            bench.reactor.claim_address(conn, v6(text)) for conn, text in zip(conns, claims, strict=False)
        ]
        assert [bool(each) for each in outcomes] == [False, False, True, False]
        # An IPv4 address counts whole, also where it comes as IPv6.
        assert bench.reactor.claim_address(conns[4], LOCAL[:12] + b"\x01\x01\x01\x01") == 0


def test_a_proxy_s_own_address_is_not_counted() -> None:
    limits = GateLimits(per_address_connections=1, per_address_rate_per_s=1, trusted_networks=PROXY)
    with hall(limits=limits, addresses=shared()) as bench:
        peers = [bench.meet(bench.dial(HEAD)) for _ in range(5)]
        assert all(bench.reactor.is_from_proxy(peer.conn) for peer in peers)
        other = bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        assert not bench.reactor.is_from_proxy(other.conn)
        assert answer(bench, bench.dial(HEAD, source="127.0.0.2")) == TOO_MANY


HEADER = b"PROXY TCP4 203.0.113.%d 127.0.0.1 4711 443\r\n"


def test_a_proxy_header_is_counted_and_taken_off() -> None:
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
        # Nobody is named: a health check of its own.
        for _ in range(3):
            bench.meet(bench.dial(b"PROXY UNKNOWN\r\n" + HEAD))
        assert addresses.connections() == 2


@pytest.mark.parametrize("size", range(1, len(HEADER % 1) + 3))
def test_a_proxy_header_comes_in_two_pieces(size: int) -> None:
    limits = GateLimits(per_address_connections=1, trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        whole = HEADER % 1 + HEAD
        peer = bench.dial(whole[:size])
        settle(bench, lambda: bench.count("receives") >= 1)
        peer.send(whole[size:])
        bench.meet(peer)
        assert bench.held()["partial"] == 0


def test_a_proxy_header_byte_by_byte() -> None:
    limits = GateLimits(per_address_connections=1, trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        peer = bench.dial()
        for byte in HEADER % 1 + HEAD:
            peer.send(bytes([byte]))
            bench.turn()
        bench.meet(peer)
        assert bench.held()["partial"] == 0


@pytest.mark.parametrize("said", [HEAD, b"PROXY TCP4 nobody\r\n" + HEAD, b"\r\n\r\n\0\r\nQUIX\n" + HEAD])
def test_a_proxy_without_its_header_is_cut(said: bytes) -> None:
    limits = GateLimits(trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        assert answer(bench, bench.dial(said)) == b""
        assert bench.count("ended_bad_proxy_header") == 1


def test_anybody_else_s_header_is_no_request() -> None:
    """From a peer that is not listed it is read as what it is: a malformed head."""
    limits = GateLimits(per_address_connections=1, trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        assert answer(bench, bench.dial(HEADER % 1 + HEAD, source="127.0.0.2")).startswith(b"HTTP/1.1 405 ")
        bench.meet(bench.dial(HEAD, source="127.0.0.3"))


def test_a_proxy_s_header_has_the_head_s_deadline() -> None:
    limits = GateLimits(trusted_networks=PROXY, reads_proxy_header=True)
    with hall(limits=limits, addresses=shared()) as bench:
        peer = bench.dial(HEADER[:9])
        settle(bench, lambda: bench.count("now_head") == 1)
        for _ in range(50):
            peer.send(b"")
            bench.pass_ms(250)
        assert bench.count("ended_head_timeout") == 1


def test_a_full_table_lets_in_and_says_so() -> None:
    """Sixteen places for a key: a table of 64 rows holds far more than the slots it was made for."""
    addresses = shared(connections=1)
    limits = GateLimits(per_address_connections=1, trusted_networks=PROXY)
    with hall(limits=limits, addresses=addresses) as bench:
        bench.meet(bench.dial(HEAD, source="127.0.0.2"))
        late = bench.meet(bench.dial(HEAD, source="127.0.0.3"))
        assert bench.count("addresses_uncounted") == 1
        assert addresses.connections() == 1
        late.close()


@pytest.mark.parametrize(("shards", "connections"), [(0, 1), (1, 0), (5_000, 1), (1, (1 << 24) + 1)])
def test_a_table_nobody_can_make(shards: int, connections: int) -> None:
    with pytest.raises(SettingsError):
        SharedAddresses(shards=shards, connections=connections)
    with pytest.raises(SettingsError):
        SharedAddresses(shards=1, connections=1, key=b"short")


def test_a_limit_without_its_memory_is_refused() -> None:
    reactor = Reactor(now_ms=0)
    with pytest.raises(SettingsError, match="memory"):
        reactor.set_gate(GateLimits(per_address_connections=1), b"")
    reactor.shutdown()


# --- many processes at once ---------------------------------------------------------------------------

Results = multiprocessing.queues.Queue
ROUNDS = 3_000
AT_MOST = 8


def come_and_go(addresses: SharedAddresses, shard: int, seed: int, results: "Results[int]") -> None:
    """Claim and leave at random; tells how many it held at once at most."""
    chance = random.Random(seed)
    limits = GateLimits(per_address_connections=AT_MOST, trusted_networks=PROXY)
    with hall(limits=limits, addresses=addresses, shard=shard) as bench:
        held: list[int] = []
        theirs: list[socket.socket] = []  # open to the end: the reactor is not to let go by itself
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


def test_two_processes_at_one_address_never_exceed_it_and_lose_no_count() -> None:
    addresses = shared(shards=2, connections=1024)
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    seed = int.from_bytes(os.urandom(4))
    workers = [
        context.Process(target=come_and_go, args=(addresses, shard, seed + shard, results))
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


def test_a_shard_whose_clock_is_a_little_behind_gives_nobody_a_new_bucket() -> None:
    """Each looks at the clock when its own pass begins: a bucket another shard has just emptied is empty."""
    addresses = shared(shards=2)
    limits = GateLimits(per_address_rate_per_s=20, trusted_networks=PROXY)
    with two_halls(limits, addresses) as (ahead, behind):
        ahead.now_ms = behind.now_ms + 3
        ahead.turn()
        let_in = 0
        for number in range(200):
            bench = (ahead, behind)[number % 2]
            ours, theirs = socket.socketpair()
            conn = bench.reactor.adopt(ours.detach(), now_ms=bench.now_ms, upgraded=True)
            let_in += bench.reactor.claim_address(conn, v6("2001:db8::1")) == 0
            bench.reactor.abort(conn)
            theirs.close()
        assert let_in <= 21


def test_who_counted_before_it_was_listed_counts_once() -> None:
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
