"""Gives connections their turns: reads, parses and reports events, one connection at a time."""

from libc.stdint cimport uint32_t

from wsgate.reactor.structs cimport Core, Pass

cdef void turn_failed(Core *core, uint32_t slot, int reason) noexcept nogil
cdef int take_turn(Core *core, uint32_t slot, Pass *used, list events) except -1
