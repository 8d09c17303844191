"""A bus that is a cluster: one subscriber and one publisher connection to each server that has slots.

Publications are sharded channels (SSUBSCRIBE, SPUBLISH): each lives on the server of its slot, so that a
cluster carries more than one server can. A *lane* is a connection to one server. What moves a slot:

- a server says so (an unasked sunsubscribe, MOVED): the map is read again, and the names that were lost
  are subscribed where they live now;
- a server dies: its lane is down, the map is read until somebody else has its slots, that one's lane
  comes up and everything of its slots is subscribed again.

Meanwhile the other lanes notice nothing. A lane whose server has no slots any more is left before another
takes over, so that no publication comes by two ways.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from wsgate.bus.backlog import Backlog
from wsgate.bus.publisher import CallDone, Done, Publisher
from wsgate.bus.subscriber import Subscriber, SubscriberListener, SubscriberOptions
from wsgate.bus.topology import SLOTS, ClusterMap, Node, read_cluster, slot_of
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError
from wsgate.turns import Sender

__all__ = ["ClusterListener", "ClusterPublisher", "ClusterSubscriber", "Covers", "Topology"]

REFRESH_S: Final = 30.0
REFRESH_SOON_S: Final = 0.25
"""After a map that did not help, or could not be read, about so long."""
GATHER_S: Final = 0.05
"""Slots move one by one, and each is heard of many times: one reading serves them all."""
MOVES_MOST: Final = 3
"""A publication follows so many moves of its slot."""
AGAIN_MOST: Final = 8_192
AGAIN_BYTES_MOST: Final = 32 * 1024 * 1024
"""Publications, and their bytes, that wait for a new map because their slot moved."""

Covers = Callable[[bytes], bool]
"""Whether a channel, by its name without the prefix, is among those that something is about."""


class Topology:
    """The cluster's map, kept up to date. Watchers are told of each new one, in order.

    Args:
        address: Of kind cluster.
        timeout_s: For each node that is asked.
        on_failed: Told why, for a log, when no node answers.
    """

    def __init__(self, address: BusAddress, timeout_s: float, on_failed: Callable[[str], None]) -> None:
        self.address = address
        self.map = ClusterMap((None,) * SLOTS, ())
        self.watchers: list[Callable[[ClusterMap], None]] = []
        self.is_needed: Callable[[], bool] = lambda: False
        self._timeout_s = timeout_s
        self._on_failed = on_failed
        self._wake = asyncio.Event()

    def server_of(self, name: bytes) -> BusAddress | None:
        """Where a key or sharded channel lives; None while nobody has its slot."""
        node = self.map.owners[slot_of(name)]
        if node is None:
            self.refresh()
            return None
        return self.address.server(*node)

    def refresh(self) -> None:
        """Read the map again, soon."""
        self._wake.set()

    async def run(self) -> None:
        """Read it now, whenever it is asked for, and from time to time; until cancelled."""
        while True:
            self._wake.clear()
            is_read = await self._read()
            if not is_read or self.is_needed():
                # Somebody waits for a server: ask again by ourselves, not in step with other shards.
                await asyncio.sleep(REFRESH_SOON_S * random.uniform(0.5, 1.5))  # noqa: S311 - spreading
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S * random.uniform(0.8, 1.2)):  # noqa: S311 - spreading
                    await self._wake.wait()
                    await asyncio.sleep(GATHER_S)

    async def _read(self) -> bool:
        try:
            self.map = await read_cluster(self.address, self.map.nodes, self._timeout_s)
        except BackendError as error:
            self._on_failed(str(error))
            return False
        for watch in self.watchers:
            watch(self.map)
        return True


class ClusterListener(SubscriberListener, Protocol):
    """Who is told by a cluster: which names it is about."""

    def on_up(self, covers: Covers | None = None) -> None:
        """A server is there; of the channels it covers nothing is subscribed. None: it covers all."""

    def on_down(self, covers: Covers | None = None) -> None:
        """A server is lost, and every subscription with it."""

    def on_moved(self) -> None:
        """The map was read again: what was lost may be subscribed anew."""


class _Lane:
    """The subscriber connection to one server, and what it says passed on with what it is about."""

    def __init__(self, owner: "ClusterSubscriber", node: Node) -> None:
        self.node = node
        self.owner = owner
        address = owner.topology.address.server(*node)
        self.subscriber = Subscriber(
            address, owner.prefix, self, owner.backlog, owner.options, is_sharded=True
        )
        self.task = asyncio.get_running_loop().create_task(self.subscriber.run())

    def covers(self, name: bytes) -> bool:
        """Whether a channel lives there."""
        return self.owner.lane_of(self.owner.prefix + name) is self

    def on_up(self) -> None:
        self.owner.on_lane_up(self)

    def on_down(self) -> None:
        self.owner.listener.on_down(self.covers)
        self.owner.topology.refresh()

    def on_failed(self, why: str) -> None:
        self.owner.listener.on_failed(f"{self.node[0]}:{self.node[1]}: {why}")

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        self.owner.listener.on_control(name, payload)

    def on_subscribed(self, name: bytes) -> bool:
        return self.owner.listener.on_subscribed(name)

    def on_refused(self, name: bytes) -> bool:
        return self.owner.listener.on_refused(name)

    def on_pass(self) -> None:
        self.owner.listener.on_pass()

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        self.owner.on_lost(name, was_asked=was_asked)


class ClusterSubscriber:
    """As `Subscriber`, over all servers of a cluster; its topology runs beside it.

    Args:
        topology: Which servers there are.
        prefix: What channel names start with on the bus.
        listener: Who is told.
        backlog: Where the publications of all servers go, in the order of their arrival.
        options: For each connection.
    """

    def __init__(
        self,
        topology: Topology,
        prefix: bytes,
        listener: ClusterListener,
        backlog: Backlog,
        options: SubscriberOptions | None = None,
    ) -> None:
        self.topology = topology
        self.prefix = prefix
        self.listener = listener
        self.backlog = backlog
        self.options = options or SubscriberOptions()
        self._lanes: dict[Node, _Lane] = {}
        self._owners = topology.map.owners  # of the map that was applied last
        self._control: set[bytes] = set()
        self._lost_control: set[bytes] = set()
        self._fault: asyncio.Future[None] | None = None
        topology.watchers.append(self._apply)
        topology.is_needed = lambda: not self.is_up

    @property
    def is_up(self) -> bool:
        """Whether every channel can be subscribed to."""
        owners = self.topology.map.owners
        return None not in owners and all(lane.subscriber.is_up for lane in self._lanes.values())

    def lane_of(self, name: bytes) -> _Lane | None:
        """The lane of a whole name; None while nobody has its slot."""
        node = self.topology.map.owners[slot_of(name)]
        return None if node is None else self._lanes.get(node)

    def is_up_for(self, name: bytes) -> bool:
        """Whether this channel can be subscribed to now."""
        lane = self.lane_of(self.prefix + name)
        return lane is not None and lane.subscriber.is_up

    @property
    def unsent(self) -> int:
        """As `Subscriber.unsent`, of all servers."""
        return sum(lane.subscriber.unsent for lane in self._lanes.values())

    @property
    def waiting_bytes(self) -> int:
        """As `Subscriber.waiting_bytes`, of all servers."""
        return sum(lane.subscriber.waiting_bytes for lane in self._lanes.values())

    def subscribe(self, names: Iterable[bytes]) -> list[bytes]:
        """SSUBSCRIBE to channels by names without the prefix, each where it lives; as `Subscriber`'s."""
        lanes = self._by_lane(names).items()
        return [name for lane, some in lanes for name in lane.subscriber.subscribe(some)]

    def unsubscribe(self, names: Iterable[bytes]) -> list[bytes]:
        """SUNSUBSCRIBE from channels; as `Subscriber.unsubscribe`."""
        lanes = self._by_lane(names).items()
        return [name for lane, some in lanes for name in lane.subscriber.unsubscribe(some)]

    def subscribe_control(self, name: bytes) -> None:
        """SSUBSCRIBE to a name as it is, now and whenever its server comes up or changes."""
        if name not in self._control:
            self._control.add(name)
            self._hear_control(name)

    def _hear_control(self, name: bytes) -> None:
        if lane := self.lane_of(name):
            lane.subscriber.subscribe_control(name)

    def reaching(self, name: bytes) -> list[bytes]:
        """Names made of this one that together reach every server, one each."""
        found: dict[Node, bytes] = {}
        servers, number = len(self.topology.map.primaries), 0
        while len(found) < servers and number < 64 * servers:
            candidate = b"%b:%d" % (name, number)
            node = self.topology.map.owners[slot_of(candidate)]
            if node is not None:
                found.setdefault(node, candidate)
            number += 1
        return list(found.values())

    def limit_payload(self, limit_bytes: int) -> None:
        """Another largest payload, from now on."""
        self.options = replace(self.options, payload_limit_bytes=limit_bytes)
        for lane in self._lanes.values():
            lane.subscriber.limit_payload(limit_bytes)

    def renew(self, why: str, name: bytes = b"") -> None:
        """Leave every connection for a new one, or only that of a name. See `Subscriber.renew`."""
        lane = self.lane_of(name) if name else None
        for each in self._lanes.values() if lane is None else (lane,):
            each.subscriber.renew(why)

    async def run(self) -> None:
        """Keep a lane to every server; until cancelled."""
        self._fault = asyncio.get_running_loop().create_future()
        try:
            await self._fault
        finally:
            lanes, self._lanes = list(self._lanes.values()), {}
            for lane in lanes:
                lane.task.cancel()
            await asyncio.gather(*(lane.task for lane in lanes), return_exceptions=True)

    # --- lanes ----------------------------------------------------------------------------------------

    def _by_lane(self, names: Iterable[bytes]) -> dict[_Lane, list[bytes]]:
        found: dict[_Lane, list[bytes]] = {}
        for name in names:
            if lane := self.lane_of(self.prefix + name):
                found.setdefault(lane, []).append(name)
        return found

    def _apply(self, fresh: ClusterMap) -> None:
        """Lanes for exactly the servers that have slots; then whatever was lost is subscribed again."""
        inherited = self._inherited(fresh)
        for node in self._lanes.keys() - fresh.primaries:
            # From here on it says nothing more: its channels are whose the map says they are.
            self._lanes.pop(node).task.cancel()
        for node in fresh.primaries - self._lanes.keys():
            self._lanes[node] = _Lane(self, node)
            self._lanes[node].task.add_done_callback(self._on_done)
        lost, self._lost_control = self._lost_control, set()
        if inherited:
            lost |= {name for name in self._control if slot_of(name) in inherited}
        for name in lost:
            self._hear_control(name)
        if inherited:
            prefix = self.prefix
            self.listener.on_up(lambda name: slot_of(prefix + name) in inherited)
        self.listener.on_moved()

    def _inherited(self, fresh: ClusterMap) -> frozenset[int]:
        """Return the slots that moved to a server whose lane was up before, from one that is down or left.

        A slot that had no server counts, too. No lane comes up for these slots, and no server announces the
        move: what a server says at the end may not be read any more once its lane is left. So only the caller
        can subscribe again.
        """
        before, self._owners = self._owners, fresh.owners
        lanes = self._lanes.items()
        up = {node for node, lane in lanes if lane.subscriber.is_up and node in fresh.primaries}
        pairs = enumerate(zip(before, fresh.owners, strict=True))
        return frozenset(slot for slot, (old, new) in pairs if new != old and new in up and old not in up)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        """Report a lane that ends by itself as an internal error."""
        if not task.cancelled() and (error := task.exception()) and self._fault and not self._fault.done():
            self._fault.set_exception(error)

    def on_lane_up(self, lane: _Lane) -> None:
        """Its control names first, then everything else that lives there."""
        for name in self._control:
            if self.lane_of(name) is lane:
                lane.subscriber.subscribe_control(name)
        self.listener.on_up(lane.covers)

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        """A slot moved."""
        if name in self._control:
            self._lost_control.add(name)
        else:
            self.listener.on_lost(name, was_asked=was_asked)
        self.topology.refresh()


