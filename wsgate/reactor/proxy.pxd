"""Parses PROXY protocol headers, with which a proxy names the address of its client."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef int64_t proxy_header(const uint8_t *data, uint64_t size, uint8_t *address, bint *is_named) noexcept nogil
