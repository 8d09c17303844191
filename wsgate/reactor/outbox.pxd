"""The outbox: the frames that wait to be written to one connection."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport Connection, Core, Entry, Frame, Outbox

cdef Outbox *outbox_open(Core *core, Connection *c) noexcept nogil
cdef int outbox_push(
    Core *core, Connection *c, Frame *frame, int klass, uint32_t channel
) noexcept nogil
cdef int outbox_drop_aged(Core *core, Connection *c) noexcept nogil
cdef int64_t outbox_oldest_ms(Core *core, Connection *c) noexcept nogil
cdef void outbox_replace_gap(Core *core, Connection *c, uint32_t index, Frame *frame) noexcept nogil
cdef uint32_t outbox_consume(Core *core, Connection *c, uint64_t written) noexcept nogil
cdef void outbox_close_empty(Core *core, Connection *c) noexcept nogil
cdef void outbox_discard(Core *core, Connection *c) noexcept nogil
cdef void outbox_close(Core *core, Connection *c) noexcept nogil
cdef bint outbox_head_first(Outbox *outbox) noexcept nogil
cdef bint outbox_has_notice(Connection *c) noexcept nogil
cdef void outbox_mark_notice(Connection *c) noexcept nogil
cdef bint outbox_over_half(Core *core, Connection *c) noexcept nogil
