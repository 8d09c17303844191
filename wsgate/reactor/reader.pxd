"""Reading: from bytes to events, one connection's turn at a time."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport Core

ctypedef struct Pass:            # what one poll has used of its budget
    uint32_t messages
    uint32_t opens
    uint64_t bytes
    int64_t until_ns

cdef int take_turn(Core *core, uint32_t slot, Pass *used, list events) except -1