class ClusterPublisher:
    """As `Publisher`, over all servers of a cluster; its topology runs beside it.

    Args:
        topology: Which servers there are.
        connect_timeout_s: As `Publisher`'s.
        command_timeout_s: As `Publisher`'s.
        on_failed: As `Publisher`'s.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        connect_timeout_s: float,
        command_timeout_s: float,
        on_failed: Callable[[str], None],
    ) -> None:
        self._topology = topology
        self._connect_timeout_s = connect_timeout_s
        self._command_timeout_s = command_timeout_s
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[Node, tuple[Publisher, asyncio.Task[None]]] = {}
        self._again: list[tuple[bytes, bytes, Done, Sender | None, int]] = []  # wait for the next map
        self._again_bytes = 0
        self._maps = 0
        self._leaving: set[asyncio.Task[None]] = set()
        topology.watchers.append(self._apply)

    def publish(
        self,
        name: bytes,
        data: bytes,
        done: Done,
        sender: Sender | None = None,
        *,
        must_reach: bool = False,
    ) -> None:
        """SPUBLISH `data`; as `Publisher.publish`.

        What follows its slot to another server need not reach anybody there: the subscription may be on its
        way, too.
        """
        self._publish(name, data, done, sender, MOVES_MOST, must_reach=must_reach)

    def _publish(
        self,
        name: bytes,
        data: bytes,
        done: Done,
        sender: Sender | None,
        moves: int,
        *,
        must_reach: bool = False,
    ) -> None:
        node = self._topology.map.owners[slot_of(name)]
        lane = None if node is None else self._lanes.get(node)
        if lane is None:
            self._topology.refresh()
            self._loop.call_soon(done, "down")
        else:
            outcome = partial(self._on_outcome, name, data, done, moves, sender=sender)
            lane[0].publish(name, data, outcome, sender, must_reach=must_reach)

    @property
    def waiting_bytes(self) -> int:
        """As `Publisher.waiting_bytes`, of all servers."""
        return self._again_bytes + sum(publisher.waiting_bytes for publisher, _ in self._lanes.values())

    def call(self, key: bytes, command: bytes, done: CallDone) -> None:
        """As `Publisher.call`, at the server that has the key. One that moved away meanwhile is `down`."""
        node = self._topology.map.owners[slot_of(key)]
        lane = None if node is None else self._lanes.get(node)
        if lane is None:
            self._topology.refresh()
            self._loop.call_soon(done, "down", b"")
        else:
            lane[0].call(key, command, partial(self._on_answer, done))

    def _on_answer(self, done: CallDone, outcome: str, text: bytes) -> None:
        if outcome in ("moved", "down"):
            self._topology.refresh()
            outcome = "down"
        done(outcome, text)

    def _on_outcome(
        self, name: bytes, data: bytes, done: Done, moves: int, outcome: str, *, sender: Sender | None = None
    ) -> None:
        has_room = len(self._again) < AGAIN_MOST and self._again_bytes + len(data) <= AGAIN_BYTES_MOST
        if outcome == "moved" and moves and has_room:
            if not self._again:
                self._loop.call_later(self._command_timeout_s, self._give_up, self._maps)
            self._again.append((name, data, done, sender, moves - 1))
            self._again_bytes += len(data)
            self._topology.refresh()
            return
        if outcome == "down":
            self._topology.refresh()
        done("down" if outcome == "moved" else outcome)

    def resume(self) -> None:
        """As `Publisher.resume`, of every server."""
        for publisher, _ in self._lanes.values():
            publisher.resume()

    def renew(self, why: str, name: bytes = b"") -> None:
        """Leave every connection, when what was sent is answered, for a new one, or only that of a name."""
        node = self._topology.map.owners[slot_of(name)] if name else None
        for place, (publisher, _) in self._lanes.items():
            if node is None or place == node:
                publisher.renew(why)

    async def run(self) -> None:
        """Speak to every server; until cancelled. Then `close`."""
        try:
            await asyncio.Event().wait()
        finally:
            for node in list(self._lanes):
                self._leave(node)
            await asyncio.gather(*self._leaving, return_exceptions=True)

    async def close(self) -> None:
        """Fail what still waits; to be called when `run` has ended."""
        for _, _, done, _, _ in self._take_again():
            done("down")

    def _take_again(self) -> list[tuple[bytes, bytes, Done, Sender | None, int]]:
        """Everything that waits for the next map; nothing waits any more."""
        again, self._again, self._again_bytes = self._again, [], 0
        return again

    def _give_up(self, maps: int) -> None:
        """No map came in time: those that wait for one have certainly not been published."""
        if maps == self._maps:
            for _, _, done, _, _ in self._take_again():
                done("down")

    def _apply(self, fresh: ClusterMap) -> None:
        self._maps += 1
        for node in self._lanes.keys() - fresh.primaries:
            self._leave(node)
        for node in fresh.primaries - self._lanes.keys():
            publisher = Publisher(
                self._topology.address.server(*node),
                connect_timeout_s=self._connect_timeout_s,
                command_timeout_s=self._command_timeout_s,
                on_failed=self._on_failed,
                is_sharded=True,
            )
            self._lanes[node] = publisher, self._loop.create_task(publisher.run())
        for name, data, done, sender, moves in self._take_again():
            self._publish(name, data, done, sender, moves)

    def _leave(self, node: Node) -> None:
        publisher, task = self._lanes.pop(node)
        task.cancel()
        closing = self._loop.create_task(_end(publisher, task))
        self._leaving.add(closing)
        closing.add_done_callback(self._leaving.discard)


async def _end(publisher: Publisher, task: "asyncio.Task[None]") -> None:
    await asyncio.gather(task, return_exceptions=True)
    await publisher.close()
