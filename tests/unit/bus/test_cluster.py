"""Check what publisher and subscriber of a cluster do with slot maps: their lanes, and commands that wait."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, cast

from tests.support.fake_bus import until
from wsgate.bus.backlog import Backlog
from wsgate.bus.cluster import ClusterPublisher, ClusterSubscriber, Topology
from wsgate.bus.topology import SLOTS, ClusterMap, Node, slot_of
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
