"""Declarations of the steps by which a connection ends."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from wsgate.reactor.structs cimport Bye, Connection, Core, Frame

cdef Bye *bye_for(Core *core, uint16_t close_code, int reason, int rank) noexcept nogil
cdef void fail(Core *core, uint32_t slot, int reason, uint16_t code) noexcept nogil
cdef void queue_close(Core *core, uint32_t slot) noexcept nogil
cdef void begin_close(
    Core *core, uint32_t slot, uint16_t code, const uint8_t *text, uint32_t size, int reason
) noexcept nogil
cdef void end_with(Core *core, uint32_t slot, Frame *frame, int reason) noexcept nogil
cdef void all_written(Core *core, uint32_t slot) noexcept nogil
cdef void linger(Core *core, uint32_t slot) noexcept nogil
cdef void orphans_tick(Core *core) noexcept nogil
cdef void release(Core *core, uint32_t slot, int reason, bint reset) noexcept nogil
cdef uint16_t close_code_of(int reason) noexcept nogil
cdef void unblocked(Core *core, Connection *c) noexcept nogil
