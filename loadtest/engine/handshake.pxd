"""Checks the response to the opening handshake; see handshake.pyx."""

from libc.stdint cimport uint8_t, uint32_t

from loadtest.engine.core cimport failure_t

cdef int head_end(const uint8_t* data, size_t size) noexcept nogil
cdef int parse_status(const uint8_t* head, size_t size) noexcept nogil
cdef failure_t judge_upgrade(
    const uint8_t* head, size_t size, const uint8_t* accept, const uint8_t* offered, uint32_t offered_size
) noexcept nogil
