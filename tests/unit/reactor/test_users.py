"""Check the index by user: it finds the connections of a user in every state of a connection."""

import random

import pytest

from tests.support.frames import client_close
from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import Settings

HEAD = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
QUIET = Settings(ping_interval_ms=0)
SIZES = (1, 23, 24, 25, 31, 32, 33, 63, 64, 65, 127, 128)


def test_connections_of_a_user_are_listed_newest_first() -> None:
    with rig(QUIET) as bench:
        first, second, other = (bench.connect().conn for _ in range(3))
        for conn, user in ((first, b"ann"), (second, b"ann"), (other, b"bob")):
            assert bench.reactor.set_user(conn, user)
        bench.turn()
        assert bench.reactor.user_connections(b"ann") == [second, first]
        assert bench.reactor.user_connections(b"bob") == [other]
        assert bench.reactor.user_connections(b"nobody") == []


@pytest.mark.parametrize("size", SIZES)
def test_users_with_equally_long_names_are_kept_apart_at_every_length(size: int) -> None:
    with rig(QUIET) as bench:
        users = [(b"%d" % number).rjust(size, b"u")[-size:] for number in range(10)]
        conns = [bench.connect().conn for _ in users]
        for conn, user in zip(conns, users, strict=True):
            bench.reactor.set_user(conn, user)
        bench.turn()
        assert [bench.reactor.user_connections(user) for user in users] == [[conn] for conn in conns]


def test_connection_leaves_the_list_when_its_user_changes_or_is_cleared() -> None:
    with rig(QUIET) as bench:
        conn = bench.connect().conn
        bench.reactor.set_user(conn, b"ann")
        bench.reactor.set_user(conn, b"ann")
        assert bench.reactor.user_connections(b"ann") == [conn]
        bench.reactor.set_user(conn, b"bob")
        assert bench.reactor.user_connections(b"ann") == []
        assert bench.reactor.user_connections(b"bob") == [conn]
        bench.reactor.set_user(conn, b"")
        assert bench.reactor.user_connections(b"bob") == []
        bench.turn()


def test_connection_is_listed_from_set_user_in_the_handshake_until_the_socket_is_closed() -> None:
    with rig(QUIET) as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD)
        bench.turn()
        bench.reactor.set_user(peer.conn, b"ann")
        assert bench.reactor.user_connections(b"ann") == [peer.conn]
        bench.reactor.upgrade(peer.conn, b"HTTP/1.1 101 x\r\n\r\n")
        bench.turn()
        assert bench.reactor.user_connections(b"ann") == [peer.conn]
        bench.reactor.close(peer.conn, 1000)
        bench.turn()
        assert bench.reactor.user_connections(b"ann") == [peer.conn]
        peer.send(client_close(1000))
        peer.close()
        bench.turn()
        assert bench.reactor.user_connections(b"ann") == []
        assert not bench.reactor.set_user(peer.conn, b"ann")


@pytest.mark.parametrize("seed", range(6))
def test_user_index_equals_a_plain_dictionary_after_random_steps(seed: int) -> None:
    """With few users the lists are long, and with many users the table grows and has holes."""
    dice = random.Random(seed)
    users = [b"user-%d" % number for number in range(dice.choice((3, 40, 400)))]
    with rig(QUIET) as bench:
        model: dict[int, bytes] = {}
        peers: list[Peer] = []
        for _ in range(1_500):
            step = dice.random()
            if step < 0.4 and len(peers) < 300:
                peers.append(bench.connect())
            elif step < 0.8 and peers:
                conn = dice.choice(peers).conn
                user = dice.choice((*users, b""))
                bench.reactor.set_user(conn, user)
                model[conn] = user
            elif peers:
                peer = peers.pop(dice.randrange(len(peers)))
                bench.reactor.abort(peer.conn)
                model.pop(peer.conn, None)
                peer.close()
                bench.peers.remove(peer)
            if dice.random() < 0.05:
                bench.turn()
                _compare(bench, users, model)
        bench.turn()
        _compare(bench, users, model)


def _compare(bench: Rig, users: list[bytes], model: dict[int, bytes]) -> None:
    for user in users:
        expected = sorted(conn for conn, whose in model.items() if whose == user)
        assert sorted(bench.reactor.user_connections(user)) == expected


def test_uncounted_subscription_neither_meets_nor_uses_the_subscription_limit() -> None:
    with rig(Settings(max_subscriptions=4, ping_interval_ms=0)) as bench:
        peer = bench.connect()
        names = [b"c%d" % number for number in range(4)]
        for name in names:
            assert bench.reactor.subscribe(peer.conn, name) == 1
        assert bench.reactor.subscribe(peer.conn, b"one more") == -2
        assert bench.reactor.subscribe(peer.conn, b"@ann", is_counted=False) == 1
        assert bench.reactor.subscribe(peer.conn, b"one more") == -2
        assert bench.reactor.subscribe(peer.conn, b"@ann", is_counted=False) == -1
        bench.reactor.unsubscribe(peer.conn, names[0])
        assert bench.reactor.subscribe(peer.conn, b"one more") == 1
        assert bench.reactor.subscribe(peer.conn, b"c9") == -2
        bench.reactor.unsubscribe(peer.conn, b"@ann")
        assert bench.reactor.subscribe(peer.conn, b"c9") == -2
        assert bench.reactor.subscribe(peer.conn, b"@ann", is_counted=False) == 1
        bench.turn()
