"""Hand connections over: a full shard passes a new connection to a sibling that has room (A1)."""

import os
import signal
import socket
import time
from contextlib import ExitStack, closing

import pytest

from tests.support.attack_rig import scrape, shard_pid
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, request
from tests.support.tcp_rig import HEAD, REFUSAL, Hall, hall, settle
from wsgate.reactor import GateLimits, SharedAddresses


def channel() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def accept_handovers(bench: Hall, ours: socket.socket) -> int:
    """Accept the connections that a sibling handed over, as the shard does; return their number."""
    count = 0
    while True:
        try:
            handovers, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        except BlockingIOError:
            return count
        for descriptor in descriptors:
            bench.reactor.accept_handover(descriptor, now_ms=bench.now_ms, handovers=handovers[0])
            count += 1


def test_connections_beyond_the_limit_of_a_full_shard_are_served_by_its_sibling() -> None:
    ours, theirs = channel()
    limits = GateLimits(connections=2)
    with closing(ours), closing(theirs), hall(limits=limits) as full, hall(limits=limits) as other:
        full.reactor.set_handover(theirs.fileno())
        for _ in range(2):
            full.meet(full.dial(HEAD))
        peers = [full.dial(HEAD) for _ in range(3)]
        settle(full, lambda: full.count("handovers") == 3)
        assert accept_handovers(other, ours) == 3
        settle(other, lambda: other.count("now_open") == 2)
        answers = []
        for peer in peers:
            settle(other, lambda peer=peer: bool(peer.receive() or peer.received))  # type: ignore[misc]
            answers.append(bytes(peer.received).partition(b"\r\n")[0])
        # The sibling checks each connection like its own, and has no shard to hand the last one to.
        welcome, refusal = b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 503 Service Unavailable"
        assert sorted(answers) == [welcome, welcome, refusal]
        assert other.count("ended_refused_connections") == 1
        assert full.count("ended_refused_connections") == 0
        assert other.count("accepted") == 0, "a handover was counted as accepted"


def test_connection_handed_to_a_full_sibling_is_handed_to_the_next_one() -> None:
    (second_ours, second_theirs), (third_ours, third_theirs) = channel(), channel()
    one_slot, three = GateLimits(connections=1), GateLimits(connections=3)
    with ExitStack() as stack:
        for end in (second_ours, second_theirs, third_ours, third_theirs):
            stack.enter_context(closing(end))
        first, second = (stack.enter_context(hall(limits=one_slot)) for _ in range(2))
        third = stack.enter_context(hall(limits=three))
        first.reactor.set_handover(second_theirs.fileno())
        second.reactor.set_handover(-1, next_fd=third_theirs.fileno(), handovers=3)
        first.meet(first.dial(HEAD))
        peers = [first.dial(HEAD) for _ in range(4)]
        settle(first, lambda: first.count("handovers") == 4)
        assert accept_handovers(second, second_ours) == 4
        assert accept_handovers(third, third_ours) == 3
        settle(third, lambda: third.count("now_open") == 3)
        settle(second, lambda: second.count("now_open") == 1)
        assert len(peers) == 4
        assert second.count("handovers") == 3


def test_connection_between_two_full_shards_is_refused_after_eight_handovers() -> None:
    """Each shard believes that the other one has room; the refusal has an answer."""
    (first_ours, first_theirs), (second_ours, second_theirs) = channel(), channel()
    limits = GateLimits(connections=1)
    with ExitStack() as stack:
        for end in (first_ours, first_theirs, second_ours, second_theirs):
            stack.enter_context(closing(end))
        first, second = (stack.enter_context(hall(limits=limits)) for _ in range(2))
        for full, sibling in ((first, second_theirs), (second, first_theirs)):
            full.reactor.set_handover(sibling.fileno(), next_fd=sibling.fileno(), handovers=8)
        for full in (first, second):
            full.meet(full.dial(HEAD))
        late = first.dial(HEAD)
        settle(first, lambda: first.count("handovers") == 1)
        handovers = 1
        while (
            accept_handovers(second, second_ours) if handovers % 2 else accept_handovers(first, first_ours)
        ) and handovers < 20:
            handovers += 1
        settle(first, lambda: bool(late.receive() or late.received))
        assert late.received.startswith(REFUSAL)
        assert first.count("handovers") + second.count("handovers") == 8


def test_full_shard_refuses_connections_when_the_handover_channel_is_full_or_closed() -> None:
    ours, theirs = channel()
    with closing(ours), closing(theirs), hall(limits=GateLimits(connections=1)) as full:
        full.meet(full.dial(HEAD))
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        full.reactor.set_handover(theirs.fileno())
        peers = [full.dial(HEAD) for _ in range(60)]
        settle(full, lambda: full.count("accepted") == 61)
        handed, refused = full.count("handovers"), full.count("ended_refused_connections")
        assert 0 < handed < 60
        assert handed + refused == 60
        ours.close()
        late = full.dial(HEAD)
        settle(full, lambda: bool(late.receive() or late.received))
        assert late.received.startswith(REFUSAL)
        full.reactor.set_handover(-1)
        assert len(peers) == 60


