"""Reading from sockets and decoding frames; see receiving.pyx."""

from libc.stdint cimport uint8_t, uint64_t

from loadtest.engine.core cimport conn_t, core_t

cdef int receive(core_t* core, conn_t* conn, size_t most) noexcept nogil
cdef int feed(core_t* core, conn_t* conn, const uint8_t* data, size_t size, uint64_t now) noexcept nogil
