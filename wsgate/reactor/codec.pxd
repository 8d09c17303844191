"""Declarations of the WebSocket frame codec (RFC 6455), plain functions on a pointer and a length."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum Opcode:
    OP_CONTINUATION = 0
    OP_TEXT = 1
    OP_BINARY = 2
    OP_CLOSE = 8
    OP_PING = 9
    OP_PONG = 10

cdef enum:
    UTF8_BAD = 0xFFFFFFFF
    HEADER_BAD = -1
    HEADER_MAX = 14              # the longest header of a client's frame, in bytes
    RSV1 = 0x40                  # in the first byte of a frame

ctypedef struct FrameHeader:
    uint64_t length              # of the payload
    uint8_t final
    uint8_t opcode
    uint8_t deflated             # RSV1 is set: a compressed message starts
    uint8_t mask[4]

cdef int codec_header(
    const uint8_t *data, uint64_t available, bint may_deflate, FrameHeader *header
) noexcept nogil
cdef void codec_unmask(
    uint8_t *target, const uint8_t *source, uint64_t size, const uint8_t *mask, uint64_t offset
) noexcept nogil
cdef uint32_t codec_utf8(uint32_t state, const uint8_t *data, uint64_t size) noexcept nogil
cdef int codec_close(const uint8_t *payload, uint64_t size, uint16_t *code) noexcept nogil
cdef uint32_t codec_encode_header(uint8_t *target, uint8_t opcode, uint64_t length) noexcept nogil
