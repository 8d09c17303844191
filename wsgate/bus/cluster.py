"""Use a cluster as the bus: one subscriber and one publisher connection to each server that has slots.

Channels are sharded channels (SSUBSCRIBE, SPUBLISH). Each belongs to the server of its slot, so a cluster
carries more publications than one server can. A *lane* is the connection to one server. A slot changes its
server in two cases:

- The server redirects (an unrequested sunsubscribe, or MOVED): the map is read again, and the lost names are
  subscribed on the slot's new server. The map may also be read before the server redirects, and the
  connection may break before the redirection arrives. So a new map alone is enough: all channels of a slot
  with another server are subscribed there, and later replies of the former server are ignored.
- The server fails: its lane is down, and the map is read until another server has its slots. When that
  server's lane is up, all channels of these slots are subscribed again.

The other lanes are not affected. The lane of a server without slots is closed before another lane takes over,
so that no publication arrives twice.
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
from wsgate.bus.topology import SLOTS, ClusterMap, Node, NodeOrder, node_in_moved, read_cluster, slot_of
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError
from wsgate.turns import Sender

__all__ = ["ClusterListener", "ClusterPublisher", "ClusterSubscriber", "Covers", "Topology"]

REFRESH_S: Final = 30.0
REFRESH_SOON_S: Final = 0.25
"""About the time to the next reading after the map could not be read or a server is still missing."""
GATHER_S: Final = 0.05
"""Time from a refresh request to the reading: slots move one by one, and one reading serves many requests."""
RETRY_MOST_S: Final = 1.0
"""The longest additional time to a reading after a refusal, when readings show no change: a slot may stay
refused for hours, and each reading requests its channels again."""
MOVES_MOST: Final = 3
"""How many moves of its slot a publication follows before it fails."""
AGAIN_MOST: Final = 8_192
AGAIN_BYTES_MOST: Final = 32 * 1024 * 1024
"""The most publications, and their bytes, that wait for a new map because their slot moved."""

Covers = Callable[[bytes], bool]
"""Whether an event concerns a channel, given by its name without the prefix."""


class Topology:
    """Keep the map of a cluster up to date, and call the watchers with each new map.

    Args:
        address: An address of kind cluster.
        timeout_s: Time for each request to a node, in seconds.
        on_failed: Called with a reason for the log when no node replies.

    Attributes:
        address: The address of the cluster.
        map: The last map that was read; before the first one, no slot has an owner.
        watchers: Called in order with each new map.
        is_needed: Returns whether a server is missing, so that the map is read again soon.
    """

    def __init__(self, address: BusAddress, timeout_s: float, on_failed: Callable[[str], None]) -> None:
        self.address = address
        self.map = ClusterMap((None,) * SLOTS, ())
        self.watchers: list[Callable[[ClusterMap], None]] = []
        self.is_needed: Callable[[], bool] = lambda: False
        self._timeout_s = timeout_s
        self._on_failed = on_failed
        self._wake = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._retry_s = 0.0  # additional time to a reading that only a refusal requests
        self._order = NodeOrder()

    def server_of(self, name: bytes) -> BusAddress | None:
        """Return the address of the server that serves a key or sharded channel; None: no server does."""
        node = self.map.owners[slot_of(name)]
        if node is None:
            self.refresh()
            return None
        return self.address.server(*node)

    def refresh(self) -> None:
        """Request another reading of the map; it starts after `GATHER_S`."""
        self._wake.set()
        self._is_urgent.set()

    def retry(self) -> None:
        """Request another reading because a server refused a name; it may start `RETRY_MOST_S` later."""
        self._wake.set()

    def on_moved(self, node: Node | None = None, text: bytes = b"") -> None:
        """Request another reading, from another node first, because a server contradicts the map with MOVED.

        Args:
            node: The server that replied; None: it is not known.
            text: The text of the reply.
        """
        self._order.on_contradicted(node_in_moved(text, node[0]) if node is not None else None)
        self.retry()

    async def run(self) -> None:
        """Read the map now, after each request, and about every `REFRESH_S`, until cancelled."""
        while True:
            was_urgent, owners, read_s = self._is_urgent.is_set(), self.map.owners, self._loop.time()
            self._wake.clear()
            self._is_urgent.clear()
            is_read = await self._read()
            if not is_read or self.is_needed():
                # A server is missing: read again without a request, and not in step with other shards.
                await asyncio.sleep(REFRESH_SOON_S * random.uniform(0.5, 1.5))  # noqa: S311 - spreading
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S * random.uniform(0.8, 1.2)):  # noqa: S311 - spreading
                    await self._wake.wait()
            is_futile = not was_urgent and owners == self.map.owners
            await self._gather(is_again=is_futile and self._loop.time() - read_s < RETRY_MOST_S)

    async def _gather(self, *, is_again: bool) -> None:
        """Wait for further requests before a reading, twice as long each time if refusals repeat.

        Args:
            is_again: The last reading followed a refusal and has changed nothing, and a refusal came at once.
        """
        self._retry_s = min(RETRY_MOST_S, max(GATHER_S, 2 * self._retry_s)) if is_again else 0.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._retry_s * random.uniform(0.8, 1.2)):  # noqa: S311 - spreading
                await self._is_urgent.wait()
        await asyncio.sleep(GATHER_S)

    async def _read(self) -> bool:
        """Read the map once and call the watchers; False: no node sent a valid map."""
        try:
            self.map = await read_cluster(
                self.address, self.map.nodes, self._timeout_s, before=self.map, order=self._order
            )
        except BackendError as error:
            self._on_failed(str(error))
            return False
        for watch in self.watchers:
            watch(self.map)
        return True


class ClusterListener(SubscriberListener, Protocol):
    """The listener of a subscriber that may use a cluster: its calls also say which channels they concern."""

    def on_up(self, covers: Covers | None = None) -> None:
        """Subscribe to all channels that `covers` accepts, on a server that is connected; None: to all."""

    def on_down(self, covers: Covers | None = None) -> None:
        """Note that a server is lost, with all subscriptions that `covers` accepts; None: with all."""

    def on_reassigned(self, covers: Covers) -> None:
        """Subscribe again to all channels that `covers` accepts: their slots have another server now.

        Both servers are connected, so that `on_up` is not called for these slots.
        """

    def on_unserved(self, covers: Covers) -> None:
        """Note that all subscriptions that `covers` accepts are lost: their new server is not connected yet.

        The former server is not lost. `on_up` follows when the new server is connected.
        """

    def on_moved(self) -> None:
        """Subscribe again to the channels reported by `on_lost`: a new map was read."""


class _Lane:
    """The subscriber of one server of a cluster; it passes events on, with the channels they concern."""

    def __init__(self, owner: "ClusterSubscriber", node: Node) -> None:
        self.node = node
        self.owner = owner
        address = owner.topology.address.server(*node)
        self.subscriber = Subscriber(
            address,
            owner.prefix,
            self,
            owner.backlog,
            owner.options,
            is_sharded=True,
            on_moved=partial(owner.topology.on_moved, node),
        )
        self.task = asyncio.get_running_loop().create_task(self.subscriber.run())

    def covers(self, name: bytes) -> bool:
        """Whether the slot of a channel belongs to the server of this lane."""
        return self.owner.lane_of(self.owner.prefix + name) is self

    def on_up(self) -> None:
        self.owner.on_lane_up(self)

    def on_down(self) -> None:
        if not self.owner.has_lane(self):
            return  # the server left the map, and `on_unserved` has reported its channels
        self.owner.listener.on_down(self.covers)
        self.owner.topology.refresh()

    def on_failed(self, why: str) -> None:
        self.owner.listener.on_failed(f"{self.node[0]}:{self.node[1]}: {why}")

    def on_control(self, name: bytes, payload: bytes | None) -> None:
        if payload is not None or self.owner.lane_of(name) is self:
            self.owner.listener.on_control(name, payload)

    def on_subscribed(self, name: bytes) -> bool:
        # A slot that this server has lost is subscribed elsewhere: only the reply of that server counts.
        return not self.covers(name) or self.owner.listener.on_subscribed(name)

    def on_refused(self, name: bytes) -> bool:
        return not self.covers(name) or self.owner.listener.on_refused(name)

    def on_pass(self) -> None:
        self.owner.listener.on_pass()

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        self.owner.on_lost(self, name, was_asked=was_asked)


class ClusterSubscriber:
    """Subscribe to channels on all servers of a cluster, with the interface of `Subscriber`.

    Args:
        topology: The map of the cluster; the caller runs it in a task of its own.
        prefix: The bytes before every channel name on the bus.
        listener: Receives the events of all connections and subscriptions.
        backlog: Receives the publications of all servers, in the order of their arrival.
        options: Times and sizes of each connection.
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
        """Whether every slot has a server, and every lane is connected."""
        owners = self.topology.map.owners
        return None not in owners and all(lane.subscriber.is_up for lane in self._lanes.values())

    def lane_of(self, name: bytes) -> _Lane | None:
        """Return the lane of a whole name; None while no server has its slot."""
        node = self.topology.map.owners[slot_of(name)]
        return None if node is None else self._lanes.get(node)

    def has_lane(self, lane: _Lane) -> bool:
        """Whether a lane is in use: its server has slots."""
        return self._lanes.get(lane.node) is lane

    def is_up_for(self, name: bytes) -> bool:
        """Whether the lane of this channel is connected, so that it can be subscribed to now."""
        lane = self.lane_of(self.prefix + name)
        return lane is not None and lane.subscriber.is_up

    def hears(self, name: bytes) -> bool:
        """Whether the present server of a control name has confirmed the subscription to it."""
        lane = self.lane_of(name)
        return lane is not None and lane.subscriber.hears(name)

    @property
    def unsent(self) -> int:
        """The sum of `Subscriber.unsent` over all servers. O(servers)."""
        return sum(lane.subscriber.unsent for lane in self._lanes.values())

    @property
    def waiting_bytes(self) -> int:
        """The sum of `Subscriber.waiting_bytes` over all servers. O(servers)."""
        return sum(lane.subscriber.waiting_bytes for lane in self._lanes.values())

    @property
    def held_bytes(self) -> int:
        """The sum of `Subscriber.held_bytes` over all servers."""
        return sum(lane.subscriber.held_bytes for lane in self._lanes.values())

    def subscribe(self, names: Iterable[bytes], *, may_cancel: bool = True) -> list[bytes]:
        """Queue an SSUBSCRIBE for each channel on the server of its slot, like `Subscriber.subscribe`."""
        lanes = self._by_lane(names).items()
        return [
            name for lane, some in lanes for name in lane.subscriber.subscribe(some, may_cancel=may_cancel)
        ]

    def unsubscribe(self, names: Iterable[bytes], *, may_cancel: bool = True) -> list[bytes]:
        """Queue an SUNSUBSCRIBE for each channel on the server of its slot, like `Subscriber.unsubscribe`."""
        lanes = self._by_lane(names).items()
        return [
            name for lane, some in lanes for name in lane.subscriber.unsubscribe(some, may_cancel=may_cancel)
        ]

    def subscribe_control(self, name: bytes) -> None:
        """Subscribe to a control name now, and again whenever its server reconnects or its slot moves."""
        if name not in self._control:
            self._control.add(name)
            self._hear_control(name)

    def _hear_control(self, name: bytes) -> None:
        """Subscribe to a control name on its lane; do nothing while no server has its slot."""
        if lane := self.lane_of(name):
            lane.subscriber.subscribe_control(name)

    def reaching(self, name: bytes) -> list[bytes]:
        """Return names derived from this one (`<name>:<number>`), one for each server of the cluster.

        The search ends after 64 candidates for each server, so a server with few slots may be left out.
        """
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
        """Change the largest payload of a publication, in bytes, on all connections and on later ones."""
        self.options = replace(self.options, payload_limit_bytes=limit_bytes)
        for lane in self._lanes.values():
            lane.subscriber.limit_payload(limit_bytes)

    def renew(self, why: str, name: bytes = b"") -> None:
        """Replace the connection of a name's server, or all connections when `name` is empty or unserved."""
        lane = self.lane_of(name) if name else None
        for each in self._lanes.values() if lane is None else (lane,):
            each.subscriber.renew(why)

    async def run(self) -> None:
        """Wait until cancelled, then end all lanes; raise the exception of a lane that ended by itself."""
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
        """Group channel names by lane; names without a lane are left out."""
        found: dict[_Lane, list[bytes]] = {}
        for name in names:
            if lane := self.lane_of(self.prefix + name):
                found.setdefault(lane, []).append(name)
        return found

    def _apply(self, fresh: ClusterMap) -> None:
        """Apply a new map: close and open lanes so that each server with slots has one, then resubscribe."""
        inherited, reassigned, unserved = self._moved_slots(fresh)
        for node in self._lanes.keys() - fresh.primaries:
            # A lane without a server in the map must report nothing more: its channels have other lanes now.
            self._lanes.pop(node).task.cancel()
        for node in fresh.primaries - self._lanes.keys():
            self._lanes[node] = _Lane(self, node)
            self._lanes[node].task.add_done_callback(self._on_done)
        lost, self._lost_control = self._lost_control, set()
        if inherited or reassigned:
            taken = inherited | reassigned
            lost |= {name for name in self._control if slot_of(name) in taken}
        for name in lost:
            self._hear_control(name)
        prefix = self.prefix
        if inherited:
            self.listener.on_up(lambda name: slot_of(prefix + name) in inherited)
        if reassigned:
            self.listener.on_reassigned(lambda name: slot_of(prefix + name) in reassigned)
        if unserved:
            # Last, because waiters that are told of a loss may subscribe to channels of the other slots.
            self.listener.on_unserved(lambda name: slot_of(prefix + name) in unserved)
        self.listener.on_moved()

    def _moved_slots(self, fresh: ClusterMap) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
        """Return the slots with another server than before.

        For the slots of a server whose lane was up before, no lane comes up. No server need announce the move
        either: the last replies of a server stay unread once its lane is closed or its connection breaks. So
        only the caller can subscribe again.

        Returns:
            The slots that moved to a lane that is up: from a server that is down or left the map, or from no
            server; and from a server that is still connected. Then the slots that moved from a lane that is
            up to one that is not.
        """
        before, self._owners = self._owners, fresh.owners
        primaries, lanes = fresh.primaries, self._lanes.items()
        were_up = {node for node, lane in lanes if lane.subscriber.is_up}
        up = were_up & primaries
        pairs = enumerate(zip(before, fresh.owners, strict=True))
        moved = [(slot, old, new) for slot, (old, new) in pairs if new != old]
        return (
            frozenset(slot for slot, old, new in moved if new in up and old not in up),
            frozenset(slot for slot, old, new in moved if new in up and old in up),
            frozenset(slot for slot, old, new in moved if new not in up and old in were_up),
        )

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        """Report a lane that ends by itself as an internal error."""
        if not task.cancelled() and (error := task.exception()) and self._fault and not self._fault.done():
            self._fault.set_exception(error)

    def on_lane_up(self, lane: _Lane) -> None:
        """Subscribe to the control names of a lane that is connected, then notify the listener."""
        for name in self._control:
            if self.lane_of(name) is lane:
                lane.subscriber.subscribe_control(name)
        self.listener.on_up(lane.covers)

    def on_lost(self, lane: _Lane, name: bytes, *, was_asked: bool) -> None:
        """Handle a name whose slot has moved: keep a control name, notify the listener of a channel.

        Ignore it if the lane no longer has the slot, because the name is subscribed elsewhere already. A
        client may give a channel the text of a control name. Then the name may be either, and is handled as
        both: a second SSUBSCRIBE is harmless.
        """
        request = self.topology.retry if was_asked else self.topology.refresh
        if name in self._control and self.lane_of(name) is lane:
            self._lost_control.add(name)
            request()
        if lane.covers(name):
            self.listener.on_lost(name, was_asked=was_asked)
            request()


