"""The WebSocket frame codec (RFC 6455): headers, masks, UTF-8 and Close payloads.

Plain functions on a pointer and a length. They know no connection, limit or policy and no Python object, so
that fuzzers and sanitizers can call them alone. Unaligned bytes are read only through memcpy. State that
outlives a call is passed in and returned.

Source: RFC 6455 sections 5.2, 5.3, 5.5, 7.4; RFC 7692 section 6; RFC 3629 section 4.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef int codec_header(
    const uint8_t *data, uint64_t available, bint may_deflate, FrameHeader *header
) noexcept nogil:
    """Parse the header of a client's frame from the first bytes of `data`.

    Each byte is checked as soon as it is available, so that an invalid header is found however it is split.
    `may_deflate`: permessage-deflate was agreed on.

    Returns:
        The size of the header in bytes (6, 8 or 14); 0 if more bytes are needed; HEADER_BAD if it is invalid.
    """
    cdef uint8_t first, second, size
    cdef uint64_t length = 0
    cdef int index, extended
    if available < 1:
        return 0
    first = data[0]
    header.opcode = first & 0x0F
    header.final = first >> 7
    header.deflated = 0
    if first & 0x70:                          # 5.2: RSV must be 0 unless negotiated
        # RFC 7692 section 6: RSV1, on the first frame of a message only.
        if first & 0x70 != RSV1 or not may_deflate or header.opcode not in (OP_TEXT, OP_BINARY):
            return HEADER_BAD
        header.deflated = 1
    if 3 <= header.opcode <= 7 or header.opcode > 10:   # 5.2: reserved opcodes
        return HEADER_BAD
    if header.opcode >= 8 and not header.final:         # 5.5: control frames are not fragmented
        return HEADER_BAD
    if available < 2:
        return 0
    second = data[1]
    if not second & 0x80:                     # 5.1: a client masks every frame
        return HEADER_BAD
    size = second & 0x7F
    if header.opcode >= 8 and size > 125:     # 5.5: a control frame has at most 125 bytes
        return HEADER_BAD
    extended = 0 if size < 126 else (2 if size == 126 else 8)
    if extended == 8 and available > 2 and data[2] & 0x80:   # 5.2: most significant bit must be 0
        return HEADER_BAD
    if available < <uint64_t>(2 + extended + 4):
        # A length that is not minimal can be found before the mask has arrived.
        if extended == 0 or available < <uint64_t>(2 + extended):
            return 0
    if extended == 0:
        length = size
    else:
        for index in range(extended):
            length = (length << 8) | data[2 + index]
        if (extended == 2 and length < 126) or (extended == 8 and length < 65536):   # 5.2: it must be minimal
            return HEADER_BAD
        if available < <uint64_t>(2 + extended + 4):
            return 0
    header.length = length
    memcpy(header.mask, data + 2 + extended, 4)
    return 2 + extended + 4


cdef void codec_unmask(
    uint8_t *target, const uint8_t *source, uint64_t size, const uint8_t *mask, uint64_t offset
) noexcept nogil:
    """XOR bytes of a payload with its mask, beginning `offset` bytes into the payload (RFC 6455 section 5.3).

    `target` may be `source`. A step takes eight bytes, and the compiler makes vector instructions of it.
    """
    cdef uint8_t key[8]
    cdef uint64_t wide, word
    cdef uint64_t index = 0
    cdef int lane
    for lane in range(8):
        key[lane] = mask[(offset + lane) & 3]
    memcpy(&wide, key, 8)
    while index + 8 <= size:
        memcpy(&word, source + index, 8)
        word ^= wide
        memcpy(target + index, &word, 8)
        index += 8
    while index < size:
        target[index] = source[index] ^ key[index & 7]
        index += 1


cdef inline uint32_t expect(uint32_t more, uint32_t low, uint32_t high) noexcept nogil:
    """Return the UTF-8 state in which `more` bytes must follow and the next must lie in low..high."""
    return more | (low << 8) | (high << 16)


cdef inline uint32_t lead(uint8_t byte) noexcept nogil:
    """Return the UTF-8 state after the first byte of a character of two or more (RFC 3629 section 4)."""
    if byte < 0xC2 or byte > 0xF4:            # continuation, overlong C0 C1, beyond U+10FFFF
        return UTF8_BAD
    if byte < 0xE0:
        return expect(1, 0x80, 0xBF)
    if byte == 0xE0:                          # excludes overlong forms
        return expect(2, 0xA0, 0xBF)
    if byte == 0xED:                          # excludes surrogates
        return expect(2, 0x80, 0x9F)
    if byte < 0xF0:
        return expect(2, 0x80, 0xBF)
    if byte == 0xF0:                          # excludes overlong forms
        return expect(3, 0x90, 0xBF)
    if byte == 0xF4:                          # excludes what is beyond U+10FFFF
        return expect(3, 0x80, 0x8F)
    return expect(3, 0x80, 0xBF)


cdef uint32_t codec_utf8(uint32_t state, const uint8_t *data, uint64_t size) noexcept nogil:
    """Continue to validate text as UTF-8 from a state that an earlier call returned, or 0.

    Returns:
        UTF8_BAD at the first byte that cannot follow; otherwise the new state, 0 between characters.
    """
    cdef uint64_t index = 0, word
    cdef uint32_t more
    cdef uint8_t byte
    while index < size:
        if state == 0:
            while index + 8 <= size:          # skip ASCII, eight bytes at a time
                memcpy(&word, data + index, 8)
                if word & <uint64_t>0x8080808080808080:
                    break
                index += 8
            if index >= size:
                break
            byte = data[index]
            if byte >= 0x80:
                state = lead(byte)
                if state == UTF8_BAD:
                    return UTF8_BAD
        else:
            byte = data[index]
            if byte < ((state >> 8) & 0xFF) or byte > (state >> 16):
                return UTF8_BAD
            more = (state & 0xFF) - 1
            state = expect(more, 0x80, 0xBF) if more else 0
        index += 1
    return state


cdef int codec_close(const uint8_t *payload, uint64_t size, uint16_t *code) noexcept nogil:
    """Check the payload of a received Close frame and store its code.

    Returns:
        0, with `code` set (1005 if there is none); 1002 or 1007, the close code for what is wrong.
    """
    cdef uint16_t value
    if size == 0:
        code[0] = 1005                        # 7.1.5: no code present
        return 0
    if size == 1:                             # 5.5.1: two bytes if any
        return 1002
    value = (<uint16_t>payload[0] << 8) | payload[1]
    # 7.4.1, 7.4.2 and the registry: 1004 to 1006 and 1015 must not be sent, 1016 to 2999 are not assigned.
    if not (
        1000 <= value <= 1003 or 1007 <= value <= 1014 or 3000 <= value <= 4999
    ):
        return 1002
    if codec_utf8(0, payload + 2, size - 2) != 0:
        return 1007
    code[0] = value
    return 0


cdef uint32_t codec_encode_header(uint8_t *target, uint8_t opcode, uint64_t length) noexcept nogil:
    """Write the header of an unfragmented server frame and return its size: 2, 4 or 10 bytes."""
    cdef int index
    target[0] = 0x80 | opcode
    if length < 126:
        target[1] = <uint8_t>length
        return 2
    if length < 65536:
        target[1] = 126
        target[2] = <uint8_t>(length >> 8)
        target[3] = <uint8_t>length
        return 4
    target[1] = 127
    for index in range(8):
        target[2 + index] = <uint8_t>(length >> (56 - 8 * index))
    return 10
