"""Check that the audit finds no fault in correct accounts and finds each account that is wrong."""

from collections.abc import Iterator

import pytest

from tests.support.frames import client_frame, client_header
from tests.support.reactor_rig import Peer, Rig
from wsgate.reactor import Settings
from wsgate.reactor.audit import audit, tamper
from wsgate.reactor.metric_names import KIND_NAMES, STATE_NAMES

OF_THE_REACTOR = (
    *KIND_NAMES,
    *(state for state in STATE_NAMES if state != "free"),
    *(
        "connections",
        "blocked",
        "pacing",
        "kernel",
        "orphans",
        "channels",
        "names",
        "users",
        "walks",
        "drains",
        "bulk",
        "attention",
        "indebted",
        "heads",
    ),
    *("pool", "references"),
)
OF_A_CONNECTION = (
    *(
        "outbox_bytes",
        "pace",
        "subscriptions",
        "subscribers",
        "position",
        "frames",
        "hash",
        "uncounted",
        "wheel",
        "mark",
        "user_link",
    ),
)


@pytest.fixture(params=[True, False], ids=["pool", "no_pool"])
def rig_and_peer(request: pytest.FixtureRequest) -> Iterator[tuple[Rig, Peer]]:
    """Return a reactor with an amount on every account, and the connection that has most of them."""
    settings = Settings(variant_opcodes=(1,), walk_at_once=2, pool_enabled=request.param, ping_interval_ms=0)
    made = Rig(settings)
    peer = made.connect(send_buffer_bytes=4_096)
    others = [made.connect() for _ in range(6)]
    made.connect(upgraded=False).send(b"GET / HTTP/1.1\r\n")
    others[0].send(client_header(2, 3_000) + bytes(40))
    for other in (peer, *others):
        made.reactor.subscribe(other.conn, b"a channel with a name of its own block")
        made.reactor.set_user(other.conn, b"ann")
    made.reactor.set_user(others[1].conn, b"bob")
    others[2].send(client_frame(1, b"hello"))
    made.turn()
    made.reactor.send(peer.conn, bytes(200_000))
    made.reactor.flush(made.now_ms)
    made.reactor.publish(b"a channel with a name of its own block", [b"news"])
    yield made, peer
    # Do not close the rig: that audits, and an account may still be wrong.
    for each in made.peers:
        each.close()
    made.reactor.shutdown()


def test_audit_of_correct_accounts_finds_no_fault(rig_and_peer: tuple[Rig, Peer]) -> None:
    made, _ = rig_and_peer
    assert audit(made.reactor) == []


@pytest.mark.parametrize("account", OF_THE_REACTOR)
@pytest.mark.parametrize("by", [1, -1, 64])
def test_audit_finds_each_wrong_account_of_the_reactor(
    rig_and_peer: tuple[Rig, Peer], account: str, by: int
) -> None:
    made, _ = rig_and_peer
    tamper(made.reactor, account, by)
    faults = audit(made.reactor)
    tamper(made.reactor, account, -by)
    assert faults
    assert audit(made.reactor) == []


@pytest.mark.parametrize("account", OF_A_CONNECTION)
def test_audit_finds_each_wrong_account_of_a_connection(rig_and_peer: tuple[Rig, Peer], account: str) -> None:
    made, peer = rig_and_peer
    tamper(made.reactor, account, 1, peer.conn)
    faults = audit(made.reactor)
    tamper(made.reactor, account, -1, peer.conn)
    assert faults
    assert audit(made.reactor) == []


def test_tampering_with_an_unknown_account_raises_value_error(rig_and_peer: tuple[Rig, Peer]) -> None:
    made, _ = rig_and_peer
    with pytest.raises(ValueError, match="nonsense"):
        tamper(made.reactor, "nonsense", 1)
