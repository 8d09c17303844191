"""The PROXY protocol, versions 1 and 2: who a proxy says it speaks for.

Pure: bytes in, an address out. What is not exactly as the specification has it is refused, because a
lenient reader and a strict proxy would disagree on who somebody is. Addresses are 16 bytes, IPv4 mapped.

Source: the PROXY protocol, haproxy.org/download/3.0/doc/proxy-protocol.txt, sections 2.1 and 2.2.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    int AF_INET
    int AF_INET6

cdef enum:
    MORE = 0                     # it may become one
    BROKEN = -1
    TEXT_MOST = 107              # version 1, with its line end
    FIXED = 16                   # version 2, before the addresses
    MOST = 4096                  # version 2 with all that may hang on it; the specification asks for 536
    IPV4_BYTES = 12              # two addresses and two ports
    IPV6_BYTES = 36
    TEXT_ADDRESS = 46            # the longest IPv6 address as text, and its end

cdef const uint8_t *SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
cdef const uint8_t *MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


cdef inline int64_t begins(const uint8_t *data, uint64_t size, const uint8_t *word, uint64_t length) noexcept nogil:
    """1 when `data` starts with the word, MORE when it is too short to say, BROKEN when it does not."""
    if memcmp(data, word, min(size, length)):
        return BROKEN
    return 1 if size >= length else MORE


cdef int64_t port_end(const uint8_t *data, int64_t start, int64_t end, uint8_t last) noexcept nogil:
    """Where a decimal port that ends with `last` ends, behind it; -1: it is none."""
    cdef int64_t value = 0, place = start
    while place < end and 48 <= data[place] <= 57 and place - start < 5:
        value = value * 10 + data[place] - 48
        place += 1
    if place == start or place >= end or data[place] != last or value > 65535:
        return -1
    if data[start] == 48 and place - start > 1:
        return -1
    return place + 1


cdef int64_t address_end(
    const uint8_t *data, int64_t start, int64_t end, int family, uint8_t *address
) noexcept nogil:
    """Where an address and the space behind it end; -1: it is none."""
    cdef char text[TEXT_ADDRESS]
    cdef int64_t place = start
    while place < end and data[place] != 32:
        if data[place] == 0:
            return -1                         # `inet_pton` would stop here and not see what follows
        place += 1
    if place == start or place >= end or place - start >= TEXT_ADDRESS:
        return -1
    memcpy(text, data + start, place - start)
    text[place - start] = 0
    return place + 1 if inet_pton(family, text, address) == 1 else -1


cdef int64_t text_header(const uint8_t *data, uint64_t size, uint8_t *address, bint *is_named) noexcept nogil:
    """Version 1: one line."""
    cdef const uint8_t *feed = <const uint8_t *>memchr(data, 10, min(size, <uint64_t>TEXT_MOST))
    cdef uint8_t other[16]
    cdef uint8_t source[16]
    cdef int64_t length, place
    cdef int family
    if feed == NULL:
        return MORE if size < TEXT_MOST else BROKEN
    length = feed - data + 1
    if length < 8 or data[length - 2] != 13:
        return BROKEN
    if length >= 15 and memcmp(data + 6, b"UNKNOWN", 7) == 0 and data[13] in (13, 32):
        return length                         # what follows is to be ignored
    if length < 11 or memcmp(data + 6, b"TCP", 3) or data[9] not in (52, 54) or data[10] != 32:
        return BROKEN
    family = AF_INET if data[9] == 52 else AF_INET6
    place = address_end(data, 11, length, family, source)
    if place > 0:
        place = address_end(data, place, length, family, other)
    if place > 0:
        place = port_end(data, place, length, 32)
    if place > 0:
        place = port_end(data, place, length, 13)
    if place != length - 1:
        return BROKEN
    is_named[0] = True
    if family == AF_INET:
        memcpy(address, MAPPED, 12)
        memcpy(address + 12, source, 4)
    else:
        memcpy(address, source, 16)
    return length


cdef int64_t binary_header(const uint8_t *data, uint64_t size, uint8_t *address, bint *is_named) noexcept nogil:
    """Version 2: a fixed part, addresses, and what may hang on them."""
    cdef uint64_t length
    if size < FIXED:
        return MORE
    length = <uint64_t>data[14] << 8 | data[15]
    if data[12] >> 4 != 2 or data[12] & 15 > 1 or FIXED + length > MOST:
        return BROKEN
    # A connection of the proxy's own, or no TCP over IP: whoever it is, it is not named. UDP is no way here.
    if data[12] & 15 == 1 and data[13] == 0x11:
        if length < IPV4_BYTES:
            return BROKEN
        if size >= FIXED + length:
            memcpy(address, MAPPED, 12)
            memcpy(address + 12, data + FIXED, 4)
            is_named[0] = True
    elif data[12] & 15 == 1 and data[13] == 0x21:
        if length < IPV6_BYTES:
            return BROKEN
        if size >= FIXED + length:
            memcpy(address, data + FIXED, 16)
            is_named[0] = True
    elif data[12] & 15 == 1 and data[13] not in (0x00, 0x31):
        return BROKEN
    return <int64_t>(FIXED + length) if size >= FIXED + length else MORE


cdef int64_t proxy_header(const uint8_t *data, uint64_t size, uint8_t *address, bint *is_named) noexcept nogil:
    """Bytes of the header that `data` begins with; MORE (0): not whole yet, BROKEN (-1): it is none.

    `address` and `is_named` are set when the proxy names somebody; a health check of its own does not.
    """
    cdef int64_t outcome
    is_named[0] = False
    if size == 0:
        return MORE
    if data[0] == 13:
        outcome = begins(data, size, SIGNATURE, 12)
        return binary_header(data, size, address, is_named) if outcome > 0 else outcome
    outcome = begins(data, size, b"PROXY ", 6)
    return text_header(data, size, address, is_named) if outcome > 0 else outcome
