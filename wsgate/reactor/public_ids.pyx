"""Turn connection handles into public ids and back, so that an id does not reveal the handle or its order."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wsgate.reactor.siphash cimport siphash


cdef uint64_t permute_id(const uint8_t *key, uint64_t number, bint forward) noexcept nogil:
    """Apply a keyed permutation of 64 bits, or its inverse: four Feistel rounds over SipHash.

    Without the key the result cannot be distinguished from random bits. The inverse needs no table.
    Source: Luby and Rackoff, "How to construct pseudorandom permutations" (1988).
    """
    cdef uint32_t left = <uint32_t>(number >> 32), right = <uint32_t>number, mixed
    cdef uint32_t block[2]
    cdef int step
    for step in range(4):
        block[0] = <uint32_t>(step if forward else 3 - step)
        block[1] = right if forward else left
        mixed = <uint32_t>siphash(key, <const uint8_t *>block, sizeof(block))
        if forward:
            mixed ^= left
            left = right
            right = mixed
        else:
            mixed ^= right
            right = left
            left = mixed
    return <uint64_t>left << 32 | right
