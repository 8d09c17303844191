"""SipHash-2-4: a keyed hash for hash tables whose keys clients choose.

Without the secret key a client cannot construct names that all fall into one cell of a hash table.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), section 2.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy


cdef inline uint64_t rotate(uint64_t word, int bits) noexcept nogil:
    """Rotate a 64-bit word to the left by `bits`, 1 to 63."""
    return (word << bits) | (word >> (64 - bits))


cdef inline void mix(uint64_t *v) noexcept nogil:
    """Apply one SipRound to the state `v` of four words."""
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotate(v[1], 13) ^ v[0]
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] = rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotate(v[1], 17) ^ v[2]
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] = rotate(v[2], 32)


cdef uint64_t siphash(const uint8_t *key, const uint8_t *data, uint64_t size) noexcept nogil:
    """Return the 64-bit hash of `size` bytes of `data` under a key of 16 bytes. O(size)."""
    cdef uint64_t v[4]
    cdef uint64_t first, second, word, index = 0
    memcpy(&first, key, 8)
    memcpy(&second, key + 8, 8)
    v[0] = first ^ <uint64_t>0x736F6D6570736575
    v[1] = second ^ <uint64_t>0x646F72616E646F6D
    v[2] = first ^ <uint64_t>0x6C7967656E657261
    v[3] = second ^ <uint64_t>0x7465646279746573
    while index + 8 <= size:
        memcpy(&word, data + index, 8)
        v[3] ^= word
        mix(v)
        mix(v)
        v[0] ^= word
        index += 8
    word = size << 56
    memcpy(&word, data + index, size - index)
    v[3] ^= word
    mix(v)
    mix(v)
    v[0] ^= word
    v[2] ^= 0xFF
    mix(v)
    mix(v)
    mix(v)
    mix(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def hash_bytes(key: bytes, data: bytes) -> int:
    """Return the 64-bit SipHash-2-4 of `data`, to compare with published test vectors; see siphash.pyi."""
    if len(key) != 16:
        raise ValueError("a SipHash key must have 16 bytes")
    return siphash(key, data, len(data))
