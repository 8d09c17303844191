"""Declarations of the turn that collects the request head of a new connection."""

from libc.stdint cimport uint32_t

from wsgate.reactor.structs cimport Core, Pass

cdef int turn_head(Core *core, uint32_t slot, Pass *used, list events) except -1
