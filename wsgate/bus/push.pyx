"""The compiled RESP2 parser of a bus connection: received bytes in, replies as tuples out.

It parses the part of RESP2 that a server sends on the gateway's connections: arrays of at most four bulk
strings and integers, simple strings, errors, integers and bulk strings. Everything else is a broken stream
and ends the connection. The parser accepts a count or a length only within its limit, and allocates nothing
before this check (S26). A payload over the limit is skipped as it arrives; the publication is reported
without its payload.

With a backlog (backlog.pyx), publications are appended to it. All other replies are returned at once, however
many publications are queued. The parser keeps only the bytes of replies that are not complete or not taken
yet; `buffered` is their cost.

0.10 us for a publication of 150 bytes; `hiredis.Reader` takes 0.22 us and trusts any count:
python -m loadtest bus_subscriber

Source: redis.io/docs/latest/develop/reference/protocol-spec, RESP2.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memmove

from wsgate.bus.backlog cimport Backlog

from wsgate.errors import WsgateError

__all__ = [
    "CONTROL", "ERROR", "MESSAGE", "PONG", "REPLY", "REPLY_LIMIT_BYTES", "SUBSCRIBED", "TOO_LARGE",
    "UNSUBSCRIBED", "PushError", "PushReader",
]

MESSAGE = 1
CONTROL = 2
SUBSCRIBED = 3
UNSUBSCRIBED = 4
PONG = 5
REPLY = 6
ERROR = 7
TOO_LARGE = 8
REPLY_LIMIT_BYTES = BULK_LIMIT

cdef enum:
    KIND_MESSAGE = 1
    KIND_CONTROL = 2
    KIND_SUBSCRIBED = 3
    KIND_UNSUBSCRIBED = 4
    KIND_PONG = 5
    KIND_REPLY = 6
    KIND_ERROR = 7
    KIND_TOO_LARGE = 8
    ELEMENTS_MAX = 4
    LINE_LIMIT = 1024            # bytes of a simple string or an error
    BULK_LIMIT = 16 * 1024       # bytes of a bulk string that is a whole reply; push.pyi repeats it
    NUMBER_LIMIT = 20            # digits and sign of a length or an integer
    NAME_LIMIT = 2048            # bytes of a channel name with its prefix
    SKIP_LIMIT = 512 * 1024 * 1024   # bytes of a payload that is skipped: Redis's own limit of a string
    FIRST_CAPACITY = 4096        # bytes of the first buffer

cdef enum Outcome:
    INCOMPLETE = 0
    COMPLETE = 1
    BROKEN = 2

# The kind of an element of an array. Only a PIECE_BULK has bytes: every function below checks the kind before
# it reads `data` or `size`, so that no element of another kind is ever taken for a string.
cdef enum PieceKind:
    PIECE_NULL = 0
    PIECE_INTEGER = 1            # its value is never used, and therefore not kept
    PIECE_BULK = 2

ctypedef struct Piece:
    PieceKind kind
    const char *data             # NULL unless the kind is PIECE_BULK
    int64_t size                 # 0 unless the kind is PIECE_BULK


class PushError(WsgateError):
    """The received bytes are no valid RESP2 for this connection, which can no longer be used."""


cdef class PushReader:
    """The parser of one bus connection; see push.pyi. Pieces point into its buffer, until the next `feed`."""

    cdef char *buffer
    cdef Py_ssize_t capacity, start, end
    cdef int64_t skip            # bytes of an oversized payload still to come, with its line end
    cdef int64_t limit, count
    cdef bytes prefix
    cdef Backlog backlog         # the argument of the call of `take` that is running, else None

    def __init__(self, bytes prefix not None, int64_t limit_bytes):
        self.prefix = prefix
        self.limit = limit_bytes

    def __dealloc__(self):
        free(self.buffer)

    @property
    def buffered(self):
        """The size of the parser's buffer, in bytes."""
        return self.capacity

    @property
    def publications(self):
        """The number of publications to channels parsed until now."""
        return self.count

    def limit_payload(self, int64_t limit_bytes):
        """Change the largest payload, in bytes, for publications that are parsed from now on."""
        self.limit = limit_bytes

    def feed(self, data):
        """Append received bytes to the buffer, without the part that belongs to a skipped payload."""
        cdef const unsigned char[::1] view = data
        cdef Py_ssize_t size = view.shape[0], skipped
        cdef const char *source
        if size == 0:
            return
        source = <const char *>&view[0]
        if self.skip and self.start == self.end:
            # Nothing is buffered before the skipped payload: drop its bytes here and never copy them.
            skipped = <Py_ssize_t>min(self.skip, <int64_t>size)
            self.skip -= skipped
            source += skipped
            size -= skipped
        self.reserve(size)
        memcpy(self.buffer + self.end, source, size)
        self.end += size

    cdef int reserve(self, Py_ssize_t size) except -1:
        """Make room for `size` more bytes: move the unparsed bytes to the front, or get a larger buffer.

        Bytes are moved only if at least as many bytes before them are parsed, so moving costs O(1) for each
        byte.
        """
        cdef Py_ssize_t left = self.end - self.start, capacity
        cdef char *fresh
        if self.capacity - self.end >= size:
            return 0
        if self.capacity - left >= size and self.start >= left:
            memmove(self.buffer, self.buffer + self.start, left)
        else:
            capacity = max(self.capacity, <Py_ssize_t>FIRST_CAPACITY)
            while capacity - left < size:
                capacity *= 2
            fresh = <char *>malloc(capacity)
            if fresh == NULL:
                raise MemoryError
            if left:                          # without bytes the buffer may be NULL, which memcpy forbids
                memcpy(fresh, self.buffer + self.start, left)
            free(self.buffer)
            self.buffer = fresh
            self.capacity = capacity
        self.start, self.end = 0, left
        return 0

    def take(self, Py_ssize_t most, Backlog backlog=None):
        """Parse and return at most `most` complete replies in their order; see push.pyi."""
        cdef list taken = []
        cdef Outcome outcome
        self.backlog = backlog
        while len(taken) < most:
            if self.skip:
                self.drop_skipped()
                if self.skip:
                    break
            if self.start == self.end:
                break
            outcome = self.take_one(taken)
            if outcome == BROKEN:
                raise PushError("the bus sent bytes that are not valid RESP2")
            if outcome == INCOMPLETE:
                break
        self.backlog = None
        if self.start == self.end:
            self.start = self.end = 0
            if self.capacity > 16 * FIRST_CAPACITY:   # one large reply must not leave a large buffer behind
                free(self.buffer)
                self.buffer = NULL
                self.capacity = 0
        return taken

    cdef void drop_skipped(self) noexcept:
        """Drop buffered bytes that belong to a skipped payload."""
        cdef Py_ssize_t dropped = <Py_ssize_t>min(self.skip, <int64_t>(self.end - self.start))
        self.start += dropped
        self.skip -= dropped

    cdef Outcome take_one(self, list taken) except *:
        """Parse the next reply and append it to `taken`; leave `start` unchanged unless it is complete."""
        cdef const char *at = self.buffer + self.start
        cdef const char *end = self.buffer + self.end
        cdef const char *line
        cdef int64_t length = 0
        cdef Outcome outcome
        if at[0] == c'*':
            return self.take_array(taken, at, end)
        if at[0] == c'$':
            outcome = read_number(&at, end, &length)
            if outcome != COMPLETE:
                return outcome
            if length > BULK_LIMIT or length < -1:
                return BROKEN
            if length == -1:
                taken.append((KIND_REPLY, b"", None))
            else:
                if end - at < length + 2:
                    return INCOMPLETE
                if at[length] != c'\r' or at[length + 1] != c'\n':
                    return BROKEN
                taken.append((KIND_REPLY, PyBytes_FromStringAndSize(at, length), None))
                at += length + 2
            self.start = at - self.buffer
            return COMPLETE
        if at[0] == c':':
            line = at + 1
            outcome = read_number(&at, end, &length)
            if outcome != COMPLETE:
                return outcome
            taken.append((KIND_REPLY, PyBytes_FromStringAndSize(line, at - 2 - line), None))
            self.start = at - self.buffer
            return COMPLETE
        if at[0] not in (c'+', c'-'):
            return BROKEN
        line = <const char *>memchr(at, c'\r', min(end - at, <Py_ssize_t>LINE_LIMIT))
        if line == NULL:
            return BROKEN if end - at >= LINE_LIMIT else INCOMPLETE
        if end - line < 2:
            return INCOMPLETE
        if line[1] != c'\n':
            return BROKEN
        taken.append((
            KIND_ERROR if at[0] == c'-' else KIND_REPLY, PyBytes_FromStringAndSize(at + 1, line - at - 1), None,
        ))
        self.start = line + 2 - self.buffer
        return COMPLETE

    cdef Outcome take_array(self, list taken, const char *at, const char *end) except *:
        """Parse an array into pieces and append its reply; a payload over the limit starts a skip."""
        cdef Piece pieces[ELEMENTS_MAX]
        cdef int64_t count = 0, length = 0
        cdef int place
        cdef Outcome outcome = read_number(&at, end, &count)
        if outcome != COMPLETE:
            return outcome
        if not 1 <= count <= ELEMENTS_MAX:
            return BROKEN
        for place in range(<int>count):
            pieces[place].kind = PIECE_NULL
            pieces[place].data = NULL
            pieces[place].size = 0
            if at == end:
                return INCOMPLETE
            if at[0] == c':':
                outcome = read_number(&at, end, &length)
                if outcome != COMPLETE:
                    return outcome
                pieces[place].kind = PIECE_INTEGER
                continue
            if at[0] != c'$':
                return BROKEN
            outcome = read_number(&at, end, &length)
            if outcome != COMPLETE:
                return outcome
            if length == -1:
                continue
            if length < 0:
                return BROKEN
            # The third element of a publication is its payload: only this one may be long, and may be
            # skipped.
            if length > (self.limit if place == 2 else <int64_t>NAME_LIMIT):
                if place != 2 or length > SKIP_LIMIT or not is_message(pieces, <int>count):
                    return BROKEN
                self.start = at - self.buffer
                self.skip = length + 2
                if self.is_ours(&pieces[1]):
                    self.add_publication(taken, &pieces[1], NULL)
                else:
                    taken.append((KIND_CONTROL, self.strip(&pieces[1]), b""))
                return COMPLETE
            if end - at < length + 2:
                return INCOMPLETE
            if at[length] != c'\r' or at[length + 1] != c'\n':
                return BROKEN
            pieces[place].kind = PIECE_BULK
            pieces[place].data = at
            pieces[place].size = length
            at += length + 2
        outcome = self.append(taken, pieces, <int>count)
        if outcome == COMPLETE:
            self.start = at - self.buffer
        return outcome

    cdef Outcome append(self, list taken, Piece *pieces, int count) except *:
        """Convert an array of `count` complete elements into a publication, a confirmation or a pong."""
        cdef int kind = KIND_REPLY
        if is_message(pieces, count):
            if pieces[2].kind != PIECE_BULK:
                return BROKEN
            if self.is_ours(&pieces[1]):
                self.add_publication(taken, &pieces[1], &pieces[2])
            else:
                taken.append((
                    KIND_CONTROL, self.strip(&pieces[1]), PyBytes_FromStringAndSize(pieces[2].data, pieces[2].size),
                ))
            return COMPLETE
        if count == 3 and is_kind(&pieces[0], b"subscribe"):
            if pieces[1].kind != PIECE_BULK or pieces[2].kind != PIECE_INTEGER:
                return BROKEN
            # The prefix alone decides: a client may give a channel the text of a control name.
            kind = KIND_SUBSCRIBED if self.is_ours(&pieces[1]) else KIND_CONTROL
        elif count == 3 and is_kind(&pieces[0], b"unsubscribe"):
            # The server replies with a null name to UNSUBSCRIBE when there is no subscription.
            if pieces[1].kind == PIECE_INTEGER or pieces[2].kind != PIECE_INTEGER:
                return BROKEN
            kind = KIND_UNSUBSCRIBED
        elif count == 2 and is_word(&pieces[0], b"pong") and pieces[1].kind == PIECE_BULK:
            kind = KIND_PONG
        else:
            return BROKEN
        taken.append((kind, self.strip(&pieces[1]), None))
        return COMPLETE

    cdef int add_publication(self, list taken, const Piece *name, const Piece *payload) except -1:
        """Count a publication, and append it to the backlog or, without one, to the replies.

        A `payload` of NULL stands for a payload over the limit.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.prefix)
        self.count += 1
        if self.backlog is not None and payload == NULL:
            self.backlog.append(name.data + size, name.size - size, NULL, -1)
        elif self.backlog is not None:
            self.backlog.append(name.data + size, name.size - size, payload.data, payload.size)
        elif payload == NULL:
            taken.append((KIND_TOO_LARGE, self.strip(name), None))
        else:
            taken.append((KIND_MESSAGE, self.strip(name), PyBytes_FromStringAndSize(payload.data, payload.size)))
        return 0

    cdef bint is_ours(self, const Piece *name) noexcept:
        """Whether an element is the name of a channel: a string that starts with the prefix and is longer."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.prefix)
        return (
            name.kind == PIECE_BULK
            and name.size > size
            and memcmp(name.data, PyBytes_AS_STRING(self.prefix), size) == 0
        )

    cdef bytes strip(self, const Piece *name):
        """Copy a channel name without the prefix, or any other name whole; b"" for a null or an integer."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.prefix) if self.is_ours(name) else 0
        if name.kind != PIECE_BULK:
            return b""
        return PyBytes_FromStringAndSize(name.data + size, name.size - size)


cdef bint is_message(const Piece *pieces, int count) noexcept:
    """Whether an array is a publication, by the first two of three elements; the third may be incomplete."""
    return count == 3 and is_kind(&pieces[0], b"message") and pieces[1].kind == PIECE_BULK


cdef bint is_word(const Piece *piece, const char *word) noexcept:
    """Whether an element is a bulk string that equals this word exactly."""
    cdef int64_t place = 0
    if piece.kind != PIECE_BULK:
        return False
    while place < piece.size and word[place] and piece.data[place] == word[place]:
        place += 1
    return place == piece.size and not word[place]


cdef bint is_kind(const Piece *piece, const char *word) noexcept:
    """Whether an element is this word, or the word with the `s` of sharded channels before it."""
    cdef Piece rest
    if is_word(piece, word):
        return True
    if piece.kind != PIECE_BULK or piece.size < 1 or piece.data[0] != c's':
        return False
    rest.kind = PIECE_BULK
    rest.data = piece.data + 1
    rest.size = piece.size - 1
    return is_word(&rest, word)


cdef Outcome read_number(const char **at, const char *end, int64_t *number) noexcept:
    """Parse the number behind a type byte; move `at` behind its line end only when the line is complete."""
    cdef const char *cursor = at[0] + 1
    cdef int64_t value = 0
    cdef bint is_negative = False
    cdef int digits = 0
    if cursor < end and cursor[0] == c'-':
        is_negative = True
        cursor += 1
    while cursor < end and c'0' <= cursor[0] <= c'9':
        digits += 1
        if digits >= NUMBER_LIMIT - 1:      # at most 18 digits are accepted, which cannot overflow
            return BROKEN
        value = value * 10 + (cursor[0] - c'0')
        cursor += 1
    if cursor == end:
        return INCOMPLETE
    if cursor[0] != c'\r' or not digits:
        return BROKEN
    if end - cursor < 2:
        return INCOMPLETE
    if cursor[1] != c'\n':
        return BROKEN
    number[0] = -value if is_negative else value
    at[0] = cursor + 2
    return COMPLETE
