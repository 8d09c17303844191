"""Random numbers for masks and keys, and the digest of the opening handshake. Plain functions without state.

Random numbers are made by splitmix64, which getrandom(2) seeds again every 65,536 draws. RFC 6455 section
10.3 requires unpredictable mask keys, because hostile content could otherwise attack caching proxies. A load
generator sends only its own content, so speed is more important here. Do not copy this into a client that
sends the data of other people.
"""

from libc.string cimport memcpy, memset

from loadtest.engine.linux cimport getrandom

cdef const char* _GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
cdef const char* _BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

cdef enum:
    _DRAWS_PER_SEED = 65_536


cdef inline uint64_t _mix(uint64_t value) noexcept nogil:
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014).
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return value ^ (value >> 31)


cdef uint64_t draw(random_t* source) noexcept nogil:
    """Return 64 random bits from the source."""
    cdef uint64_t seed = 0
    if source.left == 0:
        # A read of 8 bytes never blocks or falls short once the kernel's pool is ready; if it is refused, the
        # old state is used.
        getrandom(&seed, sizeof(seed), 0)
        source.state ^= seed
        source.left = _DRAWS_PER_SEED
    source.left -= 1
    source.state += <uint64_t>0x9E3779B97F4A7C15
    return _mix(source.state)


cdef void _base64(const uint8_t* data, size_t size, uint8_t* out) noexcept nogil:
    """Encode `size` bytes as base64 with padding, in 4 * ceil(size / 3) characters."""
    cdef size_t i = 0
    cdef unsigned int group
    while i < size:
        group = <unsigned int>data[i] << 16
        if i + 1 < size:
            group |= <unsigned int>data[i + 1] << 8
        if i + 2 < size:
            group |= data[i + 2]
        out[0] = _BASE64[group >> 18]
        out[1] = _BASE64[(group >> 12) & 63]
        out[2] = _BASE64[(group >> 6) & 63] if i + 1 < size else c'='
        out[3] = _BASE64[group & 63] if i + 2 < size else c'='
        out += 4
        i += 3


cdef void key_of(uint64_t seed, uint8_t* out) noexcept nogil:
    """Write the 24 characters of the Sec-WebSocket-Key for a seed."""
    cdef uint64_t nonce[2]
    nonce[0] = _mix(seed)
    nonce[1] = _mix(seed + <uint64_t>0x9E3779B97F4A7C15)
    _base64(<uint8_t*>nonce, 16, out)


cdef inline unsigned int _rotate(unsigned int value, int bits) noexcept nogil:
    return (value << bits) | (value >> (32 - bits))


cdef void _sha1_block(unsigned int* state, const uint8_t* block) noexcept nogil:
    """Add one 64-byte block to a SHA-1 state. Source: FIPS 180-4, 6.1.2."""
    cdef unsigned int words[80]
    cdef unsigned int a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f, k, t
    cdef int i
    for i in range(16):
        words[i] = (
            (<unsigned int>block[4 * i] << 24)
            | (<unsigned int>block[4 * i + 1] << 16)
            | (<unsigned int>block[4 * i + 2] << 8)
            | block[4 * i + 3]
        )
    for i in range(16, 80):
        words[i] = _rotate(words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16], 1)
    for i in range(80):
        if i < 20:
            f = (b & c) | (~b & d)
            k = 0x5A827999
        elif i < 40:
            f = b ^ c ^ d
            k = 0x6ED9EBA1
        elif i < 60:
            f = (b & c) | (b & d) | (c & d)
            k = 0x8F1BBCDC
        else:
            f = b ^ c ^ d
            k = 0xCA62C1D6
        t = _rotate(a, 5) + f + e + k + words[i]
        e = d
        d = c
        c = _rotate(b, 30)
        b = a
        a = t
    state[0] += a
    state[1] += b
    state[2] += c
    state[3] += d
    state[4] += e


cdef void accept_of(const uint8_t* key, uint8_t* out) noexcept nogil:
    """Write the 28 characters with which the server must answer a key. Source: RFC 6455, 4.2.2 item 5.4."""
    cdef uint8_t blocks[128]
    cdef uint8_t digest[20]
    cdef unsigned int state[5]
    cdef int i
    # 24 + 36 bytes, the stop bit, and the length in bits (480) at the end are always exactly two blocks.
    memset(blocks, 0, sizeof(blocks))
    memcpy(blocks, key, KEY_BYTES)
    memcpy(blocks + KEY_BYTES, _GUID, 36)
    blocks[60] = 0x80
    blocks[126] = 480 >> 8
    blocks[127] = 480 & 255
    state[0] = 0x67452301
    state[1] = 0xEFCDAB89
    state[2] = 0x98BADCFE
    state[3] = 0x10325476
    state[4] = 0xC3D2E1F0
    _sha1_block(state, blocks)
    _sha1_block(state, blocks + 64)
    for i in range(20):
        digest[i] = <uint8_t>(state[i >> 2] >> (24 - 8 * (i & 3)))
    _base64(digest, 20, out)
