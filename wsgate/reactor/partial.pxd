"""The `Input` of a connection: its unfinished head, frame or message, and bytes not yet parsed."""

from libc.stdint cimport uint8_t, uint32_t

from wsgate.reactor.structs cimport Connection, Core, Input

cdef Input *partial_open(Core *core, Connection *c) noexcept nogil
cdef void partial_close(Core *core, Connection *c) noexcept nogil
cdef int partial_stash(Core *core, Connection *c, const uint8_t *data, uint32_t size) noexcept nogil
