"""Declarations of the deadlines of connections and of what happens when they pass."""

from libc.stdint cimport int64_t, uint32_t

from wsgate.reactor.structs cimport Connection, Core

cdef int64_t application_at(Core *core, Connection *c) noexcept nogil
cdef void deadlines_arm(Core *core, uint32_t slot) noexcept nogil
cdef uint32_t ping_stamp(Core *core) noexcept nogil
cdef void deadlines_resume(Core *core, uint32_t slot) noexcept nogil
cdef void deadlines_rearm(Core *core) noexcept nogil
cdef bint deadlines_run(Core *core, int64_t until_ns) noexcept nogil
