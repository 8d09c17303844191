"""The control slot: the pongs that wait to be written to one connection, in order."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport Core, Outbox

cdef enum Push:
    PUSHED = 0
    PUSH_OVERFLOW = 1            # there is no room, and no entry can be dropped to make room
    PUSH_NO_MEMORY = 2

cdef int pongs_add(Core *core, Outbox *outbox, const uint8_t *payload, uint32_t size) noexcept nogil
cdef int pongs_drop_oldest(Core *core, Outbox *outbox) noexcept nogil
cdef void pongs_close(Core *core, Outbox *outbox) noexcept nogil
cdef uint64_t pongs_consume(Core *core, Outbox *outbox, uint64_t written) noexcept nogil
