"""Allocates memory from a pool of size classes, and counts the bytes in use by kind.

This module owns the pool of free blocks and the accounts of memory. It does not know what the bytes mean.

Only the owner of a block stores the size of the block. `memory_take` and `memory_give` both receive the
requested size, and only this module turns the size into a class. An owner that wants to use the whole block
(an array, a buffer that grows) calls `memory_capacity` first and then takes exactly that many bytes. No other
module rounds a size.

Blocks of up to 64 KiB have one of twelve classes, powers of two from 32 bytes on. A released block stays in
the pool until the pool holds `idle_limit_bytes`; beyond that limit, and for every larger block, it is freed
with `free`. So the pool is bounded, and the memory of a burst is freed. The accounts count the capacity of a
block and not the requested size, because the process has that much less memory.

With WSGATE_EXACT_BLOCKS (the sanitized build) every block is allocated with exactly the requested size. A
header in front of the block stores its size and kind, and a release with another size or kind ends the
process. The pool is then switched off, so that AddressSanitizer knows the end of every block.

All calls are O(1), apart from copying.
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

# Blocks above LARGEST are whole pages: realloc of a mapped block then moves page tables, not bytes.
cdef enum:
    PAGE = 4096
    LARGEST = POOL_SMALLEST << (POOL_CLASSES - 1)
    BLOCK_MAX = 0xFFFFF000


cdef bint memory_is_exact() noexcept nogil:
    """Return whether this is a sanitized build, which allocates exact blocks and checks their sizes."""
    return BLOCKS_ARE_EXACT


cdef inline int class_of(uint64_t size) noexcept nogil:
    """Return the index of the smallest size class that has room for `size` bytes, at most LARGEST."""
    cdef int index = 0
    cdef uint64_t room = POOL_SMALLEST
    while room < size:
        room <<= 1
        index += 1
    return index


cdef inline uint64_t whole_pages(uint64_t size) noexcept nogil:
    """Return `size` rounded up to whole pages of 4 KiB."""
    return (size + PAGE - 1) & ~<uint64_t>(PAGE - 1)


cdef uint64_t memory_capacity(uint64_t size) noexcept nogil:
    """Return how many bytes a block of `size` bytes really has: those of its class, or whole pages.

    A block of the returned size costs no more memory than a block of `size` bytes.
    """
    return whole_pages(size) if size > LARGEST else <uint64_t>POOL_SMALLEST << class_of(size)


cdef void *memory_take(Core *core, uint64_t size, int kind) noexcept nogil:
    """Allocate a block of `size` bytes, charged to the account `kind`; NULL without memory.

    The owner may use only `size` bytes of the block.
    """
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
    """Release a block into the pool or to malloc; `size` and `kind` must be those passed to `memory_take`."""
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
    """Free all blocks that wait in the pool."""
    cdef int index
    cdef void *block
    for index in range(POOL_CLASSES):
        while core.pool.idle[index] != NULL:
            block = core.pool.idle[index]
            core.pool.idle[index] = (<void **>block)[0]
            block_free(block, 0, 0)           # size and kind are not checked: exact blocks are never pooled
    core.pool.idle_bytes = 0


cdef uint64_t memory_booked(Core *core) noexcept nogil:
    """Return the sum of all accounts in bytes, which is compared with the memory budget.

    The accounts are those by kind, the pool, the caller's memory, a fixed amount for each connection, and the
    kernel's memory for sockets that are open or were closed with unsent data.
    """
    cdef uint64_t total = core.pool.idle_bytes + core.outside_bytes
    cdef int kind
    for kind in range(<int>KINDS):
        total += core.held[kind]
    total += <uint64_t>core.connections * core.gate.connection_bytes
    return total + core.queued_bytes + core.orphan_bytes


cdef uint64_t memory_high(Core *core) noexcept nogil:
    """Return the high mark, 15/16 of the budget: from here on only existing connections get memory."""
    return core.gate.memory_bytes - (core.gate.memory_bytes >> 4)


cdef uint64_t memory_low(Core *core) noexcept nogil:
    """Return the low mark, 7/8 of the budget: once refused, newcomers are accepted again only below it."""
    return core.gate.memory_bytes - (core.gate.memory_bytes >> 3)


cdef bint partial_fits(Core *core, uint64_t given_back, uint64_t size) noexcept nogil:
    """Return whether unfinished input may replace a block of `given_back` bytes by one of `size` bytes.

    Both limits, for unfinished input and for all memory, are compared with the capacity of the block, which
    can be almost twice the requested size.
    """
    cdef uint64_t room = memory_capacity(size) - given_back
    if core.gate.memory_bytes and memory_booked(core) + room > core.gate.memory_bytes:
        return False
    return core.gate.partial_bytes == 0 or core.held[<int>KIND_PARTIAL] + room <= core.gate.partial_bytes


cdef int buffer_reserve(
    Core *core, Buffer *buffer, uint64_t total, uint64_t expected_total, int kind
) noexcept nogil:
    """Enlarge a buffer to at least `total` bytes and keep its content.

    The buffer grows by half, so that a message that comes byte by byte costs O(its length). It does not grow
    beyond `expected_total` if `total` is within that. It never grows to a declared length in advance: a peer
    that announces a long message and sends little makes us allocate little.

    Returns:
        0, or -1 without memory or when unfinished input would exceed its limit.
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
    room = memory_capacity(room)              # the buffer uses the whole block
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
    """Append bytes to a buffer that grows as needed; return 0, or -1 as `buffer_reserve` does."""
    if buffer_reserve(core, buffer, buffer.length + size, expected_total, kind) < 0:
        return -1
    memcpy(buffer.data + buffer.length, data, size)
    buffer.length += <uint32_t>size
    return 0


cdef void buffer_give(Core *core, Buffer *buffer, int kind) noexcept nogil:
    """Release the memory of a buffer and leave the buffer empty."""
    if buffer.data != NULL:
        memory_give(core, buffer.data, buffer.capacity, kind)
    buffer.data = NULL
    buffer.length = 0
    buffer.capacity = 0
