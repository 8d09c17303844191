"""Check the hub on a cluster whose slots move: each channel is subscribed on the server of its slot."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, Final, cast

from tests.unit.shard.test_hub import HubRig
from wsgate.bus import Backlog, Covers, push
from wsgate.bus.cluster import ClusterSubscriber, Topology, _Lane
from wsgate.bus.subscriber import NAMES_PER_COMMAND
from wsgate.bus.topology import SLOTS, ClusterMap, Node, slot_of
from wsgate.bus_address import parse_address
from wsgate.shard.hub import Joined
from wsgate.shard.unconfirmed import Confirmation

ONE: Final[Node] = ("127.0.0.1", 1)
OTHER: Final[Node] = ("127.0.0.1", 2)
THIRD: Final[Node] = ("127.0.0.1", 3)
PREFIX: Final = b"wsgate:ch:"


class Wire:
    """A connection that ignores all bytes."""

    publications = 0

    def __init__(self) -> None:
        self.why = ""

    def write(self, data: bytes) -> None: ...

    def limit_payload(self, limit_bytes: int) -> None: ...

    def abort(self, why: str) -> None:
        self.why = why


class Server:
    """A lane without a task, whose connection and replies a test decides."""

    def __init__(self, lane: _Lane) -> None:
        self.lane = lane
        self.subscriber: Any = lane.subscriber
        self.held: set[bytes] = set()  # names without the prefix; control names are whole
        self.refuses: Callable[[bytes], bool] = lambda name: False  # the name of an SSUBSCRIBE
        self.commands = 0
        lane.task.cancel()

    def come_up(self) -> None:
        self.subscriber._connection = Wire()
        self.lane.on_up()

    def break_off(self) -> None:
        """Lose the connection with all replies that were not read."""
        self.subscriber._connection = None
        self.subscriber._heard.clear()
        self.subscriber._unsent.clear()
        self.subscriber._pending.clear()
        self.subscriber._unsent_bytes = self.subscriber._unanswered = 0
        self.held.clear()
        self.lane.on_down()

    def announce(self, name: bytes) -> None:
        """End a subscription because the slot is elsewhere."""
        self.held.discard(name)
        self.subscriber.hand_up([(push.UNSUBSCRIBED, name, None)])

    def reply(self) -> bool:
        """Reply to all commands that were sent; return whether there was one."""
        pending = self.subscriber._pending
        if not pending:
            return False
        while pending:
            self.commands += 1
            asked = pending[0]
            name = asked.names[0].removeprefix(PREFIX)
            if asked.command == b"SUBSCRIBE" and self.refuses(name):
                self.subscriber.hand_up([(push.ERROR, b"CLUSTERDOWN The cluster is down", None)])
                continue
            is_on = asked.command == b"SUBSCRIBE"
            (self.held.add if is_on else self.held.discard)(name)
            kind = push.SUBSCRIBED if is_on else push.UNSUBSCRIBED
            if not asked.names[0].startswith(PREFIX):
                kind = push.CONTROL
            self.subscriber.hand_up([(kind, name, None)])
        self.subscriber.on_pass()
        return True


class ClusterRig(HubRig):
    """A hub on a `ClusterSubscriber`; it is the subscriber's listener."""

    def __init__(self) -> None:
        super().__init__()
        self.where = Topology(parse_address("redis+cluster://127.0.0.1:1"), 0.1, lambda why: None)
        self.readings = 0
        self.where.refresh = self.where.retry = self.count_reading  # type: ignore[method-assign]
        self.cluster = ClusterSubscriber(self.where, PREFIX, cast(Any, self), Backlog(1 << 20))
        self.servers: dict[Node, Server] = {}
        self.downs = 0
        self.controls: list[bytes] = []
        self.hub.attach(self.cluster)

    def count_reading(self) -> None:
        self.readings += 1

    def on_up(self, covers: Covers | None = None) -> None:
        self.hub.on_up(covers)

    def on_down(self, covers: Covers | None = None) -> None:
        self.downs += 1
        self.hub.on_down(covers)

    def on_reassigned(self, covers: Covers) -> None:
        self.hub.on_reassigned(covers)

    def on_unserved(self, covers: Covers) -> None:
        self.hub.on_down(covers)

    def on_moved(self) -> None:
        self.hub.on_moved()

    def on_failed(self, why: str) -> None: ...

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        self.controls.append(name)

    def on_subscribed(self, name: bytes) -> bool:
        return self.hub.on_subscribed(name)

    def on_refused(self, name: bytes) -> bool:
        self.hub.on_refused(name)
        return True

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        self.hub.on_lost(name, was_asked=was_asked)

    def on_pass(self) -> None:
        self.hub.resubscribe()

    def set_map(self, owner: Callable[[int], Node | None]) -> None:
        """Set a new map by a function from slot to owner; new servers are not connected."""
        owners = tuple(owner(slot) for slot in range(SLOTS))
        self.where.map = ClusterMap(owners, tuple(dict.fromkeys(filter(None, owners))))
        self.read_map()
        for node, lane in self.cluster._lanes.items():
            if node not in self.servers or self.servers[node].lane is not lane:
                self.servers[node] = Server(lane)

    def read_map(self) -> None:
        """Notify the watchers of the map, as after a reading without a change."""
        for watch in self.where.watchers:
            watch(self.where.map)

    async def settle(self) -> None:
        """Run passes, and let the servers reply, until nothing changes any more."""
        for _ in range(3):
            is_busy = True
            while is_busy:
                await asyncio.sleep(0)
                is_busy = self.hub.tidy()
                is_busy = any([server.reply() for server in self.servers.values()]) or is_busy
                is_busy = is_busy or self.cluster.unsent > 0  # written in the next pass of the loop


