"""What a cluster's publisher and subscriber do about maps: which lane, and what waits for the next one."""

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
    """Hears nothing: no server is there."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: True


def topology() -> Topology:
    return Topology(parse_address("redis+cluster://127.0.0.1:1"), 0.1, lambda why: None)


def tell(where: Topology, *owners: Node | None) -> None:
    """A new map: the slots in equal parts."""
    rows = tuple(owners[slot * len(owners) // SLOTS] for slot in range(SLOTS))
    where.map = ClusterMap(rows, tuple(filter(None, owners)))
    for watch in where.watchers:
        watch(where.map)


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main

    asyncio.run(bounded())


def speaking(where: Topology) -> ClusterPublisher:
    return ClusterPublisher(where, connect_timeout_s=0.1, command_timeout_s=0.1, on_failed=lambda why: None)


def test_a_publication_that_met_a_moved_slot_fails_when_no_map_comes() -> None:
    async def main() -> None:
        publisher, outcomes = speaking(topology()), list[str]()
        for _ in range(3):
            publisher._on_outcome(NAME, b"1", outcomes.append, 3, "moved")
        assert outcomes == []
        await until("all are answered", lambda: len(outcomes) == 3)
        assert outcomes == ["down"] * 3
        assert publisher._again == []

    run(main())


def test_a_publication_follows_its_slot_so_often_and_no_further() -> None:
    async def main() -> None:
        where = topology()
        publisher, outcomes = speaking(where), list[str]()
        running = asyncio.ensure_future(publisher.run())
        await asyncio.sleep(0)
        publisher._on_outcome(NAME, b"1", outcomes.append, 1, "moved")
        tell(where, ONE)
        lane = publisher._lanes[ONE][0]
        assert [NAME in entry.data for entry in lane._own] == [True]
        publisher._on_outcome(NAME, b"1", outcomes.append, 0, "moved")
        assert outcomes == ["down"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert outcomes == ["down", "down"], "nobody is left without an answer"

    run(main())


def test_lanes_are_to_exactly_those_who_have_slots() -> None:
    async def main() -> None:
        where = topology()
        subscriber = ClusterSubscriber(where, b"wsgate:ch:", Listener(), Backlog(1 << 20))
        running = asyncio.ensure_future(subscriber.run())
        await asyncio.sleep(0)
        tell(where, ONE, OTHER)
        assert subscriber._lanes.keys() == {ONE, OTHER}
        owner = where.map.owners[slot_of(NAME)]
        lane = subscriber.lane_of(NAME)
        assert lane is not None and lane.node == owner and lane.covers(b"news")
        tell(where, OTHER)
        assert subscriber._lanes.keys() == {OTHER}
        tell(where, OTHER, None)
        assert not subscriber.is_up and not subscriber.is_up_for(b"news")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert subscriber._lanes == {}

    run(main())


def test_names_that_reach_every_server_are_one_each() -> None:
    async def main() -> None:
        where = topology()
        subscriber = ClusterSubscriber(where, b"wsgate:ch:", Listener(), Backlog(1 << 20))
        assert subscriber.reaching(b"probe") == []
        tell(where, ONE, OTHER)
        names = subscriber.reaching(b"probe")
        assert {where.map.owners[slot_of(name)] for name in names} == {ONE, OTHER}
        assert len(names) == 2
        running = asyncio.ensure_future(subscriber.run())
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(main())


def test_slots_that_a_server_inherits_which_was_there_before_are_subscribed_again() -> None:
    """No lane comes up for them, and the server that had them can say nothing any more."""

    class Told(Listener):
        def __init__(self) -> None:
            self.covers: list[Any] = []

        def on_up(self, covers: Any = None) -> None:
            self.covers.append(covers)

    async def main() -> None:
        where, told = topology(), Told()
        subscriber = ClusterSubscriber(where, b"wsgate:ch:", cast(Any, told), Backlog(1 << 20))
        running = asyncio.ensure_future(subscriber.run())
        await asyncio.sleep(0)
        tell(where, ONE, OTHER)
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
            tell(where, former, OTHER)
            if is_up:  # it is left, and what it says at the end is not read any more
                subscriber._lanes[ONE].subscriber._connection = cast(Any, object())
            told.covers.clear()
            asked.clear()
            moved = {name for name in names if slot_of(b"wsgate:ch:" + name) < SLOTS // 2}
            tell(where, OTHER, OTHER)
            (covers,) = told.covers
            assert {name for name in names if covers(name)} == moved
            assert 0 < len(moved) < len(names)
            assert set(asked) == {name for name in controls if slot_of(name) < SLOTS // 2}
        told.covers.clear()
        tell(where, OTHER, OTHER)
        assert told.covers == [], "nothing moved"
        lane._connection = None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(main())
