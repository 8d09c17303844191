"""SipHash-2-4: a keyed hash for hash tables whose keys clients choose."""

from libc.stdint cimport uint8_t, uint64_t

cdef uint64_t siphash(const uint8_t *key, const uint8_t *data, uint64_t size) noexcept nogil
