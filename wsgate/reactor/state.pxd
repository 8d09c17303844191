"""Creates the reactor's state from settings, moves its clocks, and destroys it."""

from libc.stdint cimport int64_t

from wsgate.reactor.structs cimport Core, Frame

cdef void state_blank(Core *core) noexcept nogil
cdef int state_start(Core *core, settings, int64_t now_ms, bytes key) except -1
cdef Frame *response_frame(Core *core, bytes response) except? NULL
cdef void advance(Core *core, int64_t now_ms) noexcept nogil
cdef list state_destroy(Core *core)
cdef int apply_settings(Core *core, settings) except -1
