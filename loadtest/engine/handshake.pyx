"""Checks the response to the opening handshake, on pointer and length. Source: RFC 6455, 4.1."""

from libc.string cimport memchr, memcmp

from loadtest.engine.core cimport (
    FAIL_BAD_ACCEPT,
    FAIL_BAD_EXTENSION,
    FAIL_BAD_HEAD,
    FAIL_BAD_SUBPROTOCOL,
    FAIL_BAD_UPGRADE,
    FAIL_NONE,
)
from loadtest.engine.digest cimport ACCEPT_BYTES
from loadtest.engine.linux cimport memmem


cdef int head_end(const uint8_t* data, size_t size) noexcept nogil:
    """Return the length of the head with its empty line; 0 while that has not arrived."""
    cdef const uint8_t* at = <const uint8_t*>memmem(data, size, "\r\n\r\n", 4)
    return 0 if at == NULL else <int>(at - data) + 4


cdef int parse_status(const uint8_t* head, size_t size) noexcept nogil:
    """Return the status of a response head, 100 to 999; -1 if it is not HTTP/1.x."""
    cdef int i
    cdef int status = 0
    if size < 13 or memcmp(head, "HTTP/1.", 7) != 0 or head[8] != c' ':
        return -1
    if head[12] != c' ' and head[12] != c'\r':
        return -1
    for i in range(9, 12):
        if not c'0' <= head[i] <= c'9':
            return -1
        status = status * 10 + head[i] - c'0'
    return status if status >= 100 else -1


cdef inline uint8_t _lower(uint8_t letter) noexcept nogil:
    return letter + 32 if c'A' <= letter <= c'Z' else letter


cdef bint _same(const uint8_t* text, size_t size, const char* word, size_t word_size) noexcept nogil:
    """Compare a text with a lower-case word, ignoring the case of letters."""
    cdef size_t i
    if size != word_size:
        return False
    for i in range(size):
        if _lower(text[i]) != <uint8_t>word[i]:
            return False
    return True


cdef bint _lists(
    const uint8_t* text, size_t size, const uint8_t* word, size_t word_size, bint is_any_case
) noexcept nogil:
    """Whether a comma-separated list has this word as an element."""
    cdef size_t start = 0, stop, next_start
    while start < size:
        stop = start
        while stop < size and text[stop] != c',':
            stop += 1
        next_start = stop + 1
        while start < stop and (text[start] == c' ' or text[start] == c'\t'):
            start += 1
        while stop > start and (text[stop - 1] == c' ' or text[stop - 1] == c'\t'):
            stop -= 1
        if is_any_case:
            if _same(text + start, stop - start, <const char*>word, word_size):
                return True
        elif stop - start == word_size and memcmp(text + start, word, word_size) == 0:
            return True
        start = next_start
    return False


cdef failure_t judge_upgrade(
    const uint8_t* head, size_t size, const uint8_t* accept, const uint8_t* offered, uint32_t offered_size
) noexcept nogil:
    """Check the header fields of a 101 response, and return the failure or FAIL_NONE.

    Args:
        head: The whole head with its empty line.
        size: Its length.
        accept: The 28 characters that Sec-WebSocket-Accept must be.
        offered: The Sec-WebSocket-Protocol that was sent, or NULL.
        offered_size: Its length.
    """
    cdef const uint8_t* end = head + size - 2
    cdef const uint8_t* line = <const uint8_t*>memchr(head, c'\n', size) + 1
    cdef const uint8_t* stop
    cdef const uint8_t* colon
    cdef size_t name, length
    cdef int upgrades = 0, connections = 0, accepts = 0, protocols = 0
    while line < end:
        stop = <const uint8_t*>memchr(line, c'\n', end - line)
        colon = <const uint8_t*>memchr(line, c':', end - line)
        if stop == NULL or (stop - 1)[0] != c'\r' or colon == NULL or colon >= stop or colon == line:
            return FAIL_BAD_HEAD
        name = colon - line
        colon += 1
        stop -= 1
        while colon < stop and (colon[0] == c' ' or colon[0] == c'\t'):
            colon += 1
        while stop > colon and ((stop - 1)[0] == c' ' or (stop - 1)[0] == c'\t'):
            stop -= 1
        length = stop - colon
        if _same(line, name, "upgrade", 7):
            upgrades += 1 if _same(colon, length, "websocket", 9) else 100
        elif _same(line, name, "connection", 10):
            connections += _lists(colon, length, <const uint8_t*>"upgrade", 7, True)
        elif _same(line, name, "sec-websocket-accept", 20):
            accepts += 1 if length == ACCEPT_BYTES and memcmp(colon, accept, ACCEPT_BYTES) == 0 else 100
        elif _same(line, name, "sec-websocket-extensions", 24):
            # The engine offers none, so the server must not choose one.
            return FAIL_BAD_EXTENSION
        elif _same(line, name, "sec-websocket-protocol", 22):
            protocols += 1
            if offered == NULL or not length or not _lists(offered, offered_size, colon, length, False):
                return FAIL_BAD_SUBPROTOCOL
        line = <const uint8_t*>memchr(colon + length, c'\n', end - colon - length) + 1
    if upgrades != 1 or connections < 1:
        return FAIL_BAD_UPGRADE
    if protocols > 1:
        return FAIL_BAD_SUBPROTOCOL
    return FAIL_NONE if accepts == 1 else FAIL_BAD_ACCEPT
