"""What happens when everything held comes to more than the budget: no newcomers, then the slow go.

The sum of the accounts and its marks are in memory.pyx; the gate refuses by them at once. Here, once a
tick, is what the gate cannot do: above the budget connections are cut, at most SHED_MOST of them, in
this order until the sum is back at the high mark:

    1. who has taken no byte for a second or more: reset, since it would not read a Close either
    2. who holds unfinished input: Close, and the input is given back at once
    3. who does not take bytes as fast as they come: Close, and the outbox is given back at once

Idle connections and those that keep up are never cut here. A tick looks at SHED_LOOKS slots, from where
the last one stopped, so that it costs the same however many there are.
"""

from libc.stdint cimport int64_t, uint32_t

from wsgate.reactor.closing cimport fail, release
from wsgate.reactor.memory cimport memory_booked, memory_empty_pool, memory_high, memory_low
from wsgate.reactor.structs cimport (
    BLOCKED, CHUNK_BITS, Connection, Core, SHED, STATE_CLOSING, STATE_FAILING, STATE_FREE, STATE_OPEN,
)
from wsgate.reactor.table cimport at

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef enum:
    SHED_MOST = 256              # cut in one tick: 1,024 a second
    SHED_LOOKS = 32768           # slots looked at in one tick, 4 MB of them
    SHED_STALL_MS = 1000
    INPUT_BYTES = 1024           # unfinished input below this is the frame of somebody who is writing


cdef int rank(Core *core, Connection *c) noexcept nogil:
    """Which of the three kinds a connection is of; 0: none."""
    if c.state != STATE_OPEN:
        return 0
    if c.flags & BLOCKED and c.outbox != NULL:
        return 1 if c.outbox.blocked_ms + SHED_STALL_MS <= core.clock_ms else 3
    if c.input != NULL and c.input.message.capacity + c.input.backlog.capacity >= INPUT_BYTES:
        return 2
    return 0


cdef void cut(Core *core, uint32_t slot, int kind) noexcept nogil:
    if kind == 1:
        release(core, slot, SHED, True)
    else:
        fail(core, slot, SHED, 0)


cdef uint32_t leaving(Core *core, uint32_t first, uint32_t looks, uint32_t slots) noexcept nogil:
    """Blocked sockets that are on their way out: what they are charged is as good as given back."""
    cdef uint32_t index, count = 0
    cdef Connection *c
    for index in range(looks):
        c = at(core, (first + index) % slots)
        if c.flags & BLOCKED and c.state in (STATE_FAILING, STATE_CLOSING):
            count += 1
    return count


cdef int64_t cut_for(Core *core, uint32_t slot, int kind) noexcept nogil:
    """Cut one; what the books, and the charge of a blocked socket that will end, fell by, as a negative number."""
    cdef int64_t before = <int64_t>memory_booked(core)
    cut(core, slot, kind)
    if kind == 3:
        before += core.limits.send_buffer_bytes
    return <int64_t>memory_booked(core) - before


cdef void shed(Core *core) noexcept nogil:
    """Cut until the books are at the high mark, or the tick's share is used up."""
    cdef uint32_t slots = core.chunk_count << CHUNK_BITS
    cdef uint32_t looks = min(slots, <uint32_t>SHED_LOOKS), index, slot, cuts = 0
    cdef int64_t over = <int64_t>memory_booked(core) - <int64_t>memory_high(core)
    cdef int kind
    over -= <int64_t>core.limits.send_buffer_bytes * leaving(core, core.shed_slot, looks, slots)
    for kind in range(1, 4):
        for index in range(looks):
            if over <= 0 or cuts >= SHED_MOST:
                break
            slot = (core.shed_slot + index) % slots
            if rank(core, at(core, slot)) != kind:
                continue
            over += cut_for(core, slot, kind)
            cuts += 1
    core.shed_slot = (core.shed_slot + looks) % slots


cdef void shedding_tick(Core *core) noexcept nogil:
    """Once a tick: cut if need be, and let newcomers in again once there is room for some."""
    if core.gate.memory_bytes == 0:
        return
    if memory_booked(core) >= memory_high(core):
        core.is_short = 1
        core.pool.enabled = 0                 # what is given back now is to leave the books
        memory_empty_pool(core)
        if memory_booked(core) > core.gate.memory_bytes and core.chunk_count:
            shed(core)
    if core.is_short and memory_booked(core) < memory_low(core):
        core.is_short = 0
        core.pool.enabled = core.pool.is_wanted
        # The blocks of a burst lie between others in the heap: their pages go back to the system.
        malloc_trim(0)
