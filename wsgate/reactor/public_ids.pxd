"""The keyed permutation between connection handles and public ids."""

from libc.stdint cimport uint8_t, uint64_t

cdef uint64_t permute_id(const uint8_t *key, uint64_t number, bint forward) noexcept nogil
