"""Report one shard's memory, admission state and headroom, and read what the other shards report.

The memory is measured once a second. The admission state is set four times a second, because the keeper
distributes new connections by it.
"""

import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from wsgate.admission import Headroom, Ledger, Reading, ShardOffer, State
from wsgate.log import Log
from wsgate.reactor import GateLimits, Reactor
from wsgate.reactor.metric_names import KIND_NAMES
from wsgate.reactor.settings import SOCKET_BYTES
from wsgate.shard.options import DESCRIPTORS_OF_OURS
from wsgate.shard.weight import Weight
from wsgate.statistics import PHASE_READY, Region, StatisticsBlock, has_beaten

__all__ = ["CapacityReporter", "next_with_room", "places", "queue_length", "roomiest"]

SILENT_MS: Final = 600
"""After two missed heartbeats a shard is given no new connection, by the keeper or by another shard."""
TRIM_REST_LOOKS: Final = 10
TRIM_REST_MOST_LOOKS: Final = 640
"""Seconds between two trims of the heap, at first and at most; the time doubles while memory is unexplained.

A burst leaves holes in the heap that no account explains: 10 MB after 108 publications to 7,000 clients. A
trim returns them to the kernel. It walks through the heap, 13 ms for 100 MB of it.
"""
NEVER_S: Final = 1 << 31
"""In the gauge `full_in_s`: the shard does not become full at this growth."""
_STATES: Final = {int(state): state for state in State}
ROOM_MOST: Final = 1 << 24
"""The most connections that a shard can hold; only a faulty shard writes a larger room."""
_NO_PLACE: Final = ShardOffer(0, State.REFUSING)
_STATM: Final = "/proc/self/statm"
_STATM_BYTES: Final = 128
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# struct tcp_info: for a listener, how many connections wait to be accepted, and how many may wait.
# Source: tcp_diag.c, tcp_diag_get_info; linux/tcp.h.
_QUEUE: Final = struct.Struct("@24xII")


class CapacityReporter:
    """Measures one shard's memory and headroom, and writes them into its region of the statistics block.

    Args:
        region: The region of the shard.
        reactor: Holds the connections and accounts their memory.
        outside: Returns the memory that the shard's parts hold outside the reactor, in bytes.
        count: Adds to a counter of the shard, by its name.
        log: Records changes of the admission state.
    """

    def __init__(
        self,
        region: Region,
        reactor: Reactor,
        outside: Callable[[], int],
        count: Callable[[str, int], None],
        log: Log,
    ) -> None:
        self._region = region
        self._reactor = reactor
        self._outside = outside
        self._count = count
        self._log = log
        self._state = State.OPEN
        self._exhausted = 0
        self._rest_looks = 0  # seconds before the heap may be trimmed again
        self._next_rest_looks = TRIM_REST_LOOKS
        self._room = 1 << 32  # room that descriptors and memory leave, from the last measurement
        self._outside_bytes = 0
        self._weight = Weight(region)
        # Opened once: the file is needed most when no descriptor is left.
        self._statm_fd = os.open(_STATM, os.O_RDONLY)
        self._ledger = Ledger(connection_bytes=SOCKET_BYTES, baseline_bytes=self._resident_bytes())

    def tick(self, numbers: Mapping[str, int], gate: GateLimits, *, refuses_newcomers: bool) -> None:
        """Set the admission state and the room that the keeper uses; call this four times a second.

        Args:
            numbers: The reactor's counters and gauges.
            gate: The limits of the shard's gate.
            refuses_newcomers: Whether newcomers are refused for a reason outside this shard's memory.
        """
        self._outside_bytes = self._outside()
        self._reactor.book(
            self._outside_bytes, refuses_newcomers=refuses_newcomers or self._ledger.has_unexplained_growth
        )
        slots = max(0, gate.connections - numbers["now_connections"])
        is_short = bool(numbers["now_short"])
        state = self._ledger.judge(
            is_short=is_short,
            is_shedding=bool(numbers["now_shedding"]),
            room=slots,
            connections_limit=gate.connections,
        )
        is_taking = state is not State.SHEDDING and not is_short
        self._region["room"] = min(slots, self._room) if is_taking else 0
        self._region["admission_state"] = state
        if state is not self._state:
            self._count("admission_" + state.name.lower(), 1)
            self._log.info("admission", state=state.name.lower(), connections=numbers["now_connections"])
            self._state = state
        if numbers["accept_exhausted"] != self._exhausted:
            # The gate refuses before descriptors run out, so the limit was lowered or the machine is full.
            self._exhausted = numbers["accept_exhausted"]
            self._log.warning("accept_exhausted", times=self._exhausted)

    def look(
        self, numbers: Mapping[str, int], gate: GateLimits, held: Mapping[str, int], listener_fd: int
    ) -> None:
        """Measure the memory and write everything that is reported about it; call this once a second.

        Args:
            numbers: The reactor's counters and gauges.
            gate: The limits of the shard's gate.
            held: Memory on the reactor's accounts, in bytes, by kind.
            listener_fd: The listener, whose queue is measured; below 0: it is closed.
        """
        region = self._region
        reading = self._reading(numbers, gate, held)
        self._ledger.read(reading, gate.memory_bytes)
        self._weight.look()
        self._trim()
        headroom = self._ledger.headroom(
            reading,
            connections_limit=gate.connections,
            descriptors_limit=gate.descriptors - DESCRIPTORS_OF_OURS,
            budget_bytes=gate.memory_bytes,
        )
        self._tell(headroom)
        self._room = min(headroom.by_resource["descriptors"], headroom.by_resource["memory"])
        region["memory_accounted_bytes"] = reading.own_bytes
        region["memory_growth_bytes"] = self._ledger.memory_growth_bytes
        region["memory_unaccounted_bytes"] = self._ledger.memory_unaccounted_bytes
        region["connections_limit"] = gate.connections
        region["descriptors_limit"] = gate.descriptors
        region["memory_budget_bytes"] = gate.memory_bytes
        region["listen_queue"], region["listen_queue_limit"] = queue_length(listener_fd)

    def _trim(self) -> None:
        """Trim the heap if memory is unexplained and the time since the last trim has passed."""
        self._rest_looks = max(0, self._rest_looks - 1)
        if not self._ledger.memory_unaccounted_bytes:
            self._next_rest_looks = TRIM_REST_LOOKS
        elif not self._rest_looks:
            self._rest_looks = self._next_rest_looks
            self._next_rest_looks = min(2 * self._next_rest_looks, TRIM_REST_MOST_LOOKS)
            self._reactor.trim()

    def _reading(self, numbers: Mapping[str, int], gate: GateLimits, held: Mapping[str, int]) -> Reading:
        """Return the accounted and the resident memory of this shard, and its connections."""
        connections = numbers["now_connections"]
        # The memory that compression may take for a moment is accounted, but the process does not have it.
        resident = [held[name] for name in (*KIND_NAMES, "pool") if name != "deflate"]
        own = sum(resident) + connections * (gate.connection_bytes - SOCKET_BYTES) + self._outside_bytes
        return Reading(
            connections=connections,
            own_bytes=own,
            booked_bytes=sum(held.values()),
            resident_bytes=self._resident_bytes(),
        )

    def _resident_bytes(self) -> int:
        """Return the resident memory of this process, from the second field of statm."""
        return int(os.pread(self._statm_fd, _STATM_BYTES, 0).split()[1]) * _PAGE_BYTES

    def _tell(self, headroom: Headroom) -> None:
        """Write the headroom: by resource, which resource binds, the growth, and when the shard is full."""
        region = self._region
        for resource, room in headroom.by_resource.items():
            region["room_" + resource] = room
            region["binds_" + resource] = resource == headroom.binding
        region["growth_per_1000_s"] = max(0, int(headroom.growth_per_s * 1000))
        region["full_in_s"] = NEVER_S if headroom.full_in_s < 0 else min(NEVER_S, int(headroom.full_in_s))


