"""RFC 6455 frames on the client's side: strict decoding of the server's frames, encoding of masked frames.

Plain functions on pointer and length. UTF-8 in text and in close reasons is not checked: this client checks
delivery, and the conformance suite checks bytes.
"""

from libc.string cimport memcpy


cdef int decode_header(const uint8_t* data, size_t size, header_t* out) noexcept nogil:
    """Decode the header of one frame.

    Returns the length of the header in bytes, 0 if more bytes are needed, or a negated fault_t. A fault in
    the first bytes is reported without waiting for the rest.
    """
    cdef uint8_t opcode
    cdef uint8_t length
    cdef int extended
    cdef uint64_t payload = 0
    cdef int i
    if size < 1:
        return 0
    opcode = data[0] & 0x0F
    # Section 5.2: without a negotiated extension, RSV1-3 are 0.
    if data[0] & 0x70:
        return -<int>FAULT_RSV
    if opcode > OP_PONG or OP_BINARY < opcode < OP_CLOSE:
        return -<int>FAULT_OPCODE
    # Section 5.4: control frames are never fragmented.
    if opcode >= OP_CLOSE and not data[0] & 0x80:
        return -<int>FAULT_CONTROL_FRAGMENTED
    if size < 2:
        return 0
    # Section 5.1: a server must not mask, and a client must close the connection if it does.
    if data[1] & 0x80:
        return -<int>FAULT_MASKED
    length = data[1]
    # Section 5.5: control frames have at most 125 bytes.
    if opcode >= OP_CLOSE and length > CONTROL_MOST:
        return -<int>FAULT_CONTROL_LENGTH
    out.opcode = opcode
    out.is_final = data[0] & 0x80 != 0
    if length < 126:
        out.payload = length
        return 2
    extended = 2 if length == 126 else 8
    if size < <size_t>(2 + extended):
        return 0
    for i in range(extended):
        payload = (payload << 8) | data[2 + i]
    # Section 5.2: the length has the minimal number of bytes, and the top bit of the 64-bit form is 0.
    if payload < 126 or (extended == 8 and (payload < 65_536 or payload >> 63)):
        return -<int>FAULT_LENGTH
    out.payload = payload
    return 2 + extended


cdef size_t encode_header(uint8_t* out, uint8_t opcode, uint64_t payload, uint32_t key) noexcept nogil:
    """Write the header of a final, masked frame; return its length, 6 to 14."""
    cdef size_t size = 2
    cdef int i
    out[0] = 0x80 | opcode
    if payload < 126:
        out[1] = 0x80 | <uint8_t>payload
    elif payload < 65_536:
        out[1] = 0x80 | 126
        out[2] = <uint8_t>(payload >> 8)
        out[3] = <uint8_t>payload
        size = 4
    else:
        out[1] = 0x80 | 127
        for i in range(8):
            out[2 + i] = <uint8_t>(payload >> (56 - 8 * i))
        size = 10
    memcpy(out + size, &key, 4)
    return size + 4


cdef void mask(uint8_t* data, size_t size, uint32_t key) noexcept nogil:
    """Mask a payload in place, eight bytes at a time. memcpy, because data need not be aligned."""
    cdef uint64_t wide = (<uint64_t>key << 32) | key
    cdef uint64_t word
    cdef uint8_t* bytes_of_key = <uint8_t*>&key
    cdef size_t i = 0
    while i + 8 <= size:
        memcpy(&word, data + i, 8)
        word ^= wide
        memcpy(data + i, &word, 8)
        i += 8
    while i < size:
        data[i] ^= bytes_of_key[i & 3]
        i += 1


cdef bint is_close_code(unsigned int code) noexcept nogil:
    """Whether a Close frame may have this code. Source: RFC 6455, 7.4, and IANA's registry."""
    if code < 1000 or code > 4999:
        return False
    return code >= 3000 or code <= 1003 or 1007 <= code <= 1014
