"""Allocates memory from a pool of size classes, and counts the bytes in use by kind."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport Buffer, Core

cdef bint memory_is_exact() noexcept nogil
cdef uint64_t memory_capacity(uint64_t size) noexcept nogil
cdef void *memory_take(Core *core, uint64_t size, int kind) noexcept nogil
cdef void memory_give(Core *core, void *block, uint64_t size, int kind) noexcept nogil
cdef void memory_empty_pool(Core *core) noexcept nogil
cdef int buffer_append(
    Core *core, Buffer *buffer, const uint8_t *data, uint64_t size, uint64_t expected_total, int kind
) noexcept nogil
cdef int buffer_reserve(
    Core *core, Buffer *buffer, uint64_t total, uint64_t expected_total, int kind
) noexcept nogil
cdef void buffer_give(Core *core, Buffer *buffer, int kind) noexcept nogil
cdef uint64_t memory_booked(Core *core) noexcept nogil
cdef uint64_t memory_high(Core *core) noexcept nogil
cdef uint64_t memory_low(Core *core) noexcept nogil
cdef bint partial_fits(Core *core, uint64_t given_back, uint64_t size) noexcept nogil
