"""Pooled memory in size classes; every byte held is counted by kind.

Owns the pool of freed blocks and the accounts. Does not know what the bytes mean.

The size of a block is known in one place: its owner. `memory_take` and `memory_give` both get the size
that the owner asked for, and only this file turns that size into a class. An owner that wants to use a
whole block (an array, a buffer that grows) asks `memory_capacity` first and then takes exactly that
many bytes. Nothing outside this file rounds a size.

Blocks up to 64 KiB come in twelve classes, powers of two from 32 bytes. A block given back is kept
for the next taker until the pool holds `idle_limit_bytes`; then, and for larger blocks always, it
goes back to malloc. So the pool is bounded, and a burst's memory is returned. Accounts count whole
capacities, not the bytes asked for, because the capacity is what the process lost.

With WSGATE_EXACT_BLOCKS (the sanitized build) every block is allocated with exactly the size asked
for, a header in front of it remembers that size and its kind, and giving back with another size or
kind ends the process. The pool is off then, so that AddressSanitizer sees the end of every block.

All calls are O(1) but for copying.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from wsgate.reactor.structs cimport (
    Buffer, Core, KIND_PARTIAL, KINDS, POOL_CLASSES, POOL_HITS, POOL_MISSES, POOL_SMALLEST,
)

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>

    #ifdef WSGATE_EXACT_BLOCKS
    enum { wsgate_blocks_are_exact = 1 };
    struct wsgate_block_header { uint64_t size; uint64_t kind; };  /* 16 bytes keep malloc's alignment */

    static inline void *wsgate_block_new(uint64_t size, uint64_t room, int kind) {
        struct wsgate_block_header *header = malloc(sizeof *header + size);
        (void)room;
        if (header == NULL)
            return NULL;
        header->size = size;
        header->kind = (uint64_t)kind;
        return header + 1;
    }

    static inline struct wsgate_block_header *wsgate_block_check(void *block, uint64_t size, int kind) {
        struct wsgate_block_header *header = (struct wsgate_block_header *)block - 1;
        if (header->size != size || header->kind != (uint64_t)kind) {
            fprintf(stderr, "wsgate: a block of %llu bytes of kind %llu was given back as %llu bytes of kind %d\\n",
                    (unsigned long long)header->size, (unsigned long long)header->kind,
                    (unsigned long long)size, kind);
            abort();
        }
        return header;
    }

    static inline void wsgate_block_free(void *block, uint64_t size, int kind) {
        free(wsgate_block_check(block, size, kind));
    }

    static inline void *wsgate_block_resize(void *block, uint64_t size, uint64_t fresh, int kind) {
        struct wsgate_block_header *header = wsgate_block_check(block, size, kind);
        header = realloc(header, sizeof *header + fresh);
        if (header == NULL)
            return NULL;
        header->size = fresh;
        return header + 1;
    }
    #else
    enum { wsgate_blocks_are_exact = 0 };
    static inline void *wsgate_block_new(uint64_t size, uint64_t room, int kind) {
        (void)size; (void)kind;
        return malloc(room);
    }
    static inline void wsgate_block_free(void *block, uint64_t size, int kind) {
        (void)size; (void)kind;
        free(block);
    }
    static inline void *wsgate_block_resize(void *block, uint64_t size, uint64_t fresh, int kind) {
        (void)size; (void)kind;
        return realloc(block, fresh);
    }
    #endif
    """
    bint BLOCKS_ARE_EXACT "wsgate_blocks_are_exact"
    void *block_new "wsgate_block_new"(uint64_t size, uint64_t room, int kind) nogil
    void block_free "wsgate_block_free"(void *block, uint64_t size, int kind) nogil
    void *block_resize "wsgate_block_resize"(void *block, uint64_t size, uint64_t fresh, int kind) nogil

# Larger blocks are whole pages, so that realloc of a mapped block moves page tables, not bytes.
cdef enum:
    PAGE = 4096
    LARGEST = POOL_SMALLEST << (POOL_CLASSES - 1)
    BLOCK_MAX = 0xFFFFF000


cdef bint memory_is_exact() noexcept nogil:
    """Whether this build allocates exact blocks and checks their sizes (the sanitized build)."""
    return BLOCKS_ARE_EXACT