def places(block: StatisticsBlock, now_ms: int) -> list[ShardOffer]:
    """Return the room and the state that each shard of the node offers, in the order of their numbers.

    A shard offers nothing if it does not serve, if its last heartbeat is older than `SILENT_MS`, or if the
    state or the room in its region is out of range.

    Args:
        block: The statistics of the node.
        now_ms: Monotonic milliseconds.
    """
    # Read by slot number and not by name, so that 30 shards that read 30 regions each use no visible time.
    index = block.layout.index
    phase, beat_ms, room, state = (index[name] for name in ("phase", "beat_ms", "room", "admission_state"))
    found = []
    for number in range(block.shards):
        slots = block.shard(number).slots
        its_state, its_room = _STATES.get(slots[state]), slots[room]
        is_serving = slots[phase] == PHASE_READY and has_beaten(slots[beat_ms], now_ms, SILENT_MS)
        if is_serving and its_state is not None and its_room <= ROOM_MOST:
            found.append(ShardOffer(its_room, its_state))
        else:
            found.append(_NO_PLACE)
    return found


def roomiest(offers: Sequence[ShardOffer], number: int) -> int | None:
    """Return the number of the other shard with the most room; None: no other shard has room."""
    others = [other for other, place in enumerate(offers) if other != number and place.room]
    return max(others, key=lambda other: offers[other].room, default=None)


def next_with_room(offers: Sequence[ShardOffer], number: int) -> int | None:
    """Return the number of the next shard after this one, in a ring, that has room; None: none has."""
    ring = [*range(number + 1, len(offers)), *range(number)]
    return next((other for other in ring if offers[other].room), None)


def queue_length(listener_fd: int) -> tuple[int, int]:
    """Return how many connections wait in a listener's queue and how many may; zeros if that is unknown.

    Args:
        listener_fd: The listener; below 0: it is closed. A number must not be kept beyond its close, because
            another socket may get it.
    """
    if listener_fd < 0:
        return 0, 0
    try:
        listener = socket.socket(fileno=listener_fd)
    except OSError:
        return 0, 0
    try:
        told = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUE.size)
        waiting, most = _QUEUE.unpack(told)
    except (OSError, struct.error):  # not TCP: a Unix socket has no such numbers
        return 0, 0
    finally:
        listener.detach()  # the caller owns the descriptor
    return waiting, most
