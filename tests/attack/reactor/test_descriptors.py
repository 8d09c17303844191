"""Use up the file descriptors of a reactor (R18), in child processes with low limits of their own."""

import os
import resource
import socket

import pytest

from tests.support.tcp_rig import HEAD, hall, run_child, settle
from wsgate.reactor import GateLimits

EXHAUSTED = """
import os, resource, select, socket
from tests.support.tcp_rig import HEAD, Hall, is_readable, settle
from wsgate.reactor import GateLimits

bench = Hall()
clients = [socket.create_connection(bench.listener.getsockname()) for _ in range(8)]
good = bench.meet(bench.dial(HEAD))
late = [socket.create_connection(bench.listener.getsockname()) for _ in range(8)]
# The reactor has accepted the whole queue. Now the process uses its last descriptor.
settle(bench, lambda: bench.count("accepted") == 17)
more = [socket.create_connection(bench.listener.getsockname()) for _ in range(8)]
probe = os.dup(0)
os.close(probe)
resource.setrlimit(resource.RLIMIT_NOFILE, (probe, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
before = bench.count("accept_exhausted")
settle(bench, lambda: bench.count("accept_exhausted") > before)
first = bench.count("accept_exhausted")
polls = 0
for _ in range(1000):
    bench.step()
assert bench.count("accept_exhausted") == first == before + 1, "accepted again without a tick"
assert not bench.reactor.more
resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
outer = select.epoll()
outer.register(bench.reactor.fileno(), select.EPOLLIN)
assert not outer.poll(0), "a process without descriptors spins on its accept queue"
outer.close()
resource.setrlimit(resource.RLIMIT_NOFILE, (probe, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
# Each tick tries to accept once.
for round_ in range(8):
    bench.pass_ms(250)
    assert bench.count("accept_exhausted") == first + round_ + 1
# The open connection is served all the time.
bench.reactor.send(good.conn, b"still")
bench.turn()
assert [frame.payload for frame in good.frames()] == [b"still"]
# Descriptors are free again: the next tick accepts.
for client in clients:
    client.close()
bench.turn()
bench.pass_ms(250)
settle(bench, lambda: bench.count("accepted") == 25)
assert bench.count("refused") == 0
print("recovered")
"""


def test_r18_emfile_is_counted_once_per_tick_and_accepting_resumes_without_a_spin() -> None:
    """R18: between ticks the reactor does not try again; the open connection is served meanwhile."""
    child = run_child(EXHAUSTED)
    assert child.returncode == 0, child.stderr
    assert child.stdout == "recovered\n"


GATED = """
import resource
from tests.support.tcp_rig import HEAD, REFUSAL, Hall, settle
from wsgate.reactor import GateLimits

resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
bench = Hall(limits=GateLimits(descriptors=44))
refused = 0
for _ in range(200):
    client = bench.dial(HEAD)
    settle(bench, lambda: bench.count("accepted") == _ + 1)
    settle(bench, lambda: bool(client.receive()) or client.ended)
    if client.received.startswith(b"HTTP/1.1 503"):
        assert bytes(client.received) == REFUSAL
        refused += 1
        client.close()
        settle(bench, lambda: bench.count("now_draining") == 0)
assert refused > 150
assert bench.count("ended_refused_descriptors") == refused
assert bench.count("accept_exhausted") == 0
print("refused before the limit")
"""


def test_r18_gate_with_a_lower_descriptor_limit_answers_503_before_emfile() -> None:
    """R18: with `descriptors` below the limit of the process, accept never fails with EMFILE."""
    child = run_child(GATED)
    assert child.returncode == 0, child.stderr
    assert child.stdout == "refused before the limit\n"


def test_r18_peer_address_without_a_free_descriptor_is_right_or_empty() -> None:
    """R18: `peer` returns the address or an empty text, and raises nothing."""
    with hall() as bench:
        peer = bench.meet(bench.dial(HEAD))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            name = bench.reactor.peer(peer.conn)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert name in ("", "{}:{}".format(*peer.sock.getsockname()))


@pytest.mark.parametrize("limit", [1, 3])
def test_r18_gate_limit_below_the_open_descriptors_refuses_every_peer_with_503(limit: int) -> None:
    """R18: the process itself has more descriptors open than the gate allows."""
    with hall(limits=GateLimits(descriptors=limit)) as bench:
        crowd = [bench.dial(HEAD) for _ in range(20)]
        settle(bench, lambda: bench.count("ended_refused_descriptors") == 20)
        assert bench.count("now_connections") == 0
        for peer in crowd:
            settle(bench, lambda peer=peer: bool(peer.receive()) or peer.ended)  # type: ignore[misc]
            assert peer.received.startswith(b"HTTP/1.1 503 ")


def test_r18_adopted_sockets_pass_a_full_gate_but_count_for_later_peers() -> None:
    """R18: the caller of `adopt` decides, so the gate counts the socket and does not refuse it."""
    with hall(limits=GateLimits(connections=1)) as bench:
        pairs = [socket.socketpair() for _ in range(2)]
        for ours, _ in pairs:
            assert bench.reactor.adopt(ours.detach(), now_ms=bench.now_ms, upgraded=True)
        assert bench.count("now_open") == 2
        late = bench.dial(HEAD)
        settle(bench, lambda: bool(late.receive()) or late.ended)
        assert late.received.startswith(b"HTTP/1.1 503 ")
        for _, theirs in pairs:
            theirs.close()
