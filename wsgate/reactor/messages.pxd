"""Parses the frames of a client into messages, by RFC 6455 sections 5 and 7."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport Connection, Core, Pass

cdef int64_t parse_frames(
    Core *core, uint32_t slot, uint8_t *data, uint64_t size, Pass *used, list events
) except -2
cdef int violate(Core *core, uint32_t slot, int reason) noexcept nogil
cdef void give_back(Core *core, Connection *c) noexcept nogil
