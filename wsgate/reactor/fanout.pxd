"""Declarations of the fan-out, which queues a publication for all subscribers of a channel."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport Core, Frame

cdef int64_t fan_out(Core *core, uint32_t index, Frame **frames, uint64_t exclude) noexcept nogil
cdef void walks_step(Core *core, uint32_t most) noexcept nogil
cdef void walks_drop(Core *core) noexcept nogil
