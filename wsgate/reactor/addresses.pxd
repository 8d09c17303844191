"""Declarations of the counts of connections by address, which all shards of a node share."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport AddressTable, Core

cdef bint address_read(const void *peer, uint8_t *address) noexcept nogil
cdef bint address_is_trusted(Core *core, const uint8_t *address) noexcept nogil
cdef int address_take(Core *core, const uint8_t *address, uint64_t *key) noexcept nogil
cdef void address_count(Core *core, uint32_t slot, const uint8_t *address) noexcept nogil
cdef void address_note(Core *core, uint32_t slot, uint64_t key) noexcept nogil
cdef void address_drop(Core *core, uint64_t key) noexcept nogil
cdef int address_claim(Core *core, uint32_t slot, const uint8_t *address) noexcept nogil
cdef void address_leave(Core *core, uint32_t slot) noexcept nogil
cdef uint32_t address_group(Core *core, const uint8_t *address) noexcept nogil
cdef uint64_t address_origin(Core *core, uint32_t slot, const uint8_t *address) noexcept nogil

cdef class SharedAddresses:
    cdef object memory
    cdef uint8_t[::1] view
    cdef AddressTable table
    cdef uint32_t shards
    cdef uint64_t *journal_of(self, uint32_t shard)
    cdef AddressTable of_shard(self, uint32_t shard) except *
