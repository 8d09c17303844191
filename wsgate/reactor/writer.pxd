"""Writes the outboxes of dirty connections to their sockets, in slices of time."""

from libc.stdint cimport uint8_t, uint32_t

from wsgate.reactor.structs cimport Core

cdef bint flush_slice(Core *core) noexcept nogil
cdef void unblock(Core *core, uint32_t slot) noexcept nogil
cdef void pong(Core *core, uint32_t slot, const uint8_t *payload, uint32_t size) noexcept nogil