class ClusterPublisher:
    """Publish and run commands on all servers of a cluster, with the interface of `Publisher`.

    Args:
        topology: The map of the cluster; the caller runs it in a task of its own.
        connect_timeout_s: Time for connecting to each server, see `Publisher`.
        command_timeout_s: Time from sending a command to its reply, see `Publisher`.
        on_failed: Called with a reason for the log, see `Publisher`.
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
        """Queue a publication on the server of its slot; the arguments are those of `Publisher.publish`.

        A publication that follows its slot to another server is sent there without `must_reach`, because the
        subscription may move at the same time.
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
        """Queue a publication that may follow this many moves of its slot; `down` without a server."""
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
        """The bytes of unanswered commands on all servers, and of publications that wait for a new map."""
        return self._again_bytes + sum(publisher.waiting_bytes for publisher, _ in self._lanes.values())

    def call(self, key: bytes, command: bytes, done: CallDone) -> None:
        """Queue a command on the server of its key, like `Publisher.call`; if the key moves, it is `down`."""
        node = self._topology.map.owners[slot_of(key)]
        lane = None if node is None else self._lanes.get(node)
        if lane is None:
            self._topology.refresh()
            self._loop.call_soon(done, "down", b"")
        else:
            lane[0].call(key, command, partial(self._on_answer, done))

    def _on_answer(self, done: CallDone, outcome: str, text: bytes) -> None:
        """Report the outcome of a command; a moved slot counts as `down`, and the map is read again."""
        if outcome in ("moved", "down"):
            self._topology.refresh()
            outcome = "down"
        done(outcome, text)

    def _on_outcome(
        self, name: bytes, data: bytes, done: Done, moves: int, outcome: str, *, sender: Sender | None = None
    ) -> None:
        """Report the outcome of a publication, or keep it for the next map if its slot has moved."""
        has_room = len(self._again) < AGAIN_MOST and self._again_bytes + len(data) <= AGAIN_BYTES_MOST
        if outcome == "moved" and moves and has_room:
            if not self._again:
                self._loop.call_later(self._command_timeout_s, self._give_up, self._maps)
            self._again.append((name, data, done, sender, moves - 1))
            self._again_bytes += len(data)
            self._topology.retry()
            return
        if outcome == "down":
            self._topology.refresh()
        done("down" if outcome == "moved" else outcome)

    def resume(self) -> None:
        """End the pause after a failure on every server, like `Publisher.resume`."""
        for publisher, _ in self._lanes.values():
            publisher.resume()

    def renew(self, why: str, name: bytes = b"") -> None:
        """Replace every connection after its last reply, or only the connection of a name's server."""
        node = self._topology.map.owners[slot_of(name)] if name else None
        for place, (publisher, _) in self._lanes.items():
            if node is None or place == node:
                publisher.renew(why)

    async def run(self) -> None:
        """Wait until cancelled, then end the publishers of all servers. Call `close` afterwards."""
        try:
            await asyncio.Event().wait()
        finally:
            for node in list(self._lanes):
                self._leave(node)
            await asyncio.gather(*self._leaving, return_exceptions=True)

    async def close(self) -> None:
        """Fail the publications that wait for a new map as `down`. Call it after `run` has ended."""
        for _, _, done, _, _ in self._take_again():
            done("down")

    def _take_again(self) -> list[tuple[bytes, bytes, Done, Sender | None, int]]:
        """Remove and return all publications that wait for the next map."""
        again, self._again, self._again_bytes = self._again, [], 0
        return again

    def _give_up(self, maps: int) -> None:
        """Fail the publications that wait for a map, when none arrived in time: they were not published."""
        if maps == self._maps:
            for _, _, done, _, _ in self._take_again():
                done("down")

    def _apply(self, fresh: ClusterMap) -> None:
        """Apply a new map: end and start publishers, and send the waiting publications again."""
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
                on_moved=partial(self._topology.on_moved, node),
            )
            self._lanes[node] = publisher, self._loop.create_task(publisher.run())
        for name, data, done, sender, moves in self._take_again():
            self._publish(name, data, done, sender, moves)

    def _leave(self, node: Node) -> None:
        """End the publisher of a server; its queued commands fail as `down`."""
        publisher, task = self._lanes.pop(node)
        task.cancel()
        closing = self._loop.create_task(_end(publisher, task))
        self._leaving.add(closing)
        closing.add_done_callback(self._leaving.discard)


async def _end(publisher: Publisher, task: "asyncio.Task[None]") -> None:
    """Wait until the task of a publisher has ended, then fail its queued commands."""
    await asyncio.gather(task, return_exceptions=True)
    await publisher.close()
