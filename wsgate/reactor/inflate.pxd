"""Declarations for inflating a compressed message (permessage-deflate)."""

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    ZLIB_BYTES = 458752  # used at one time: an inflater or a compressor, and the unused end of the result

cdef uint64_t wire_limit(uint64_t limit) noexcept nogil
cdef object inflate(const uint8_t *data, uint64_t size, uint64_t limit)
