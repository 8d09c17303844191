"""Declaration of the function that queues a frame for a connection."""

from libc.stdint cimport uint32_t

from wsgate.reactor.structs cimport Core, Frame

cdef int deliver(
    Core *core, uint32_t slot, Frame *frame, int klass, uint32_t channel, bint urgent
) noexcept nogil
