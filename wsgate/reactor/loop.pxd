"""Declarations of the `Reactor` class for the other compiled modules of the reactor."""

from libc.stdint cimport uint64_t, uint32_t

from wsgate.reactor.structs cimport Connection, Core

cdef class Reactor:
    cdef Core *core
    cdef object gap_encoder
    cdef object addresses
    cdef Core *own(self) except NULL
    cdef Connection *find(self, uint64_t conn, uint32_t *slot)
    cdef int check_variant(self, int variant) except -1

cdef void open_connection(Core *core, uint32_t slot) noexcept nogil