def run(main: Callable[[ClusterRig], Coroutine[Any, Any, None]]) -> None:
    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[ClusterRig]:
        rig = ClusterRig()
        task = asyncio.ensure_future(rig.cluster.run())
        await asyncio.sleep(0)
        try:
            yield rig
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            rig.close()

    async def bounded() -> None:
        async with asyncio.timeout(20), running() as rig:
            await main(rig)

    asyncio.run(bounded())


def halves(slot: int) -> Node:
    return ONE if slot < SLOTS // 2 else OTHER


def name_of(node: Node, prefix: bytes = PREFIX, stem: bytes = b"n") -> bytes:
    """Return a name whose slot belongs to a node of the map of halves."""
    return next(
        name for name in (b"%b%d" % (stem, n) for n in range(99)) if halves(slot_of(prefix + name)) == node
    )


def with_slot(slot: int, owner: Node, each: int) -> Node:
    """Return the owner of a slot in the map of halves, after one slot has moved."""
    return owner if each == slot else halves(each)


async def start(rig: ClusterRig) -> tuple[Server, Server]:
    """Connect both servers of the map of halves."""
    rig.set_map(halves)
    for server in rig.servers.values():
        server.come_up()
    await rig.settle()
    return rig.servers[ONE], rig.servers[OTHER]


def test_slot_that_moves_before_its_old_connection_breaks_is_subscribed_on_the_new_server() -> None:
    """The former server announces the move only on the connection that breaks."""

    async def main(rig: ClusterRig) -> None:
        one, other = await start(rig)
        name, control = name_of(ONE), name_of(ONE, b"", b"wsgate:ctl:")
        rig.cluster.subscribe_control(control)
        peer = rig.connect()
        rig.join(peer, name)
        await rig.settle()
        assert {name, control} <= one.held
        moved = {slot_of(PREFIX + name), slot_of(control)}
        rig.set_map(lambda slot: OTHER if slot in moved else halves(slot))
        assert not rig.hub.receives(name), "its publications go to the other server from now on"
        await rig.settle()
        assert {name, control} <= other.held and rig.hub.receives(name)
        one.break_off()
        one.come_up()
        await rig.settle()
        assert not {name, control} & one.held and {name, control} <= other.held
        assert rig.hub.receives(name) and rig.hub.pending == 0

    run(main)


