"""Sheds connections while the accounts exceed the memory budget, and ends the refusal of newcomers.

The sum of the accounts and its marks are in memory.pyx, and the gate refuses newcomers by them at once. This
module acts once a tick. Above the budget it sheds connections, at most SHED_MOST in a tick, in this order,
until the sum is back at the high mark:

    1. stalled: the full socket has taken no byte for a second; reset, because no Close would be read either
    2. unknown: the caller has set no meta object, because the client has not shown a token yet
    3. unfinished: unfinished input has INPUT_BYTES or more; Close, and the input is released at once
    4. slow: the socket is full, or the kernel holds QUEUED_BYTES or more; Close, and the outbox is released
    5. idle: all others, those first whose last message is the longest ago; Close

So connections that keep up and send messages are shed last. A tick visits SHED_LOOKS slots, from the slot
where the last tick stopped, so that its cost does not depend on the number of connections.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from wsgate.reactor.closing cimport fail, release
from wsgate.reactor.memory cimport memory_booked, memory_capacity, memory_empty_pool, memory_high, memory_low
from wsgate.reactor.structs cimport (
    BLOCKED, CHUNK_BITS, CLASS_GAP, Connection, Core, Entry, Frame, SHED, STATE_CLOSING, STATE_FAILING,
    STATE_GONE, STATE_OPEN,
)
from wsgate.reactor.table cimport at, kernel_bytes

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef enum:
    SHED_MOST = 256              # the most connections shed in one tick: 1,024 a second
    SHED_LOOKS = 32768           # the most slots visited in one tick, which are 4 MB
    SHED_STALL_MS = 1000
    QUEUED_BYTES = 8192          # kernel memory: more than waits for a peer that reads
    INPUT_BYTES = 1024           # less unfinished input is normal while a peer sends a frame
    STALLED = 1
    UNKNOWN
    UNFINISHED
    SLOW
    IDLE
    AGES = 33                    # classes of idle time, by powers of two of milliseconds


cdef int rank(Core *core, Connection *c) noexcept nogil:
    """Return the class of a connection in the order of shedding, STALLED to IDLE; 0 if it is not open."""
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
    """Return the idle-time class of a connection: the bit length of the ms since its last message."""
    cdef uint32_t rest_ms = <uint32_t>core.clock_ms - c.message_ms
    cdef int age = 0
    while rest_ms:
        rest_ms >>= 1
        age += 1
    return age


cdef void cut(Core *core, uint32_t slot, int kind) noexcept nogil:
    """Reset a stalled connection; fail any other one, so that it gets a Close."""
    if kind == STALLED:
        release(core, slot, SHED, True)
    else:
        fail(core, slot, SHED, 0)


cdef inline int64_t charge(Core *core, Connection *c) noexcept nogil:
    """Return the bytes on the accounts that a shed connection will release when it has closed.

    They include the half-written frame, which has to stay, if no other connection waits for it.
    """
    return core.gate.connection_bytes + <int64_t>kernel_bytes(c) + charge_of_frame(c)


cdef inline int64_t charge_of_frame(Connection *c) noexcept nogil:
    """Return the memory of the first frame in the outbox if no other connection refers to it, else 0."""
    cdef Entry *first
    if c.outbox != NULL and c.outbox.count:
        first = &c.outbox.entries[c.outbox.head]
        if first.klass != CLASS_GAP and (<Frame *>first.item).references == 1:
            return <int64_t>memory_capacity((<Frame *>first.item).size)
    return 0


cdef int64_t leaving(Core *core, uint32_t first, uint32_t looks, uint32_t slots) noexcept nogil:
    """Return the bytes that closing connections and closed sockets will release; frames of `looks` slots."""
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
    """Shed one connection; return by how many bytes the accounts change now and later, a negative number."""
    cdef int64_t before = <int64_t>memory_booked(core)
    cut(core, slot, kind)
    return <int64_t>memory_booked(core) - before - charge(core, at(core, slot))


cdef uint64_t ages_of_idle(Core *core, uint32_t looks, uint32_t slots) noexcept nogil:
    """Return a bit set of the idle-time classes that occur among the idle connections of the next slots."""
    cdef uint32_t index
    cdef uint64_t ages = 0
    cdef Connection *c
    for index in range(looks):
        c = at(core, (core.shed_slot + index) % slots)
        if rank(core, c) == IDLE:
            ages |= <uint64_t>1 << age_of(core, c)
    return ages


cdef void shed(Core *core) noexcept nogil:
    """Shed connections until the accounts are at the high mark or SHED_MOST are shed in this tick."""
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
                continue                      # one pass over the slots for each class that occurs: a handful
            for index in range(looks):
                if over <= 0 or cuts >= SHED_MOST:
                    break
                slot = (core.shed_slot + index) % slots
                if rank(core, at(core, slot)) == IDLE and age_of(core, at(core, slot)) == age:
                    over += cut_for(core, slot, IDLE)
                    cuts += 1
    core.shed_slot = (core.shed_slot + looks) % slots


cdef void shedding_tick(Core *core) noexcept nogil:
    """Shed connections if needed, and let newcomers in again when there is memory. Call once a tick."""
    if core.gate.memory_bytes == 0:
        core.is_shedding = 0
        if core.is_short:                     # the budget was removed meanwhile
            core.is_short = 0
            core.pool.enabled = core.pool.is_wanted
        return
    if memory_booked(core) > core.gate.memory_bytes:
        core.is_shedding = 1
    elif memory_booked(core) <= memory_high(core):
        core.is_shedding = 0
    if memory_booked(core) >= memory_high(core):
        core.is_short = 1
        core.pool.enabled = 0                 # memory that is released now must leave the accounts
        memory_empty_pool(core)
        if memory_booked(core) > core.gate.memory_bytes and core.chunk_count:
            shed(core)
    if core.is_short and memory_booked(core) < memory_low(core):
        core.is_short = 0
        core.pool.enabled = core.pool.is_wanted
        # Freed blocks of a burst lie between others in the heap: give their pages back to the system.
        malloc_trim(0)
