"""Random numbers for masks and keys, and the digest of the opening handshake."""

from libc.stdint cimport uint8_t, uint64_t

ctypedef struct random_t:
    uint64_t state
    uint64_t left

cdef enum:
    KEY_BYTES = 24
    ACCEPT_BYTES = 28

cdef uint64_t draw(random_t* source) noexcept nogil
cdef void key_of(uint64_t seed, uint8_t* out) noexcept nogil
cdef void accept_of(const uint8_t* key, uint8_t* out) noexcept nogil
