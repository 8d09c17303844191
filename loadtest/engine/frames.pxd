"""RFC 6455 frames from the client's side; see frames.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    OP_CONTINUATION = 0
    OP_TEXT = 1
    OP_BINARY = 2
    OP_CLOSE = 8
    OP_PING = 9
    OP_PONG = 10
    HEADER_MOST = 14
    CONTROL_MOST = 125

cdef enum fault_t:
    FAULT_NONE
    FAULT_MASKED
    FAULT_RSV
    FAULT_OPCODE
    FAULT_CONTROL_FRAGMENTED
    FAULT_CONTROL_LENGTH
    FAULT_LENGTH
    FAULT_CONTINUATION
    FAULT_INTERLEAVED
    FAULT_CLOSE_PAYLOAD
    FAULTS

ctypedef struct header_t:
    uint64_t payload
    uint8_t opcode
    bint is_final

cdef int decode_header(const uint8_t* data, size_t size, header_t* out) noexcept nogil
cdef size_t encode_header(uint8_t* out, uint8_t opcode, uint64_t payload, uint32_t key) noexcept nogil
cdef void mask(uint8_t* data, size_t size, uint32_t key) noexcept nogil
cdef bint is_close_code(unsigned int code) noexcept nogil
