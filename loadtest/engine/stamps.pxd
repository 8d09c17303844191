"""Writing and finding stamps; see stamps.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    STAMP_SIZE = 48
    ECHO_BIT = 0x80000000

ctypedef struct stamp_t:
    uint64_t sequence
    uint64_t intended_ns
    uint32_t stream

cdef void write_stamp(uint8_t* out, const stamp_t* mark) noexcept nogil
cdef bint find_stamp(const uint8_t* data, size_t size, stamp_t* out) noexcept nogil
