"""Out of descriptors (R18), each in a child process with a low limit of its own."""

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
# The whole queue is taken up to here; now the process fills up, to the last descriptor.
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
assert bench.count("accept_exhausted") == first == before + 1, "tried again without a tick"
assert not bench.reactor.more
resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
outer = select.epoll()
outer.register(bench.reactor.fileno(), select.EPOLLIN)
assert not outer.poll(0), "a full process spins on its queue"
outer.close()
resource.setrlimit(resource.RLIMIT_NOFILE, (probe, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
# Each tick tries once.
for round_ in range(8):
    bench.pass_ms(250)
    assert bench.count("accept_exhausted") == first + round_ + 1
# The good connection is served all the while.
bench.reactor.send(good.conn, b"still")
bench.turn()
assert [frame.payload for frame in good.frames()] == [b"still"]
# Descriptors come free: the next tick accepts.
for client in clients:
    client.close()
bench.turn()
bench.pass_ms(250)
settle(bench, lambda: bench.count("accepted") == 25)
assert bench.count("refused") == 0
print("recovered")
"""


def test_r18_emfile_at_accept() -> None:
    """R18: EMFILE: counted once a tick, no spin in between, the good go on, recovery at the next tick."""
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


def test_r18_the_gate_refuses_before_the_limit() -> None:
    """R18: with `descriptors` below the process's limit, EMFILE never happens: refused, with an answer."""
    child = run_child(GATED)
    assert child.returncode == 0, child.stderr
    assert child.stdout == "refused before the limit\n"


def test_r18_names_without_a_descriptor_to_spare() -> None:
    """R18: `peer` answers, or says nothing; a full process is no exception to serve."""
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
def test_r18_an_absurd_gate_refuses_everybody(limit: int) -> None:
    """R18: below what the process itself has open, all are refused, none is lost."""
    with hall(limits=GateLimits(descriptors=limit)) as bench:
        crowd = [bench.dial(HEAD) for _ in range(20)]
        settle(bench, lambda: bench.count("ended_refused_descriptors") == 20)
        assert bench.count("now_connections") == 0
        for peer in crowd:
            settle(bench, lambda peer=peer: bool(peer.receive()) or peer.ended)  # type: ignore[misc]
            assert peer.received.startswith(b"HTTP/1.1 503 ")


def test_r18_an_adopted_socket_is_not_judged() -> None:
    """R18: adopting is the caller's decision: the gate counts it, and does not refuse it."""
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
