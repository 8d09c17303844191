"""Check what publisher and subscriber of a cluster do with slot maps: their lanes, and commands that wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any, Final, cast

import pytest

from tests.support.fake_bus import FakeBus, Talk, fake_bus, until
from wsgate.bus.backlog import Backlog
from wsgate.bus.cluster import ClusterPublisher, ClusterSubscriber, Topology
from wsgate.bus.topology import GOSSIP_S, SLOTS, ClusterMap, Node, slot_of
from wsgate.bus_address import parse_address

ONE: Final[Node] = ("127.0.0.1", 1)
OTHER: Final[Node] = ("127.0.0.1", 2)
NAME: Final = b"wsgate:ch:news"


class Listener:
    """A listener that ignores every call, because no server is there."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: True


def topology() -> Topology:
    return Topology(parse_address("redis+cluster://127.0.0.1:1"), 0.1, lambda why: None)


def set_map(where: Topology, *owners: Node | None) -> None:
    """Set a new map with the slots in equal parts and notify the watchers."""
    rows = tuple(owners[slot * len(owners) // SLOTS] for slot in range(SLOTS))
    where.map = ClusterMap(rows, tuple(filter(None, owners)))
    for watch in where.watchers:
        watch(where.map)


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main

    asyncio.run(bounded())


def make_publisher(where: Topology) -> ClusterPublisher:
    return ClusterPublisher(where, connect_timeout_s=0.1, command_timeout_s=0.1, on_failed=lambda why: None)


def test_publication_to_a_moved_slot_fails_if_no_new_map_arrives() -> None:
    async def main() -> None:
        publisher, outcomes = make_publisher(topology()), list[str]()
        for _ in range(3):
            publisher._on_outcome(NAME, b"1", outcomes.append, 3, "moved")
        assert outcomes == []
        await until("all are answered", lambda: len(outcomes) == 3)
        assert outcomes == ["down"] * 3
        assert publisher._again == []

    run(main())


def test_publication_follows_a_moved_slot_only_as_often_as_allowed() -> None:
    async def main() -> None:
        where = topology()
        publisher, outcomes = make_publisher(where), list[str]()
        running = asyncio.ensure_future(publisher.run())
        await asyncio.sleep(0)
        publisher._on_outcome(NAME, b"1", outcomes.append, 1, "moved")
        set_map(where, ONE)
        lane = publisher._lanes[ONE][0]
        assert [NAME in entry.data for entry in lane._own] == [True]
        publisher._on_outcome(NAME, b"1", outcomes.append, 0, "moved")
        assert outcomes == ["down"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert outcomes == ["down", "down"], "every publication has an outcome"

    run(main())


def test_lanes_exist_for_exactly_the_servers_that_own_slots() -> None:
    async def main() -> None:
        where = topology()
        subscriber = ClusterSubscriber(where, b"wsgate:ch:", Listener(), Backlog(1 << 20))
        running = asyncio.ensure_future(subscriber.run())
        await asyncio.sleep(0)
        set_map(where, ONE, OTHER)
        assert subscriber._lanes.keys() == {ONE, OTHER}
        owner = where.map.owners[slot_of(NAME)]
        lane = subscriber.lane_of(NAME)
        assert lane is not None and lane.node == owner and lane.covers(b"news")
        set_map(where, OTHER)
        assert subscriber._lanes.keys() == {OTHER}
        set_map(where, OTHER, None)
        assert not subscriber.is_up and not subscriber.is_up_for(b"news")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert subscriber._lanes == {}

    run(main())


def test_reaching_returns_one_name_for_each_server() -> None:
    async def main() -> None:
        where = topology()
        subscriber = ClusterSubscriber(where, b"wsgate:ch:", Listener(), Backlog(1 << 20))
        assert subscriber.reaching(b"probe") == []
        set_map(where, ONE, OTHER)
        names = subscriber.reaching(b"probe")
        assert {where.map.owners[slot_of(name)] for name in names} == {ONE, OTHER}
        assert len(names) == 2
        running = asyncio.ensure_future(subscriber.run())
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(main())


def test_slots_that_move_to_a_connected_server_are_subscribed_again() -> None:
    """No lane comes up for these slots, and the former server may be unreachable."""

    class RecordingListener(Listener):
        def __init__(self) -> None:
            self.covers: list[Any] = []

        def on_up(self, covers: Any = None) -> None:
            self.covers.append(covers)

    async def main() -> None:
        where, listener = topology(), RecordingListener()
        subscriber = ClusterSubscriber(where, b"wsgate:ch:", cast(Any, listener), Backlog(1 << 20))
        running = asyncio.ensure_future(subscriber.run())
        await asyncio.sleep(0)
        set_map(where, ONE, OTHER)
        asked: list[bytes] = []
        lane = subscriber._lanes[OTHER].subscriber
        lane._connection = cast(Any, object())
        lane.subscribe_control = asked.append  # type: ignore[method-assign, assignment]
        names = [b"n%d" % number for number in range(50)]
        controls = [b"wsgate:ctl:%d" % number for number in range(50)]
        for name in controls:
            subscriber.subscribe_control(name)
        asked.clear()
        for former, is_up in ((ONE, False), (None, False), (ONE, True)):
            set_map(where, former, OTHER)
            if is_up:  # this lane is closed, and its last replies are not read
                subscriber._lanes[ONE].subscriber._connection = cast(Any, object())
            listener.covers.clear()
            asked.clear()
            moved = {name for name in names if slot_of(b"wsgate:ch:" + name) < SLOTS // 2}
            set_map(where, OTHER, OTHER)
            (covers,) = listener.covers
            assert {name for name in names if covers(name)} == moved
            assert 0 < len(moved) < len(names)
            assert set(asked) == {name for name in controls if slot_of(name) < SLOTS // 2}
        listener.covers.clear()
        set_map(where, OTHER, OTHER)
        assert listener.covers == [], "nothing moved"
        lane._connection = None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(main())


# --- what nodes reply to CLUSTER SLOTS --------------------------------------------------------------------


def slots(*rows: tuple[int, int, int]) -> bytes:
    """Return a reply to CLUSTER SLOTS with a row for each range of slots and the port of its owner."""
    said = bytearray(b"*%d\r\n" % len(rows))
    for first, last, port in rows:
        said += b"*3\r\n:%d\r\n:%d\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % (first, last, port)
    return bytes(said)


class Nodes:
    """Fake nodes of a cluster, each with a reply to CLUSTER SLOTS and one to every SSUBSCRIBE."""

    def __init__(self, count: int) -> None:
        self.map: list[bytes] = [b"*0\r\n"] * count
        self.refusal: list[bytes] = [b""] * count
        self.buses: list[FakeBus] = []
        self.asked: list[int] = []  # the nodes that were asked for the map

    def answer(self, number: int, talk: Talk, parts: list[bytes]) -> bytes | None:
        if parts[:2] == [b"CLUSTER", b"SLOTS"]:
            self.asked.append(number)
            return self.map[number]
        if parts[0] in (b"SSUBSCRIBE", b"SPUBLISH") and self.refusal[number]:
            return self.refusal[number]
        if parts[0] == b"SSUBSCRIBE":
            talk.names.update(parts[1:])
            row = b"*3\r\n$10\r\nssubscribe\r\n$%d\r\n%b\r\n:1\r\n"
            return b"".join(row % (len(name), name) for name in parts[1:])
        return None

    def port(self, number: int) -> int:
        return self.buses[number].address.port

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(len(self.map)):
                answer = partial(self.answer, number)
                self.buses.append(await stack.enter_async_context(fake_bus(answer)))
            yield

    @contextlib.asynccontextmanager
    async def subscribed(self, listener: Any = None) -> AsyncIterator[ClusterSubscriber]:
        """Run a subscriber that knows the nodes in their order, and wait for its lanes."""
        hosts = ",".join(f"127.0.0.1:{self.port(number)}" for number in range(len(self.map)))
        where = Topology(parse_address(f"redis+cluster://{hosts}"), 1.0, lambda why: None)
        subscriber = ClusterSubscriber(where, b"wsgate:ch:", listener or Listener(), Backlog(1 << 20))
        tasks = [asyncio.ensure_future(part.run()) for part in (subscriber, where)]
        try:
            await until("the lanes are up", lambda: subscriber._lanes and subscriber.is_up)
            yield subscriber
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("rest", [0, 100])
def test_lanes_stay_when_the_first_node_restarts_and_knows_few_slots_or_none(rest: int) -> None:
    """A node that restarts without its `nodes.conf` replies with no slots; so do new nodes."""

    async def main() -> None:
        nodes = Nodes(2)
        async with nodes.running():
            half = SLOTS // 2
            good = slots((0, half - 1, nodes.port(0)), (half, SLOTS - 1, nodes.port(1)))
            nodes.map = [good, good]
            async with nodes.subscribed() as subscriber:
                lanes = dict(subscriber._lanes)
                nodes.map[0] = slots((0, rest, nodes.port(0))) if rest else b"*0\r\n"
                for _ in range(4):
                    nodes.asked.clear()
                    subscriber.topology.refresh()
                    await until("the map was read", lambda: nodes.asked and nodes.asked[-1] == 1)
                    await asyncio.sleep(0.01)
                    assert subscriber._lanes == lanes and subscriber.is_up
                assert nodes.asked == [1], "the node that failed comes last"

    run(main())


def test_map_of_a_node_that_is_cut_off_is_replaced_after_moved() -> None:
    """The node sends an old map for ever; the server of the slot knows better and names the owner."""

    async def main() -> None:
        nodes = Nodes(3)
        async with nodes.running():
            old = slots((0, SLOTS // 2, nodes.port(0)), (SLOTS // 2 + 1, SLOTS - 1, nodes.port(1)))
            nodes.map = [old, old, old]
            async with nodes.subscribed() as subscriber:
                fresh = slots((0, SLOTS - 1, nodes.port(1)))
                nodes.map = [old, fresh, fresh]
                name = next(b"n%d" % n for n in range(99) if slot_of(b"wsgate:ch:n%d" % n) < SLOTS // 2)
                nodes.refusal[0] = b"-MOVED 1 127.0.0.1:%d\r\n" % nodes.port(1)
                nodes.asked.clear()
                subscriber.subscribe([name])
                owner = ("127.0.0.1", nodes.port(1))
                await until("the map is fresh", lambda: subscriber._lanes.keys() == {owner})
                assert nodes.asked == [1], "the node that MOVED names is asked first"

    run(main())


def test_readings_of_the_map_ask_different_nodes() -> None:
    async def main() -> None:
        nodes = Nodes(3)
        async with nodes.running():
            third = SLOTS // 3
            edges = ((0, third), (third + 1, 2 * third), (2 * third + 1, SLOTS - 1))
            nodes.map = [slots(*((*edge, nodes.port(n)) for n, edge in enumerate(edges)))] * 3
            async with nodes.subscribed() as subscriber:
                nodes.asked.clear()
                subscriber.topology._order._changed_s -= GOSSIP_S
                for reading in range(1, 4):
                    subscriber.topology.refresh()
                    await until("the map was read", lambda: len(nodes.asked) >= reading)  # noqa: B023
                assert sorted(nodes.asked) == [0, 1, 2]

    run(main())


def test_readings_after_refusals_grow_rarer_and_an_announced_move_is_read_at_once() -> None:
    """A cluster may be down for hours, and each reading requests all refused names again."""

    class Returning(Listener):
        """A listener that subscribes again to what was refused, like the hub."""

        def __init__(self) -> None:
            self.lost: set[bytes] = set()
            self.subscriber: ClusterSubscriber | None = None

        def on_lost(self, name: bytes, *, was_asked: bool) -> None:
            assert was_asked
            self.lost.add(name)

        def on_moved(self) -> None:
            if self.subscriber is not None:
                again, self.lost = self.lost, set()
                self.subscriber.subscribe(again)

    async def main() -> None:
        nodes, listener = Nodes(1), Returning()
        async with nodes.running():
            nodes.map = [slots((0, SLOTS - 1, nodes.port(0)))]
            nodes.refusal = [b"-CLUSTERDOWN The cluster is down\r\n"]
            async with nodes.subscribed(listener) as subscriber:
                listener.subscriber = subscriber
                nodes.asked.clear()
                subscriber.subscribe([b"news"])
                subscriber.subscribe_control(b"wsgate:ctl")
                await until("the first reading", lambda: nodes.asked, 1.0)
                await asyncio.sleep(2.0)
                assert 3 <= len(nodes.asked) <= 10
                assert len(nodes.buses[0].said(b"SSUBSCRIBE")) <= 22
                nodes.asked.clear()
                await until("a reading has ended", lambda: nodes.asked, 3.0)
                nodes.asked.clear()
                subscriber.topology.refresh()
                await until("the urgent reading", lambda: nodes.asked, 0.5)

    run(main())


def test_slot_that_has_moved_does_not_move_back_while_other_nodes_send_the_old_map() -> None:
    async def main() -> None:
        nodes = Nodes(3)
        async with nodes.running():
            half = SLOTS // 2
            old = slots((0, half, nodes.port(0)), (half + 1, SLOTS - 1, nodes.port(1)))
            fresh = slots((0, half + 1, nodes.port(0)), (half + 2, SLOTS - 1, nodes.port(1)))
            nodes.map = [old] * 3
            async with nodes.subscribed() as subscriber:
                where = subscriber.topology
                where._order._changed_s -= GOSSIP_S
                nodes.map[1] = fresh
                owner = ("127.0.0.1", nodes.port(0))
                while where.map.owners[half + 1] != owner:
                    where.refresh()
                    await asyncio.sleep(0.1)
                for _ in range(3):
                    nodes.asked.clear()
                    where.refresh()
                    await until("the map was read", lambda: nodes.asked)
                    await asyncio.sleep(0.01)
                    assert nodes.asked == [1] and where.map.owners[half + 1] == owner

    run(main())