def test_connection_over_the_handshake_rate_is_refused_and_not_handed_over() -> None:
    ours, theirs = channel()
    with closing(ours), closing(theirs), hall(limits=GateLimits(handshake_rate_per_s=1)) as bench:
        bench.reactor.set_handover(theirs.fileno())
        bench.meet(bench.dial(HEAD))
        late = bench.dial(HEAD)
        settle(bench, lambda: bool(late.receive() or late.received))
        assert late.received.startswith(REFUSAL)
        assert bench.count("handovers") == 0


def test_handed_over_connection_counts_once_for_its_address() -> None:
    ours, theirs = channel()
    addresses = SharedAddresses(shards=2, connections=64)
    limits = GateLimits(connections=1, per_address_connections=2)
    with (
        closing(ours),
        closing(theirs),
        hall(limits=limits, addresses=addresses) as full,
        hall(limits=limits, addresses=addresses, shard=1) as other,
    ):
        full.reactor.set_handover(theirs.fileno())
        full.meet(full.dial(HEAD))
        full.dial(HEAD)
        settle(full, lambda: full.count("handovers") == 1)
        assert accept_handovers(other, ours) == 1
        settle(other, lambda: other.count("now_open") == 1)
        assert addresses.connections() == 2


@pytest.mark.slow
def test_clients_that_reconnect_after_a_shard_crash_are_distributed_to_its_successor() -> None:
    environ = {"WSGATE_ADMISSION__MAX_CONNECTIONS": "400"}
    with running_gateway("--shards", "2", environ=environ) as gateway, ExitStack() as held:
        clients = [held.enter_context(RawClient(gateway)) for _ in range(200)]
        assert [client.ask(request()).status for client in clients] == [101] * 200
        names = [f'wsgate_connections_held{{shard="{number}"}}' for number in range(2)]
        wait_until("all are counted", lambda: sum(scrape(gateway)[name] for name in names) == 200, LIMIT_S)
        survivors = scrape(gateway)[names[1]]
        assert 60 < survivors < 140, "equal shards did not receive equal shares"
        os.kill(shard_pid(gateway, 0), signal.SIGKILL)
        ready, room = 'wsgate_phase{shard="0"}', 'wsgate_room{shard="0"}'
        wait_until("the successor serves", lambda: scrape(gateway)[ready] == 1, LIMIT_S)
        wait_until("the successor reports its room", lambda: scrape(gateway)[room] == 200, LIMIT_S)
        wait_until("the node is ready", lambda: gateway.why_not_ready() == [], LIMIT_S)
        time.sleep(0.5)  # two ticks of the keeper
        returning = int(200 - survivors)
        back = [held.enter_context(RawClient(gateway)) for _ in range(returning)]
        assert {client.ask(request()).status for client in back} == {101}
        wait_until("all are counted", lambda: sum(scrape(gateway)[name] for name in names) == 200, LIMIT_S)
        assert scrape(gateway)[names[0]] > returning * 0.75


def refusals(gateway: Gateway) -> dict[str, float]:
    """Return the counters of refusals that are not 0."""
    return {name: value for name, value in scrape(gateway).items() if "_refusals_total" in name and value}


@pytest.mark.slow
@pytest.mark.parametrize(("shares", "rate"), [([60, 60], 0), ([34, 33, 33], 0), ([60, 60], 2_000)])
def test_node_refuses_connections_only_when_all_its_shards_are_full(shares: list[int], rate: int) -> None:
    most = sum(shares)
    environ = {
        "WSGATE_ADMISSION__MAX_CONNECTIONS": str(most),
        "WSGATE_ADMISSION__HANDSHAKE_RATE": str(rate),
    }
    shards = range(len(shares))
    with running_gateway("--shards", str(len(shares)), environ=environ) as gateway, ExitStack() as held:
        # All at once, so that the keeper, which distributes by room, cannot follow.
        clients = [held.enter_context(RawClient(gateway)) for _ in range(most)]
        for client in clients:
            client.sock.sendall(request())
        answers = [client.answer().status for client in clients]
        if answers != [101] * most:
            wait_until("the refusal is counted", lambda: refusals(gateway), LIMIT_S)
            raise AssertionError(f"refused before all were full: {answers}, {refusals(gateway)}")
        late = held.enter_context(RawClient(gateway))
        assert late.ask(request()).status == 503
        names = [f'wsgate_connections_held{{shard="{number}"}}' for number in shards]
        wait_until("all are full", lambda: [scrape(gateway)[name] for name in names] == shares, LIMIT_S)
        wait_until("the refusal is counted", lambda: refusals(gateway), LIMIT_S)
        assert set(refusals(gateway)) == {'wsgate_refusals_total{reason="refused_connections"}'}
        state = 'wsgate_admission_state{shard="%d"}'
        wait_until(
            "all shards refuse", lambda: all(scrape(gateway)[state % number] for number in shards), LIMIT_S
        )
        # One client leaves, so there is room for one on any shard.
        clients[0].sock.close()
        wait_until("the client is gone", lambda: sum(scrape(gateway)[name] for name in names) < most, LIMIT_S)

        def is_accepted() -> bool:
            return held.enter_context(RawClient(gateway)).ask(request()).status == 101

        # It takes a tick of the shard with the room, of the keeper, and of the shards that hand over.
        wait_until("there is room for one", is_accepted, LIMIT_S)
        assert not is_accepted()