def test_publish_that_began_before_its_slot_moved_proves_nothing() -> None:
    async def main(rig: ClusterRig) -> None:
        await start(rig)
        name = name_of(ONE)
        rig.join(rig.connect(), name)
        await rig.settle()
        watch = rig.hub.watch(name)
        assert watch is not None
        rig.set_map(partial(with_slot, slot_of(PREFIX + name), OTHER))
        assert not rig.hub.unwatch(name, watch) and rig.hub.watch(name) is None
        await rig.settle()
        assert rig.hub.watch(name) is not None

    run(main)


def test_replies_of_a_server_that_has_lost_the_slot_are_ignored() -> None:
    async def main(rig: ClusterRig) -> None:
        one, other = await start(rig)
        name, control = name_of(ONE), name_of(ONE, b"", b"wsgate:ctl:")
        rig.cluster.subscribe_control(control)
        rig.join(rig.connect(), name)
        await asyncio.sleep(0)  # SSUBSCRIBE is sent to the former server, which does not reply yet
        moved = {slot_of(PREFIX + name), slot_of(control)}
        rig.set_map(lambda slot: OTHER if slot in moved else halves(slot))
        rig.controls.clear()
        one.reply()
        assert rig.confirmations == [] and rig.controls == []
        await rig.settle()
        assert rig.confirmations == [(name, Confirmation.LIVE)] and rig.controls == [control]
        readings = rig.readings
        one.announce(name)
        one.announce(control)
        assert rig.hub.pending == 0 and rig.hub.receives(name) and rig.readings == readings
        other.announce(name)
        assert rig.hub.pending == 1 and not rig.hub.receives(name), "this server has the slot"

    run(main)


def test_announced_channels_of_a_moved_slot_are_requested_before_the_walk_and_only_once() -> None:
    async def main(rig: ClusterRig) -> None:
        one, other = await start(rig)
        name = name_of(ONE)
        rig.join(rig.connect(), name)
        await rig.settle()
        one.announce(name)
        other.commands = 0
        rig.set_map(partial(with_slot, slot_of(PREFIX + name), OTHER))
        await asyncio.sleep(0)
        other.reply()  # no pass of the hub has walked yet
        assert name in other.held and rig.hub.receives(name)
        await rig.settle()
        assert other.commands == 1

    run(main)


def test_slots_that_move_during_a_walk_are_walked_for_after_it() -> None:
    """A walk that began again with each moved slot would not end while slots move one after the other."""

    async def main(rig: ClusterRig) -> None:
        _, other = await start(rig)
        peer = rig.connect()
        names = [b"n%d" % number for number in range(3_000)]
        for name in names:
            rig.join(peer, name)
        await rig.settle()
        moved, queued = 0, 0
        while moved < SLOTS // 2:
            moved += 1_024
            rig.set_map(lambda slot: OTHER if slot < moved else halves(slot))  # noqa: B023
            await asyncio.sleep(0)
            rig.hub.tidy()
            other.reply()
            queued += bool(rig.hub._resubscribe_next)
        assert queued, "slots have moved during a walk"
        await rig.settle()
        assert other.held >= set(names)
        assert rig.hub.pending == 0 and all(map(rig.hub.receives, names))
        assert rig.hub._asked_early == set()

    run(main)


def test_server_that_leaves_the_map_reports_no_loss() -> None:
    """A planned move concerns all nodes at the same moment: none of them may count the bus as down."""

    async def main(rig: ClusterRig) -> None:
        one, other = await start(rig)
        name = name_of(ONE)
        rig.join(rig.connect(), name)
        await rig.settle()
        rig.set_map(lambda slot: OTHER)
        one.break_off()  # what the end of the lane's task does
        await rig.settle()
        assert rig.downs == 0 and name in other.held and rig.hub.receives(name)
        other.break_off()
        assert rig.downs == 1

    run(main)


