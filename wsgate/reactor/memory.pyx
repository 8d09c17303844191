"""Pooled memory in size classes; every byte held is counted by kind.

Owns the pool of freed buffers and the accounts. Knows nothing of what the bytes mean.

Blocks up to 64 KiB come in twelve classes, powers of two from 32 bytes. A block given back is kept
for the next taker until the pool holds `idle_limit_bytes`; then, and for larger blocks always, it
goes back to malloc. So the pool is bounded, and a burst's memory is returned. Accounts count whole
capacities, not the bytes asked for, because the capacity is what the process lost.

All calls are O(1) but for copying.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from wsgate.reactor.structs cimport (
    Buffer, Core, KIND_PARTIAL, KINDS, POOL_CLASSES, POOL_HITS, POOL_MISSES, POOL_SMALLEST,
)

# Larger blocks are whole pages, so that realloc of a mapped block moves page tables, not bytes.
cdef uint64_t PAGE = 4096
cdef uint64_t LARGEST = POOL_SMALLEST << (POOL_CLASSES - 1)
cdef uint64_t BLOCK_MAX = 0xFFFFF000


cdef inline int class_of(uint64_t size) noexcept nogil:
    """The smallest class that holds `size` bytes; `size` <= LARGEST."""
    cdef int index = 0
    cdef uint64_t room = POOL_SMALLEST
    while room < size:
        room <<= 1
        index += 1
    return index


cdef uint64_t memory_capacity(uint64_t size) noexcept nogil:
    """What a block of at least `size` bytes is booked with: its class, or whole pages."""
    return (size + PAGE - 1) & ~(PAGE - 1) if size > LARGEST else <uint64_t>POOL_SMALLEST << class_of(size)


cdef void *memory_take(Core *core, uint64_t size, int kind, uint32_t *capacity) noexcept nogil:
    """A block of at least `size` bytes, booked on `kind`; NULL when there is none."""
    cdef void *block = NULL
    cdef uint64_t room
    cdef int index
    if size > BLOCK_MAX:
        return NULL
    if size > LARGEST:
        room = (size + PAGE - 1) & ~(PAGE - 1)
        block = malloc(room)
        core.counters[<int>POOL_MISSES] += 1
    else:
        index = class_of(size)
        room = <uint64_t>POOL_SMALLEST << index
        block = core.pool.idle[index]
        if block != NULL:
            core.pool.idle[index] = (<void **>block)[0]
            core.pool.idle_bytes -= room
            core.counters[<int>POOL_HITS] += 1
        else:
            block = malloc(room)
            core.counters[<int>POOL_MISSES] += 1
    if block == NULL:
        return NULL
    core.held[kind] += room
    capacity[0] = <uint32_t>room
    return block


cdef void memory_give(Core *core, void *block, uint32_t capacity, int kind) noexcept nogil:
    """Take a block back; `capacity` is what `memory_take` said."""
    cdef int index
    core.held[kind] -= capacity
    if (
        not core.pool.enabled
        or capacity > LARGEST
        or core.pool.idle_bytes + capacity > core.pool.idle_limit_bytes
    ):
        free(block)
        return
    index = class_of(capacity)
    (<void **>block)[0] = core.pool.idle[index]
    core.pool.idle[index] = block
    core.pool.idle_bytes += capacity


cdef void memory_empty_pool(Core *core) noexcept nogil:
    """Give every idle block back to malloc."""
    cdef int index
    cdef void *block
    for index in range(POOL_CLASSES):
        while core.pool.idle[index] != NULL:
            block = core.pool.idle[index]
            core.pool.idle[index] = (<void **>block)[0]
            free(block)
    core.pool.idle_bytes = 0


cdef uint64_t memory_booked(Core *core) noexcept nogil:
    """Everything on the books: each kind, the pool, what the caller holds, every connection's share, the kernel's."""
    cdef uint64_t total = core.pool.idle_bytes + core.outside_bytes
    cdef int kind
    for kind in range(KINDS):
        total += core.held[kind]
    total += <uint64_t>core.connections * core.gate.connection_bytes
    return total + core.queued_bytes


cdef uint64_t memory_high(Core *core) noexcept nogil:
    """From here on no newcomers: a sixteenth of the budget is for those who are here."""
    return core.gate.memory_bytes - (core.gate.memory_bytes >> 4)


cdef uint64_t memory_low(Core *core) noexcept nogil:
    """Below this, newcomers again: an eighth is free, so that the gate does not flap."""
    return core.gate.memory_bytes - (core.gate.memory_bytes >> 3)


cdef bint partial_fits(Core *core, uint64_t given_back, uint64_t size) noexcept nogil:
    """Whether both budgets allow a block of `size` bytes for unfinished input in place of one given back.

    By what it is booked with: what was asked for is less, by up to half.
    """
    cdef uint64_t room = memory_capacity(size) - given_back
    if core.gate.memory_bytes and memory_booked(core) + room > core.gate.memory_bytes:
        return False
    return core.gate.partial_bytes == 0 or core.held[<int>KIND_PARTIAL] + room <= core.gate.partial_bytes


cdef int buffer_reserve(
    Core *core, Buffer *buffer, uint64_t total, uint64_t expected_total, int kind
) noexcept nogil:
    """Make room for `total` bytes, keeping what is there; 0, or -1 without memory or allowance.

    Grows by half, so that a message that comes byte by byte costs O(its length); never beyond
    `expected_total` when that is known, and never from a declared length alone: a peer that
    announces much and sends little holds little. Unfinished input obeys the gate's limit.
    """
    cdef uint64_t room = buffer.capacity + (buffer.capacity >> 1)
    cdef uint32_t capacity = 0
    cdef uint8_t *data
    if total <= buffer.capacity:
        return 0
    if expected_total >= total and room > expected_total:
        room = expected_total
    if room < total:
        room = total
    if kind == KIND_PARTIAL and not partial_fits(core, buffer.capacity, room):
        return -1
    if buffer.capacity > LARGEST and room <= BLOCK_MAX:
        capacity = <uint32_t>((room + PAGE - 1) & ~(PAGE - 1))
        data = <uint8_t *>realloc(buffer.data, capacity)
        if data == NULL:
            return -1
        core.held[kind] += capacity - buffer.capacity
    else:
        data = <uint8_t *>memory_take(core, room, kind, &capacity)
        if data == NULL:
            return -1
        if buffer.data != NULL:
            memcpy(data, buffer.data, buffer.length)
            memory_give(core, buffer.data, buffer.capacity, kind)
    buffer.data = data
    buffer.capacity = capacity
    return 0


cdef int buffer_append(
    Core *core, Buffer *buffer, const uint8_t *data, uint64_t size, uint64_t expected_total, int kind
) noexcept nogil:
    """Append bytes; 0, or -1 as `buffer_reserve`."""
    if buffer_reserve(core, buffer, buffer.length + size, expected_total, kind) < 0:
        return -1
    memcpy(buffer.data + buffer.length, data, size)
    buffer.length += <uint32_t>size
    return 0


cdef void buffer_give(Core *core, Buffer *buffer, int kind) noexcept nogil:
    """Give the bytes back and leave an empty buffer."""
    if buffer.data != NULL:
        memory_give(core, buffer.data, buffer.capacity, kind)
    buffer.data = NULL
    buffer.length = 0
    buffer.capacity = 0
