"""The stamp that identifies a message: its stream, its sequence number, and the time when it was due.

48 ASCII characters: WSGLOAD1, stream (8 hex digits), sequence (16), intended ns of CLOCK_MONOTONIC (16). It
is text and not packed bytes, so that text frames and JSON strings can carry it. It is searched and has no
fixed offset, so that a server may add text around it.
"""

from libc.string cimport memcmp, memcpy

from loadtest.engine.linux cimport memmem

__all__ = ["ECHO_STREAM_BIT", "STAMP_BYTES", "STAMP_MAGIC", "parse_stamp", "stamp"]

STAMP_MAGIC = b"WSGLOAD1"
STAMP_BYTES = STAMP_SIZE
# Not ECHO_BIT: as a Python value a C enum is a signed int.
ECHO_STREAM_BIT = 1 << 31

cdef const char* _MAGIC = "WSGLOAD1"
cdef const char* _DIGITS = "0123456789abcdef"


cdef inline void _write_hex(uint8_t* out, uint64_t value, int digits) noexcept nogil:
    cdef int i
    for i in range(digits - 1, -1, -1):
        out[i] = _DIGITS[value & 15]
        value >>= 4


cdef inline bint _read_hex(const uint8_t* data, int digits, uint64_t* out) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    cdef uint8_t digit
    for i in range(digits):
        digit = data[i]
        if c'0' <= digit <= c'9':
            digit -= c'0'
        elif c'a' <= digit <= c'f':
            digit -= c'a' - 10
        else:
            return False
        value = (value << 4) | digit
    out[0] = value
    return True


cdef void write_stamp(uint8_t* out, const stamp_t* mark) noexcept nogil:
    """Write the 48 bytes of a stamp."""
    memcpy(out, _MAGIC, 8)
    _write_hex(out + 8, mark.stream, 8)
    _write_hex(out + 16, mark.sequence, 16)
    _write_hex(out + 32, mark.intended_ns, 16)


cdef bint find_stamp(const uint8_t* data, size_t size, stamp_t* out) noexcept nogil:
    """Find the first complete stamp. O(size); the usual place, offset 0, is checked first."""
    cdef const uint8_t* end = data + size
    cdef const uint8_t* at = data
    cdef uint64_t stream = 0
    while end - at >= STAMP_SIZE:
        if memcmp(at, _MAGIC, 8) != 0:
            at = <const uint8_t*>memmem(at, end - at, _MAGIC, 8)
            if at == NULL or end - at < STAMP_SIZE:
                return False
        if (
            _read_hex(at + 8, 8, &stream)
            and _read_hex(at + 16, 16, &out.sequence)
            and _read_hex(at + 32, 16, &out.intended_ns)
        ):
            out.stream = <uint32_t>stream
            return True
        at += 8
    return False


def stamp(stream, sequence, intended_ns, size=STAMP_SIZE):
    """Make a stamped payload of ASCII characters."""
    cdef uint8_t text[STAMP_SIZE]
    cdef stamp_t mark
    if not 0 <= stream < ECHO_STREAM_BIT:
        raise ValueError("stream must be 0 to 2**31-1")
    if not 0 <= sequence < 2**63 or not 0 <= intended_ns < 2**63:
        raise ValueError("sequence and intended_ns must be 0 to 2**63-1")
    if size < STAMP_SIZE:
        raise ValueError("size must be >= 48")
    mark.stream = stream
    mark.sequence = sequence
    mark.intended_ns = intended_ns
    write_stamp(text, &mark)
    return (<char*>text)[:STAMP_SIZE].ljust(size, b".")


def parse_stamp(payload):
    """Return (stream, sequence, intended_ns) of the first stamp in a payload; None without one."""
    cdef const uint8_t[::1] view = payload
    cdef stamp_t mark
    if view.shape[0] < STAMP_SIZE or not find_stamp(&view[0], view.shape[0], &mark):
        return None
    return mark.stream, mark.sequence, mark.intended_ns
