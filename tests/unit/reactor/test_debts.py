"""Check that connections share the loop by cost: a costly one waits for cheap ones, but not without end.

The test moves the clock: a turn in the compiled code costs 5 us for each message, and each test states what
its messages cost beyond that. So the tests count turns and messages.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from socket import AF_INET, SOCK_DGRAM, socket

import pytest

from tests.support.frames import client_close, client_frame
from tests.support.reactor_rig import Peer, Rig
from wsgate.reactor import GateLimits, Settings, event_kinds
from wsgate.reactor.event_kinds import Event
from wsgate.reactor.testing import let_go, open_slots

MS_NS = 1_000_000
COSTLY_NS = MS_NS
QUANTUM_NS = 500_000  # as in structs.pxd, like those below
PASS_NS = 2_000_000
DEBT_MOST_NS = 50_000_000
DEBT_ROWS = 8_192
RESERVE_PASSES = 4


class Loop:
    """A rig whose caller charges messages, and whose clock moves by the cost of these messages."""

    def __init__(self) -> None:
        self.rig = Rig(Settings(ping_interval_ms=0), on_event=self._on_event)
        self.rig.reactor.set_gate(GateLimits(), b"")
        self.costs: dict[int, int] = {}  # of a message, by connection
        self.order: list[int] = []  # the connections of the messages, in order
        self._spent_ns = 0

    def _on_event(self, bench: Rig, event: Event) -> None:
        kind, conn, _ = event
        if kind not in (event_kinds.TEXT, event_kinds.BINARY):
            return
        self.order.append(conn)
        if cost_ns := self.costs.get(conn, 0):
            bench.reactor.charge(conn, cost_ns)
            self._spent_ns += cost_ns
            bench.now_ms += self._spent_ns // MS_NS
            self._spent_ns %= MS_NS

    def come(self, cost_ns: int = 0) -> Peer:
        peer = self.rig.connect()
        self.costs[peer.conn] = cost_ns
        return peer

    def costly(self, count: int, *, messages: int = 500) -> list[Peer]:
        """Connect peers with costly messages; the reactor has measured two of each already."""
        peers = [self.come(COSTLY_NS) for _ in range(count)]
        for peer in peers * 2:
            peer.send(client_frame(1, b"x"))
        self.rig.turn()
        for peer in peers:
            peer.send(client_frame(1, b"x") * messages)
        self.steps(3)
        self.order.clear()
        return peers

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.rig.step()

    def debt_ns(self, peer: Peer) -> int:
        found = self.rig.reactor.inspect(peer.conn)
        assert found is not None
        return found["debt_ns"]


@contextmanager
def loop() -> Iterator[Loop]:
    made = Loop()
    try:
        yield made
    finally:
        made.rig.close()


@pytest.mark.parametrize("count", [1, 30, 300])
def test_cheap_message_waits_for_at_most_two_passes_during_floods_of_costly_messages(count: int) -> None:
    with loop() as at:
        at.costly(count)
        cheap = at.come()
        for _ in range(20):
            before = len(at.order)
            cheap.send(client_frame(1, b"ping"))
            while cheap.conn not in at.order[before:]:
                at.steps(1)
                # Two passes: the reactor polls epoll every 2 ms. Each pass ends after 2 ms of messages.
                assert len(at.order) - before <= 2 * PASS_NS // COSTLY_NS + 1


def test_cheap_message_goes_first_in_a_pass_that_also_serves_costly_connections() -> None:
    with loop() as at:
        at.costly(30)
        cheap = at.come()
        for _ in range(10):
            cheap.send(client_frame(1, b"ping"))
            at.rig.now_ms += 5  # the next pass polls epoll
            at.order.clear()
            at.steps(1)
            assert at.order[0] == cheap.conn


def test_turn_of_a_costly_connection_takes_one_message() -> None:
    with loop() as at:
        peers = at.costly(5)
        at.steps(40)
        assert len(at.order) >= 40
        assert all(one != other for one, other in zip(at.order, at.order[1:], strict=False))
        assert set(at.order) == {peer.conn for peer in peers}


def test_unmeasured_costly_connections_delay_a_cheap_one_by_one_message_each() -> None:
    """After the first costly message, unmeasured connections have turns of one message."""
    count = 200
    with loop() as at:
        peers = [at.come(COSTLY_NS) for _ in range(count)]
        for peer in peers:
            peer.send(client_frame(1, b"x") * 100)
        at.steps(1)
        cheap = at.come()
        cheap.send(client_frame(1, b"ping"))
        while cheap.conn not in at.order:
            at.steps(1)
        # A pass of 256 messages arrived before any cost was measured.
        assert len(at.order) <= count + 256


def test_unmeasured_connections_get_full_turns_again_after_100_cheap_messages() -> None:
    with loop() as at:
        surprise = at.come(COSTLY_NS)
        surprise.send(client_frame(1, b"x"))
        at.rig.turn()
        for _ in range(100):
            peer = at.come()
            peer.send(client_frame(1, b"x"))
            at.rig.turn()
        peer = at.come()
        peer.send(client_frame(1, b"x") * 64)
        before = len(at.order)
        at.rig.now_ms += 5
        at.steps(1)
        assert len(at.order) - before == 64


def test_turns_of_two_connections_of_equal_cost_alternate() -> None:
    with loop() as at:
        first, second = (peer.conn for peer in at.costly(2))
        at.steps(40)
        assert at.order[:60:2] in ([first] * 30, [second] * 30)
        assert at.order[1:60:2] in ([first] * 30, [second] * 30)


def test_connection_with_messages_of_a_quarter_cost_is_served_four_times_as_often() -> None:
    with loop() as at:
        costly, other = at.costly(2, messages=2_000)
        at.costs[other.conn] = COSTLY_NS // 4
        at.steps(100)
        at.order.clear()
        at.steps(200)
        served = Counter(at.order)
        assert 3 <= served[other.conn] / served[costly.conn] <= 5


@pytest.mark.parametrize("cost_ns", [0, COSTLY_NS])
def test_99_connections_of_one_user_have_one_share_together(cost_ns: int) -> None:
    """Two users flood, one of them on 99 connections. With costly messages each user has half of the time."""
    with loop() as at:
        peers = [at.come(cost_ns) for _ in range(100)]
        for peer in peers[:99]:
            at.rig.reactor.set_user(peer.conn, b"many")
        at.rig.reactor.set_user(peers[99].conn, b"one")
        for peer in peers:
            peer.send(client_frame(1, b"x") * 3_000)
        at.steps(200)
        at.order.clear()
        at.steps(100)
        of_one = at.order.count(peers[99].conn)
        if cost_ns:
            assert 0.4 <= of_one / len(at.order) <= 0.6
        else:
            assert of_one >= 600, "a turn of 8 messages in nearly every pass, and not in every third"


def test_debt_of_a_user_applies_to_a_new_connection_of_that_user() -> None:
    with loop() as at:
        peer = at.costly(1)[0]
        at.rig.reactor.set_user(peer.conn, b"back")
        at.steps(20)
        assert at.debt_ns(peer) > 0
        peer.close()
        at.rig.turn()
        again = at.come()
        assert at.debt_ns(again) == 0
        at.rig.reactor.set_user(again.conn, b"back")
        assert at.debt_ns(again) > 0


def test_cheap_connection_with_one_slightly_slow_message_is_still_served_first() -> None:
    with loop() as at:
        at.costly(30)
        good = at.come()
        at.rig.reactor.charge(good.conn, QUANTUM_NS // 6)
        for _ in range(10):
            good.send(client_frame(1, b"ping"))
            at.rig.now_ms += 5
            at.order.clear()
            at.steps(1)
            assert at.order[0] == good.conn


def test_connection_becomes_costly_with_its_second_slow_message_and_not_with_the_first() -> None:
    """The first slow message may be chance: another process ran, or a page had to be read."""
    with loop() as at:
        at.costly(30)
        client = at.come(QUANTUM_NS - 100_000)
        positions = []
        for _ in range(3):
            at.rig.now_ms += 5
            client.send(client_frame(1, b"x"))
            at.order.clear()
            at.steps(1)
            positions.append(at.order.index(client.conn) if client.conn in at.order else -1)
        assert positions[:2] == [0, 0] and positions[2] != 0


def test_single_connection_in_debt_is_served_in_every_pass() -> None:
    with loop() as at:
        at.costly(1)
        for _ in range(50):
            before = len(at.order)
            at.steps(1)
            assert len(at.order) > before


def test_connection_in_debt_gets_a_reserved_turn_although_others_fill_every_pass() -> None:
    with loop() as at:
        (costly,) = at.costly(1)
        cheap = [at.come() for _ in range(4)]
        at.order.clear()
        for _ in range(20 * RESERVE_PASSES):
            for peer in cheap:
                peer.send(client_frame(1, b"x"))
            at.rig.now_ms += 5
            for event in at.rig.reactor.poll(at.rig.now_ms, len(cheap)):
                at._on_event(at.rig, event)
        turns = at.order.count(costly.conn)
        assert 12 <= turns <= 20, "one turn in every four passes, and not more"


def test_debt_is_capped_at_50_ms_and_decays_with_time() -> None:
    with loop() as at:
        peer = at.come()
        at.rig.reactor.charge(peer.conn, 3_600_000 * MS_NS)
        assert at.debt_ns(peer) == DEBT_MOST_NS
        at.rig.now_ms += 10_000
        at.rig.step()
        assert 0 < at.debt_ns(peer) < DEBT_MOST_NS
        at.rig.now_ms += 20_000
        at.rig.step()
        assert at.debt_ns(peer) == 0


def test_new_connection_does_not_inherit_the_debt_of_its_slot() -> None:
    with loop() as at:
        before = at.come()
        at.rig.reactor.charge(before.conn, 10 * MS_NS)
        at.rig.reactor.abort(before.conn)
        at.rig.turn()
        at.rig.reactor.charge(before.conn, 10 * MS_NS)  # a stale handle: harmless
        after = at.come()
        assert after.conn & 0xFFFFFFFF == before.conn & 0xFFFFFFFF
        assert at.debt_ns(after) == 0


def test_abort_of_a_connection_in_debt_is_reported_within_one_round() -> None:
    with loop() as at:
        peers = at.costly(30)
        leaving = peers[7]
        at.steps(40)
        at.rig.reactor.charge(leaving.conn, DEBT_MOST_NS)
        at.steps(20)  # the connection waits among those in debt
        at.rig.reactor.abort(leaving.conn)
        at.steps(30)
        assert at.rig.of(leaving)[-1][0] == event_kinds.CLOSED


def test_close_frame_after_costly_messages_is_reported_after_all_of_them() -> None:
    with loop() as at:
        peer = at.come(COSTLY_NS)
        peer.send(client_frame(1, b"x") * 40 + client_close(1000))
        at.rig.turn()
        assert [kind for kind, _ in at.rig.of(peer)][:41] == [event_kinds.TEXT] * 40 + [
            event_kinds.PEER_CLOSED
        ]


def test_connections_with_cheap_messages_take_no_memory_in_the_debt_table() -> None:
    with loop() as at:
        peers = [at.come() for _ in range(50)]
        table = at.rig.reactor.bytes_held()["table"]
        for _ in range(20):
            for peer in peers:
                peer.send(client_frame(1, b"x") * 3)
            at.rig.turn()
        assert at.rig.reactor.bytes_held()["table"] == table


def test_debt_table_has_at_most_8192_rows_for_10192_charged_connections() -> None:
    count = DEBT_ROWS + 2_000
    with loop() as at, socket(AF_INET, SOCK_DGRAM) as sink:
        sink.connect(("127.0.0.1", 9))
        reactor = at.rig.reactor
        handles = open_slots(reactor, [sink.fileno()], count, now_ms=at.rig.now_ms)
        before = reactor.bytes_held()["table"]
        for conn in handles:
            reactor.charge(conn, 10 * MS_NS)
        grown = reactor.bytes_held()["table"] - before
        at.rig.audit()
        found = [reactor.inspect(conn) for conn in handles]
        owing = sum(each is not None and each["debt_ns"] > 0 for each in found)
        let_go(reactor, handles)
    assert owing == DEBT_ROWS
    assert grown == DEBT_ROWS * 16
