"""The echo job; see echoing.pyx."""

from libc.stdint cimport uint64_t

from loadtest.engine.core cimport conn_t, core_t
from loadtest.engine.stamps cimport stamp_t

cdef int begin_echo(core_t* core, uint64_t connections, double duration_s) noexcept nogil
cdef uint64_t tick_echo(core_t* core, uint64_t now) noexcept nogil
cdef int pump(core_t* core, conn_t* conn, uint64_t now) noexcept nogil
cdef int on_answer(core_t* core, conn_t* conn, uint64_t now) noexcept nogil
cdef int on_echo(core_t* core, conn_t* conn, const stamp_t* mark, uint64_t now) noexcept nogil