cdef inline int class_of(uint64_t size) noexcept nogil:
    """The smallest class that holds `size` bytes; `size` <= LARGEST."""
    cdef int index = 0
    cdef uint64_t room = POOL_SMALLEST
    while room < size:
        room <<= 1
        index += 1
    return index


cdef inline uint64_t whole_pages(uint64_t size) noexcept nogil:
    return (size + PAGE - 1) & ~<uint64_t>(PAGE - 1)


cdef uint64_t memory_capacity(uint64_t size) noexcept nogil:
    """The bytes that a block of `size` bytes is counted as: its class, or whole pages.

    A block of this many bytes costs no more than one of `size`.
    """
    return whole_pages(size) if size > LARGEST else <uint64_t>POOL_SMALLEST << class_of(size)


cdef void *memory_take(Core *core, uint64_t size, int kind) noexcept nogil:
    """A block of `size` bytes, counted on `kind`; NULL without memory. Only `size` bytes may be used."""
    cdef void *block = NULL
    cdef uint64_t room
    cdef int index
    if size > BLOCK_MAX:
        return NULL
    room = memory_capacity(size)
    if size <= LARGEST and not BLOCKS_ARE_EXACT:
        index = class_of(size)
        block = core.pool.idle[index]
        if block != NULL:
            core.pool.idle[index] = (<void **>block)[0]
            core.pool.idle_bytes -= room
            core.counters[<int>POOL_HITS] += 1
    if block == NULL:
        block = block_new(size, room, kind)
        core.counters[<int>POOL_MISSES] += 1
        if block == NULL:
            return NULL
    core.held[kind] += room
    return block


cdef void memory_give(Core *core, void *block, uint64_t size, int kind) noexcept nogil:
    """Take a block back. `size` and `kind` are what `memory_take` was asked for."""
    cdef uint64_t room = memory_capacity(size)
    cdef int index
    core.held[kind] -= room
    if (
        BLOCKS_ARE_EXACT
        or not core.pool.enabled
        or room > LARGEST
        or core.pool.idle_bytes + room > core.pool.idle_limit_bytes
    ):
        block_free(block, size, kind)
        return
    index = class_of(size)
    (<void **>block)[0] = core.pool.idle[index]
    core.pool.idle[index] = block
    core.pool.idle_bytes += room


cdef void memory_empty_pool(Core *core) noexcept nogil:
    """Give every idle block back to malloc."""
    cdef int index
    cdef void *block
    for index in range(POOL_CLASSES):
        while core.pool.idle[index] != NULL:
            block = core.pool.idle[index]
            core.pool.idle[index] = (<void **>block)[0]
            block_free(block, 0, 0)           # exact blocks are never pooled
    core.pool.idle_bytes = 0


cdef uint64_t memory_booked(Core *core) noexcept nogil:
    """Everything on the books: each kind, the pool, what the caller holds, every connection's share, the kernel's."""
    cdef uint64_t total = core.pool.idle_bytes + core.outside_bytes
    cdef int kind
    for kind in range(<int>KINDS):
        total += core.held[kind]
    total += <uint64_t>core.connections * core.gate.connection_bytes
    return total + core.queued_bytes + core.orphan_bytes


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
    cdef uint8_t *data
    if total <= buffer.capacity:
        return 0
    if expected_total >= total and room > expected_total:
        room = expected_total
    if room < total:
        room = total
    if kind == KIND_PARTIAL and not partial_fits(core, buffer.capacity, room):
        return -1
    if room > BLOCK_MAX:
        return -1
    room = memory_capacity(room)              # the whole block is used
    if buffer.capacity > LARGEST:
        data = <uint8_t *>block_resize(buffer.data, buffer.capacity, room, kind)
        if data == NULL:
            return -1
        core.held[kind] += room - buffer.capacity
    else:
        data = <uint8_t *>memory_take(core, room, kind)
        if data == NULL:
            return -1
        if buffer.data != NULL:
            memcpy(data, buffer.data, buffer.length)
            memory_give(core, buffer.data, buffer.capacity, kind)
    buffer.data = data
    buffer.capacity = <uint32_t>room
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
