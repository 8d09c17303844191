"""What happens when everything held comes to more than the budget: no newcomers, then some must go.

The sum of the accounts and its marks are in memory.pyx; the gate refuses by them at once. Here, once a
tick, is what the gate cannot do: above the budget connections are cut, at most SHED_MOST of them, in
this order until the sum is back at the high mark:

    1. who has taken no byte for a second or more: reset, since it would not read a Close either
    2. who has not shown who it is: no meta was set
    3. who holds unfinished input: Close, and the input is given back at once
    4. who does not take bytes as fast as they come, of which the kernel may hold some: Close, and the outbox is
       given back at once
    5. who has said nothing for longest

So those who keep up and speak are the last, and go only where nothing else is left to give. A tick looks at
SHED_LOOKS slots, from where the last one stopped, so that it costs the same however many there are.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from wsgate.reactor.closing cimport fail, release
from wsgate.reactor.memory cimport memory_booked, memory_capacity, memory_empty_pool, memory_high, memory_low
from wsgate.reactor.structs cimport (
    BLOCKED, CHUNK_BITS, CLASS_GAP, Connection, Core, Entry, Frame, SHED, STATE_CLOSING, STATE_FAILING, STATE_GONE,
    STATE_OPEN,
)
from wsgate.reactor.table cimport at, kernel_bytes

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef enum:
    SHED_MOST = 256              # cut in one tick: 1,024 a second
    SHED_LOOKS = 32768           # slots looked at in one tick, 4 MB of them
    SHED_STALL_MS = 1000
    QUEUED_BYTES = 8192          # in the kernel: more than waits for somebody who reads
    INPUT_BYTES = 1024           # unfinished input below this is the frame of somebody who is writing
    STALLED = 1
    UNKNOWN
    UNFINISHED
    SLOW
    IDLE
    AGES = 33                    # of the idle, by powers of two of milliseconds


cdef int rank(Core *core, Connection *c) noexcept nogil:
    """Which of the kinds a connection is of; 0: it is going already, or not there yet."""
    if c.state != STATE_OPEN:
        return 0
    if c.flags & BLOCKED and c.outbox != NULL and c.outbox.blocked_ms + SHED_STALL_MS <= core.clock_ms:
        return STALLED
    if c.meta == NULL:
        return UNKNOWN
    if c.input != NULL and c.input.message.capacity + c.input.backlog.capacity >= INPUT_BYTES:
        return UNFINISHED
    if c.flags & BLOCKED and c.outbox != NULL or kernel_bytes(c) >= QUEUED_BYTES:
        return SLOW
    return IDLE


cdef inline int age_of(Core *core, Connection *c) noexcept nogil:
    """For how long it has said nothing, as a power of two of milliseconds."""
    cdef uint32_t rest_ms = <uint32_t>core.clock_ms - c.message_ms
    cdef int age = 0
    while rest_ms:
        rest_ms >>= 1
        age += 1
    return age


cdef void cut(Core *core, uint32_t slot, int kind) noexcept nogil:
    if kind == STALLED:
        release(core, slot, SHED, True)
    else:
        fail(core, slot, SHED, 0)


cdef inline int64_t charge(Core *core, Connection *c) noexcept nogil:
    """What a connection that is on its way out is still booked with, and as good as given back.

    With the frame it was in the middle of, which cannot be taken back, when nobody else waits for it.
    """
    return core.gate.connection_bytes + <int64_t>kernel_bytes(c) + charge_of_frame(c)


cdef inline int64_t charge_of_frame(Connection *c) noexcept nogil:
    cdef Entry *first
    if c.outbox != NULL and c.outbox.count:
        first = &c.outbox.entries[c.outbox.head]
        if first.klass != CLASS_GAP and (<Frame *>first.item).references == 1:
            return <int64_t>memory_capacity((<Frame *>first.item).size)
    return 0


cdef int64_t leaving(Core *core, uint32_t first, uint32_t looks, uint32_t slots) noexcept nogil:
    """What those who are on their way out will give back; of their frames, what those looked at have."""
    cdef uint32_t index
    cdef int state
    cdef int64_t total = <int64_t>core.orphan_bytes
    cdef Connection *c
    for state in range(STATE_FAILING, STATE_GONE + 1):
        total += <int64_t>core.states[state] * core.gate.connection_bytes + <int64_t>core.queued_in[state]
    for index in range(looks):
        c = at(core, (first + index) % slots)
        if c.state in (STATE_FAILING, STATE_CLOSING):
            total += charge_of_frame(c)
    return total


cdef int64_t cut_for(Core *core, uint32_t slot, int kind) noexcept nogil:
    """Cut one; what the books fell by and will fall by, as a negative number."""
    cdef int64_t before = <int64_t>memory_booked(core)
    cut(core, slot, kind)
    return <int64_t>memory_booked(core) - before - charge(core, at(core, slot))


cdef uint64_t ages_of_idle(Core *core, uint32_t looks, uint32_t slots) noexcept nogil:
    """Which ages there are among the idle, a bit each."""
    cdef uint32_t index
    cdef uint64_t ages = 0
    cdef Connection *c
    for index in range(looks):
        c = at(core, (core.shed_slot + index) % slots)
        if rank(core, c) == IDLE:
            ages |= <uint64_t>1 << age_of(core, c)
    return ages


cdef void shed(Core *core) noexcept nogil:
    """Cut until the books are at the high mark, or the tick's share is used up."""
    cdef uint32_t slots = core.chunk_count << CHUNK_BITS
    cdef uint32_t looks = min(slots, <uint32_t>SHED_LOOKS), index, slot, cuts = 0
    cdef int64_t over = <int64_t>memory_booked(core) - <int64_t>memory_high(core)
    cdef int kind, age
    cdef uint64_t ages
    over -= leaving(core, core.shed_slot, looks, slots)
    for kind in range(STALLED, IDLE):
        for index in range(looks):
            if over <= 0 or cuts >= SHED_MOST:
                break
            slot = (core.shed_slot + index) % slots
            if rank(core, at(core, slot)) == kind:
                over += cut_for(core, slot, kind)
                cuts += 1
    if over > 0 and cuts < SHED_MOST:
        ages = ages_of_idle(core, looks, slots)
        for age in range(AGES - 1, -1, -1):
            if not ages >> age & 1:
                continue                      # one walk for each age there is: a handful
            for index in range(looks):
                if over <= 0 or cuts >= SHED_MOST:
                    break
                slot = (core.shed_slot + index) % slots
                if rank(core, at(core, slot)) == IDLE and age_of(core, at(core, slot)) == age:
                    over += cut_for(core, slot, IDLE)
                    cuts += 1
    core.shed_slot = (core.shed_slot + looks) % slots


cdef void shedding_tick(Core *core) noexcept nogil:
    """Once a tick: cut if need be, and let newcomers in again once there is room for some."""
    if core.gate.memory_bytes == 0:
        core.is_shedding = 0
        if core.is_short:                     # the budget was taken away meanwhile
            core.is_short = 0
            core.pool.enabled = core.pool.is_wanted
        return
    if memory_booked(core) > core.gate.memory_bytes:
        core.is_shedding = 1
    elif memory_booked(core) <= memory_high(core):
        core.is_shedding = 0
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
