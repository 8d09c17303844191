"""A full shard is no full node: what it has no room for goes to a sibling, as it is (A1)."""

import socket
from contextlib import ExitStack, closing

import pytest

from tests.support.gateway import running_gateway, wait_until
from tests.support.hall import HEAD, REFUSAL, Hall, hall, settle
from tests.support.raw_client import LIMIT_S, RawClient, request
from tests.support.siege import scrape
from wsgate.reactor import GateLimits, SharedAddresses


def channel() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def take(bench: Hall, ours: socket.socket) -> int:
    """What a sibling handed over, as the shard takes it."""
    count = 0
    while True:
        try:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        except BlockingIOError:
            return count
        for descriptor in descriptors:
            bench.reactor.admit(descriptor, now_ms=bench.now_ms)
            count += 1


def test_who_finds_no_room_is_served_by_another() -> None:
    ours, theirs = channel()
    limits = GateLimits(connections=2)
    with closing(ours), closing(theirs), hall(limits=limits) as full, hall(limits=limits) as other:
        full.reactor.relieve(theirs.fileno())
        for _ in range(2):
            full.meet(full.dial(HEAD))
        peers = [full.dial(HEAD) for _ in range(3)]
        settle(full, lambda: full.count("handed_over") == 3)
        assert take(other, ours) == 3
        settle(other, lambda: other.count("now_open") == 2)
        answers = []
        for peer in peers:
            settle(other, lambda peer=peer: bool(peer.receive() or peer.received))  # type: ignore[misc]
            answers.append(bytes(peer.received).partition(b"\r\n")[0])
        # It is judged there like anybody else, and never handed on.
        welcome, refusal = b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 503 Service Unavailable"
        assert sorted(answers) == [welcome, welcome, refusal]
        assert other.count("ended_refused_connections") == 1
        assert full.count("ended_refused_connections") == 0
        assert other.count("accepted") == 0, "it was counted where it was accepted"


def test_nobody_to_hand_to_and_a_full_channel_are_refusals() -> None:
    ours, theirs = channel()
    with closing(ours), closing(theirs), hall(limits=GateLimits(connections=1)) as full:
        full.meet(full.dial(HEAD))
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        full.reactor.relieve(theirs.fileno())
        peers = [full.dial(HEAD) for _ in range(60)]
        settle(full, lambda: full.count("accepted") == 61)
        handed, refused = full.count("handed_over"), full.count("ended_refused_connections")
        assert 0 < handed < 60
        assert handed + refused == 60
        ours.close()
        late = full.dial(HEAD)
        settle(full, lambda: bool(late.receive() or late.received))
        assert late.received.startswith(REFUSAL)
        full.reactor.relieve(-1)
        assert len(peers) == 60


def test_a_rate_is_no_reason_to_hand_over() -> None:
    ours, theirs = channel()
    with closing(ours), closing(theirs), hall(limits=GateLimits(accepts_per_s=1)) as bench:
        bench.reactor.relieve(theirs.fileno())
        bench.meet(bench.dial(HEAD))
        late = bench.dial(HEAD)
        settle(bench, lambda: bool(late.receive() or late.received))
        assert late.received.startswith(REFUSAL)
        assert bench.count("handed_over") == 0


def test_an_address_counts_where_it_was_handed_to() -> None:
    ours, theirs = channel()
    addresses = SharedAddresses(shards=2, connections=64)
    limits = GateLimits(connections=1, address_connections=2)
    with (
        closing(ours),
        closing(theirs),
        hall(limits=limits, addresses=addresses) as full,
        hall(limits=limits, addresses=addresses, shard=1) as other,
    ):
        full.reactor.relieve(theirs.fileno())
        full.meet(full.dial(HEAD))
        full.dial(HEAD)
        settle(full, lambda: full.count("handed_over") == 1)
        assert take(other, ours) == 1
        settle(other, lambda: other.count("now_open") == 1)
        assert addresses.connections() == 2


@pytest.mark.slow
def test_a_node_refuses_when_all_its_shards_are_full_and_not_before() -> None:
    environ = {"WSGATE_ADMISSION__MAX_CONNECTIONS": "120"}
    with running_gateway("--shards", "2", environ=environ) as gateway, ExitStack() as held:
        # As fast as it goes: the keeper, which deals by room, cannot follow.
        clients = [held.enter_context(RawClient(gateway)) for _ in range(120)]
        for client in clients:
            client.sock.sendall(request())
        assert [client.answer().status for client in clients] == [101] * 120
        late = held.enter_context(RawClient(gateway))
        assert late.ask(request()).status == 503
        names = [f'wsgate_connections_held{{shard="{number}"}}' for number in range(2)]
        wait_until("both are full", lambda: [scrape(gateway)[name] for name in names] == [60, 60], LIMIT_S)
        refused = {name: value for name, value in scrape(gateway).items() if "_refusals_total" in name}
        assert {name for name, value in refused.items() if value} == {
            'wsgate_refusals_total{reason="refused_connections"}'
        }
        state = 'wsgate_admission_state{shard="%d"}'
        wait_until(
            "both say so", lambda: [scrape(gateway)[state % number] for number in (0, 1)] == [1, 1], LIMIT_S
        )
        # One leaves: there is room for one, wherever it lands.
        clients[0].sock.close()
        wait_until("it is gone", lambda: sum(scrape(gateway)[name] for name in names) == 119, LIMIT_S)
        again = held.enter_context(RawClient(gateway))
        rooms = [f'wsgate_headroom{{resource="connections",shard="{number}"}}' for number in range(2)]
        wait_until("there is room", lambda: sum(scrape(gateway)[name] for name in rooms) > 0, LIMIT_S)
        assert again.ask(request()).status == 101
