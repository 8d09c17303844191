"""Parses PROXY protocol headers, versions 1 and 2, with which a proxy names the address of its client.

The functions are pure: they take bytes and return an address. A header that differs from the specification is
refused, because a lenient reader and a strict proxy could disagree on the address of a client. Addresses are
16 bytes; an IPv4 address is IPv4-mapped.

Source: the PROXY protocol, haproxy.org/download/3.0/doc/proxy-protocol.txt, sections 2.1 and 2.2.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    int AF_INET
    int AF_INET6

cdef enum:
    MORE = 0                     # the bytes may be the beginning of a header
    BROKEN = -1
    TEXT_MOST = 107              # the longest header of version 1, with its line end
    FIXED = 16                   # the bytes of version 2 before the addresses
    MOST = 4096                  # version 2 with its extensions; the specification demands 536
    IPV4_BYTES = 12              # two addresses and two ports
    IPV6_BYTES = 36
    TEXT_ADDRESS = 46            # the longest IPv6 address as text, and its final zero byte

cdef const uint8_t *SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
cdef const uint8_t *MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


cdef inline int64_t begins(
    const uint8_t *data, uint64_t size, const uint8_t *word, uint64_t length
) noexcept nogil:
    """Return 1 if `data` starts with `word`, BROKEN if not, and MORE if `data` is too short to decide."""
    if memcmp(data, word, min(size, length)):
        return BROKEN
    return 1 if size >= length else MORE


cdef int64_t port_end(const uint8_t *data, int64_t start, int64_t end, uint8_t last) noexcept nogil:
    """Return the index behind a decimal port and the byte `last` after it; -1 if there is no valid port."""
    cdef int64_t value = 0, place = start
    while place < end and 48 <= data[place] <= 57 and place - start < 5:
        value = value * 10 + data[place] - 48
        place += 1
    if place == start or place >= end or data[place] != last or value > 65535:
        return -1
    if data[start] == 48 and place - start > 1:    # no leading zeros
        return -1
    return place + 1


cdef int64_t address_end(
    const uint8_t *data, int64_t start, int64_t end, int family, uint8_t *address
) noexcept nogil:
    """Parse an address and the space behind it into `address`; return the index behind the space, or -1."""
    cdef char text[TEXT_ADDRESS]
    cdef int64_t place = start
    while place < end and data[place] != 32:
        if data[place] == 0:
            return -1                         # `inet_pton` would ignore the rest
        place += 1
    if place == start or place >= end or place - start >= TEXT_ADDRESS:
        return -1
    memcpy(text, data + start, place - start)
    text[place - start] = 0
    return place + 1 if inet_pton(family, text, address) == 1 else -1


cdef int64_t text_header(const uint8_t *data, uint64_t size, uint8_t *address, bint *is_named) noexcept nogil:
    """Parse a header of version 1, one line of text; return values as `proxy_header`."""
    cdef const uint8_t *feed = <const uint8_t *>memchr(data, 10, min(size, <uint64_t>TEXT_MOST))
    cdef uint8_t other[16]
    cdef uint8_t source[16]
    cdef int64_t length, place
    cdef int family
    if feed == NULL:
        return MORE if size < TEXT_MOST else BROKEN
    length = feed - data + 1
    # The line ends with CR LF.
    if length < 8 or data[length - 2] != 13:
        return BROKEN
    if length >= 15 and memcmp(data + 6, b"UNKNOWN", 7) == 0 and data[13] in (13, 32):
        return length                         # the specification says to ignore the rest of the line
    # Otherwise only `TCP4 ` or `TCP6 ` can follow, then both addresses and both ports with one space between.
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


cdef int64_t binary_header(
    const uint8_t *data, uint64_t size, uint8_t *address, bint *is_named
) noexcept nogil:
    """Parse a header of version 2, in binary form; return values as `proxy_header`."""
    cdef uint64_t length
    if size < FIXED:
        return MORE
    length = <uint64_t>data[14] << 8 | data[15]
    # Byte 12 has the version in its upper half and the command in the lower: 0 is LOCAL, 1 is PROXY.
    if data[12] >> 4 != 2 or data[12] & 15 > 1 or FIXED + length > MOST:
        return BROKEN
    # LOCAL, and families other than TCP over IP, name no client. UDP cannot be the transport here.
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


cdef int64_t proxy_header(
    const uint8_t *data, uint64_t size, uint8_t *address, bint *is_named
) noexcept nogil:
    """Parse the PROXY header at the beginning of `data`, in version 1 or 2.

    Sets `is_named`, and if it is true `address`. A proxy names no client in its own health checks.

    Returns:
        The size of the header in bytes; MORE (0) if it is not complete; BROKEN (-1) if it is not valid.
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
