"""Writes to sockets: at once, and later for the bytes that a socket does not accept.

Only such bytes are kept, and only then EPOLLOUT is registered. Functions return 0, or -1 if the connection
ended: the caller must not use it any more.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from loadtest.engine.core cimport (
    FLAG_CLOSE_SENT,
    FLAG_SERVER_ENDED,
    FLAG_SLOW,
    FLAG_WANT_OUT,
    STATE_OPEN,
)
from loadtest.engine.digest cimport draw
from loadtest.engine.frames cimport HEADER_MOST, OP_CLOSE, encode_header, mask
from loadtest.engine.linux cimport (
    EPOLL_CTL_MOD,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    c_send,
    epoll_ctl,
    epoll_event,
)
from loadtest.engine.table cimport append_block, free_block, lose, slot_of

cdef enum:
    # Limit of unsent pongs while a server does not read. Beyond it pongs are dropped and counted (RFC 6455
    # 5.5.3 only requires an answer to the latest ping).
    _PONG_BACKLOG_BYTES = 65_536


cdef int set_interest(core_t* core, conn_t* conn) noexcept nogil:
    """Register the events of a connection: input unless it is slow, output room if bytes are kept."""
    cdef epoll_event event
    event.data.u64 = 0
    event.data.u32 = slot_of(core, conn)
    event.events = EPOLLIN
    if conn.flags & FLAG_SLOW and conn.state == STATE_OPEN:
        # Level-triggered: without this, a FIN that was seen would be reported in every poll.
        event.events = 0 if conn.flags & FLAG_SERVER_ENDED or conn.slow_bytes_per_s else EPOLLRDHUP
    if conn.flags & FLAG_WANT_OUT:
        event.events |= EPOLLOUT
    return epoll_ctl(core.epoll_fd, EPOLL_CTL_MOD, conn.fd, &event)


cdef ssize_t _send_some(core_t* core, conn_t* conn, const uint8_t* data, size_t size) noexcept nogil:
    """Return how many bytes the socket accepted, 0 if it accepts none now, or a negated errno."""
    cdef ssize_t taken = c_send(conn.fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT)
    core.counters.send_calls += 1
    if taken >= 0:
        core.counters.bytes_sent += <uint64_t>taken
        return taken
    if errno == EAGAIN or errno == EINTR:
        core.counters.send_blocked += 1
        return 0
    return -errno


cdef int write_bytes(core_t* core, conn_t* conn, const uint8_t* data, size_t size) noexcept nogil:
    """Send bytes after the unsent ones, and keep those that the socket does not accept."""
    cdef ssize_t taken = 0
    if conn.output == NULL:
        taken = _send_some(core, conn, data, size)
        if taken < 0:
            lose(core, conn, <int>-taken)
            return -1
        if <size_t>taken == size:
            return 0
    if append_block(core, &conn.output, data + taken, size - taken) < 0:
        lose(core, conn, ENOMEM)
        return -1
    if not conn.flags & FLAG_WANT_OUT:
        conn.flags |= FLAG_WANT_OUT
        set_interest(core, conn)
    return 0


cdef int flush(core_t* core, conn_t* conn) noexcept nogil:
    """Send the kept bytes, because the socket has room; deregister EPOLLOUT when all are sent."""
    cdef ssize_t taken
    cdef size_t size
    if conn.output != NULL:
        size = conn.output.end - conn.output.start
        taken = _send_some(core, conn, conn.output.data + conn.output.start, size)
        if taken < 0:
            lose(core, conn, <int>-taken)
            return -1
        conn.output.start += <uint32_t>taken
        if conn.output.start < conn.output.end:
            return 0
        free_block(core, &conn.output)
    conn.flags &= <uint16_t>~FLAG_WANT_OUT
    set_interest(core, conn)
    return 0


cdef int send_control(
    core_t* core, conn_t* conn, uint8_t opcode, const uint8_t* data, size_t size
) noexcept nogil:
    """Send one control frame of at most 125 bytes; a pong may be dropped instead."""
    cdef uint8_t frame[HEADER_MOST + 128]
    cdef uint32_t key = <uint32_t>draw(&core.random)
    cdef size_t header
    if opcode != OP_CLOSE and conn.output != NULL:
        if conn.output.end - conn.output.start > _PONG_BACKLOG_BYTES:
            core.counters.pongs_dropped += 1
            return 0
    header = encode_header(frame, opcode, size, key)
    memcpy(frame + header, data, size)
    mask(frame + header, size, key)
    return write_bytes(core, conn, frame, header + size)


cdef int send_close(core_t* core, conn_t* conn, unsigned int code) noexcept nogil:
    """Send a Close frame; code 0 means a Close without a code."""
    cdef uint8_t body[2]
    body[0] = <uint8_t>(code >> 8)
    body[1] = <uint8_t>code
    core.counters.closes_sent += 1
    conn.flags |= FLAG_CLOSE_SENT
    return send_control(core, conn, OP_CLOSE, body, 2 if code else 0)