def test_waiters_of_a_slot_that_moved_to_an_unreachable_server_are_notified_of_the_loss() -> None:
    async def main(rig: ClusterRig) -> None:
        await start(rig)
        name, stays = name_of(ONE), name_of(OTHER)
        rig.join(rig.connect(), name)
        rig.join(rig.connect(), stays)
        await asyncio.sleep(0)
        rig.set_map(lambda slot: THIRD if slot < SLOTS // 2 else OTHER)
        assert rig.confirmations == [(name, Confirmation.LOST)]
        assert not rig.hub.receives(name) and rig.downs == 0
        await rig.settle()
        rig.servers[THIRD].come_up()
        await rig.settle()
        assert rig.servers[THIRD].held == {name} and rig.hub.receives(name)
        assert rig.confirmations[1:] == [(stays, Confirmation.LIVE)]

    run(main)


def test_control_name_is_heard_from_the_confirmation_of_its_present_server_on() -> None:
    async def main(rig: ClusterRig) -> None:
        one, other = await start(rig)
        control = name_of(ONE, b"", b"wsgate:ctl:")
        rig.cluster.subscribe_control(control)
        assert not rig.cluster.hears(control)
        await rig.settle()
        assert rig.cluster.hears(control)
        one.announce(control)
        assert not rig.cluster.hears(control)
        rig.set_map(partial(with_slot, slot_of(control), OTHER))
        assert not rig.cluster.hears(control)
        await rig.settle()
        assert rig.cluster.hears(control)
        other.break_off()
        assert not rig.cluster.hears(control)

    run(main)


def test_channel_with_the_text_of_a_control_name_follows_its_slot_too() -> None:
    """The announcement leaves the prefix out, so that it may concern either."""

    async def main(rig: ClusterRig) -> None:
        one, _ = await start(rig)
        name = next(
            name
            for name in (b"wsgate:ctl:%d" % n for n in range(99_999))
            if halves(slot_of(name)) == halves(slot_of(PREFIX + name)) == ONE
        )
        rig.cluster.subscribe_control(name)
        rig.join(rig.connect(), name)
        await rig.settle()
        one.announce(name)
        assert not rig.hub.receives(name) and not rig.cluster.hears(name)
        rig.read_map()
        await rig.settle()
        assert rig.hub.receives(name) and rig.cluster.hears(name)

    run(main)


def test_every_waiter_is_answered_while_a_server_refuses_and_few_commands_are_repeated() -> None:
    async def main(rig: ClusterRig) -> None:
        one, other = await start(rig)
        one.refuses = other.refuses = lambda name: True
        peer = rig.connect()
        names = [b"n%d" % number for number in range(3_000)]
        for name in names:
            rig.join(peer, name)
        await rig.settle()
        assert rig.confirmations == [], "a slot may be on its way"
        rig.read_map()
        await rig.settle()
        assert sorted(rig.confirmations) == sorted((name, Confirmation.LOST) for name in names)
        one.commands = other.commands = 0
        for _ in range(10):
            rig.read_map()
            await rig.settle()
        assert 0 < one.commands + other.commands <= 10 * NAMES_PER_COMMAND, "one part for each reading"
        rig.confirmations.clear()
        late = rig.connect()
        assert rig.join(late, b"late") is Joined.WAITS
        assert rig.join(late, names[0]) is Joined.WAITS
        await rig.settle()
        assert (b"late", Confirmation.LOST) in rig.confirmations, "one refusal is enough now"
        rig.read_map()
        await rig.settle()
        assert (names[0], Confirmation.LOST) in rig.confirmations
        one.refuses = other.refuses = lambda name: False
        rig.read_map()
        await rig.settle()
        assert one.held | other.held == {*names, b"late"} and rig.hub.pending == 0
        assert all(map(rig.hub.receives, names))

    run(main)


def test_channels_of_other_slots_are_subscribed_while_one_slot_stays_refused() -> None:
    async def main(rig: ClusterRig) -> None:
        one, _ = await start(rig)
        stuck, moves, again = name_of(ONE), name_of(ONE, stem=b"m"), name_of(ONE, stem=b"a")
        one.refuses = lambda name: name == stuck
        for name in (stuck, moves, again):
            rig.join(rig.connect(), name)
        await rig.settle()
        for _ in range(3):
            one.announce(moves)
            rig.read_map()
            await rig.settle()
            assert rig.hub.receives(moves) and rig.hub.pending == 1
        assert (stuck, Confirmation.LOST) in rig.confirmations
        one.refuses = lambda name: False
        rig.read_map()
        await rig.settle()
        assert one.held >= {stuck, moves, again} and rig.hub.pending == 0

    run(main)
