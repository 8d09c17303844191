"""The request head: collected under a cap and an absolute deadline, handed up once, whole."""

from libc.stdint cimport uint32_t

from wsgate.reactor.structs cimport Core, Pass

cdef int turn_head(Core *core, uint32_t slot, Pass *used, list events) except -1
