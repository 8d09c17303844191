"""Collects the request head of a new connection, up to a limit of bytes, and reports it when it is whole.

Searches for the empty line only; the head itself is checked in wsgate/handshake.py. If the settings say so, a
trusted proxy must send a PROXY header first, under the same deadline. The client's address in it is checked
here, as the gate checks the address of a peer.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memmove

from wsgate.reactor.addresses cimport address_claim, address_group
from wsgate.reactor.closing cimport end_with, release
from wsgate.reactor.frames cimport frame_raw
from wsgate.reactor.memory cimport buffer_append, buffer_give
from wsgate.reactor.partial cimport partial_close, partial_open, partial_stash
from wsgate.reactor.proxy cimport proxy_header
from wsgate.reactor.socket_io cimport SOCKET_AGAIN, SOCKET_GONE, socket_interest, socket_receive
from wsgate.reactor.structs cimport (
    AWAITS_PROXY, BAD_PROXY_HEADER, Connection, Core, EVENT_OPEN, Frame, HEAD_TOO_LARGE, KIND_PARTIAL, OPENED,
    OPENS, OUT_OF_MEMORY, PARTIAL_BYTES, PEER_GONE, PEER_RESET, Pass, RECEIVE_BYTES, STATE_DECIDING, TICK_MS,
)
from wsgate.reactor.table cimport at, enter, handle_of, heads_push, heads_remove
from wsgate.reactor.wheel cimport wheel_arm


cdef int64_t head_end(const uint8_t *data, uint64_t size, uint64_t start) noexcept nogil:
    """Return the size of a request head with its empty line, searching from `start`; 0 if it is not whole.

    A line feed without a carriage return also ends the search: such a head is invalid whatever follows (RFC
    9112 section 2.2), and the handshake rejects it at once instead of at the deadline.
    """
    cdef uint64_t index
    for index in range(start, size):
        if data[index] == 10:
            if index == 0 or data[index - 1] != 13:
                return index + 1
            if index >= 3 and data[index - 2] == 10 and data[index - 3] == 13:
                return index + 1
    return 0


cdef void await_more(Core *core, uint32_t slot) noexcept nogil:
    """Wait for more input of an incomplete head: add the socket to the epoll set."""
    if socket_interest(core, slot, True, False) < 0:
        release(core, slot, OUT_OF_MEMORY, True)


cdef int64_t take_proxy_header(Core *core, uint32_t slot, uint8_t *data, uint64_t length) noexcept nogil:
    """Parse the PROXY header before a head and count the connection for the client's address in it.

    Returns:
        The bytes of the PROXY header; 0 if it is not whole; -1 if the connection was ended because of it.
    """
    cdef Connection *c = at(core, slot)
    cdef uint8_t address[16]
    cdef bint is_named = False
    cdef int reason = 0
    cdef Frame *answer = NULL
    cdef int64_t size = proxy_header(data, length, address, &is_named)
    if size < 0:
        end_with(core, slot, NULL, BAD_PROXY_HEADER)
        return -1
    if size == 0:
        return 0
    c.variant = 0
    if is_named:
        reason = address_claim(core, slot, address)
    if reason:
        if core.gate.too_many.length:
            answer = frame_raw(core, core.gate.too_many.data, core.gate.too_many.length)
        end_with(core, slot, answer, reason)
        return -1
    if is_named:
        # Move the connection to the group of the client's address. Otherwise all clients of one proxy would
        # be in one group, and only they would displace each other's heads.
        heads_remove(core, slot)
        heads_push(core, slot, address_group(core, address))
    return size


cdef int turn_head(Core *core, uint32_t slot, Pass *used, list events) except -1:
    """Receive input of a new connection once, and append its OPEN event if the request head is whole.

    Ends the connection if the head exceeds its limit, or if its bytes exceed the limit of unfinished input.
    """
    cdef Connection *c = at(core, slot)
    cdef uint8_t *data = core.receive_buffer
    cdef uint64_t length, start = 0
    cdef int64_t end, skip = 1, size = socket_receive(core, c, data, RECEIVE_BYTES)
    cdef Frame *answer
    if size == SOCKET_AGAIN:
        await_more(core, slot)
        return 0
    if size <= 0:
        release(core, slot, PEER_RESET if size == SOCKET_GONE else PEER_GONE, False)
        return 0
    c.seen_ms = <uint32_t>core.clock_ms
    length = size
    if c.input != NULL:
        start = c.input.scanned
        if buffer_append(core, &c.input.message, data, size, 0, KIND_PARTIAL) < 0:
            release(core, slot, PARTIAL_BYTES, False)
            return 0
        data = c.input.message.data
        length = c.input.message.length
    if c.variant == AWAITS_PROXY:
        skip = take_proxy_header(core, slot, data, length)
        if skip < 0:
            return 0
        if skip:
            length -= skip
            start = 0
            if c.input != NULL:
                memmove(data, data + skip, length)
                c.input.message.length = <uint32_t>length
            else:
                data += skip
            if length == 0:
                await_more(core, slot)
                return 0
    end = head_end(data, length, start) if skip else 0
    if end > core.limits.head_limit_bytes or (end == 0 and length >= core.limits.head_limit_bytes):
        answer = core.head_too_large
        if answer != NULL:
            answer.references += 1
        end_with(core, slot, answer, HEAD_TOO_LARGE)
        return 0
    if end == 0:
        if c.input == NULL:
            if partial_open(core, c) == NULL or buffer_append(
                core, &c.input.message, data, length, 0, KIND_PARTIAL
            ) < 0:
                release(core, slot, PARTIAL_BYTES, False)
                return 0
        c.input.scanned = <uint32_t>length if skip else 0
        await_more(core, slot)
        return 0
    # Bytes behind the head are frames. They wait until after the 101 and are never read as HTTP.
    events.append((EVENT_OPEN, handle_of(c, slot), PyBytes_FromStringAndSize(<char *>data, end)))
    used.opens += 1
    core.counters[<int>OPENS] += 1
    c.flags |= OPENED
    heads_remove(core, slot)
    enter(core, c, STATE_DECIDING)
    c.deadline_ms = core.clock_ms + core.limits.upgrade_timeout_ms
    # `due` in deadlines.pyx then watches the socket
    wheel_arm(core, slot, min(c.deadline_ms, core.clock_ms + TICK_MS))
    if partial_stash(core, c, data + end, <uint32_t>(length - end)) < 0:
        release(core, slot, PARTIAL_BYTES, False)
        return 0
    if c.input != NULL:
        buffer_give(core, &c.input.message, KIND_PARTIAL)
        c.input.scanned = 0
        if c.input.backlog.length == 0:
            partial_close(core, c)
    return 0
