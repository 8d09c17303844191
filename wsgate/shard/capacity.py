"""What a shard tells of itself as a place: its books against its footprint, its state, its headroom.

Looks once a second, and at the state four times, because the keeper steers by it.
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
"""Two beats missed: no new connection for a shard until it beats again, neither dealt nor handed."""
TRIM_REST_LOOKS: Final = 10
TRIM_REST_MOST_LOOKS: Final = 640
"""A burst leaves holes in the heap that nothing on the books explains: 10 MB after 108 publications to 7,000
clients. Given back, at first so often, then twice as seldom each time that something is left: it is a walk
through the heap, 13 ms for 100 MB of it."""
NEVER_S: Final = 1 << 31
"""In the gauge of when it is full: not at this growth."""
_STATES: Final = {int(state): state for state in State}
ROOM_MOST: Final = 1 << 24
"""The most connections a shard can hold: a larger room was not written by a shard that is well."""
_NO_PLACE: Final = ShardOffer(0, State.REFUSING)
_STATM: Final = "/proc/self/statm"
_STATM_BYTES: Final = 128
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# struct tcp_info: of a listener, how many wait to be accepted and how many may. Source: tcp_diag.c,
# tcp_diag_get_info; linux/tcp.h.
_QUEUE: Final = struct.Struct("@24xII")


class CapacityReporter:
    """One shard's.

    Args:
        region: Where it is told.
        reactor: Whose books these are.
        outside: What the shard's own parts hold, in bytes.
        count: The shard's counters.
        log: Where a change of the state is said.
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
        self._rest_looks = 0  # before the heap may be trimmed again
        self._next_rest_looks = TRIM_REST_LOOKS
        self._room = 1 << 32  # as far as descriptors and memory go, of the last look
        self._outside_bytes = 0
        self._weight = Weight(region)
        # Open from the start: with no descriptor left it is needed most.
        self._statm_fd = os.open(_STATM, os.O_RDONLY)
        self._ledger = Ledger(connection_bytes=SOCKET_BYTES, baseline_bytes=self._resident_bytes())

    def tick(self, numbers: Mapping[str, int], gate: GateLimits, *, refuses_newcomers: bool) -> None:
        """Four times a second: the state, and the room the keeper steers by."""
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
            # The gate refuses before that: somebody has lowered the limit, or the whole machine is full.
            self._exhausted = numbers["accept_exhausted"]
            self._log.warning("accept_exhausted", times=self._exhausted)

    def look(
        self, numbers: Mapping[str, int], gate: GateLimits, held: Mapping[str, int], listener_fd: int
    ) -> None:
        """Once a second: everything that is told about it."""
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
        self._rest_looks = max(0, self._rest_looks - 1)
        if not self._ledger.memory_unaccounted_bytes:
            self._next_rest_looks = TRIM_REST_LOOKS
        elif not self._rest_looks:
            self._rest_looks = self._next_rest_looks
            self._next_rest_looks = min(2 * self._next_rest_looks, TRIM_REST_MOST_LOOKS)
            self._reactor.trim()

    def _reading(self, numbers: Mapping[str, int], gate: GateLimits, held: Mapping[str, int]) -> Reading:
        connections = numbers["now_connections"]
        # What compression may take for a moment is on the books and not in the process.
        resident = [held[name] for name in (*KIND_NAMES, "pool") if name != "deflate"]
        own = sum(resident) + connections * (gate.connection_bytes - SOCKET_BYTES) + self._outside_bytes
        return Reading(
            connections=connections,
            own_bytes=own,
            booked_bytes=sum(held.values()),
            resident_bytes=self._resident_bytes(),
        )

    def _resident_bytes(self) -> int:
        return int(os.pread(self._statm_fd, _STATM_BYTES, 0).split()[1]) * _PAGE_BYTES

    def _tell(self, headroom: Headroom) -> None:
        region = self._region
        for resource, room in headroom.by_resource.items():
            region["room_" + resource] = room
            region["binds_" + resource] = resource == headroom.binding
        region["growth_per_1000_s"] = max(0, int(headroom.growth_per_s * 1000))
        region["full_in_s"] = NEVER_S if headroom.full_in_s < 0 else min(NEVER_S, int(headroom.full_in_s))


def places(block: StatisticsBlock, now_ms: int) -> list[ShardOffer]:
    """What each shard of the node offers, in the order of their numbers.

    A shard offers nothing when it does not serve, when it has not beaten lately, or when what stands in its
    region is nothing that a shard writes: a state or a room out of range.
    """
    # By their numbers: thirty shards that look at thirty once a second are not to be seen at rest.
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
    """The other shard with the most room; None: there is none."""
    others = [other for other, place in enumerate(offers) if other != number and place.room]
    return max(others, key=lambda other: offers[other].room, default=None)


def next_with_room(offers: Sequence[ShardOffer], number: int) -> int | None:
    """The next other shard, in a ring, that has room; None: there is none."""
    ring = [*range(number + 1, len(offers)), *range(number)]
    return next((other for other in ring if offers[other].room), None)


def queue_length(listener_fd: int) -> tuple[int, int]:
    """How many connections wait to be accepted, and how many may; zeros where nobody can say.

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
    except (OSError, struct.error):  # no TCP: a Unix socket has no such numbers
        return 0, 0
    finally:
        listener.detach()  # the caller's
    return waiting, most
