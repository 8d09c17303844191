"""Writing to sockets; see sending.pyx."""

from libc.stdint cimport uint8_t

from loadtest.engine.core cimport conn_t, core_t

cdef int write_bytes(core_t* core, conn_t* conn, const uint8_t* data, size_t size) noexcept nogil
cdef int flush(core_t* core, conn_t* conn) noexcept nogil
cdef int set_interest(core_t* core, conn_t* conn) noexcept nogil
cdef int send_control(
    core_t* core, conn_t* conn, uint8_t opcode, const uint8_t* data, size_t size
) noexcept nogil
cdef int send_close(core_t* core, conn_t* conn, unsigned int code) noexcept nogil
