"""Reads from sockets: one recv into the shared buffer, then decodes frames and checks messages.

A frame or message that is complete in the buffer is processed in place. Otherwise the connection borrows a
partial buffer for the parts that must be kept: an incomplete header, an incomplete control payload, and the
beginning of the message up to the stamp window. Payload beyond the window is counted and dropped. Between
messages nothing is kept.

Functions that return int return -1 if the connection ended.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy

from loadtest.engine.connecting cimport feed_head
from loadtest.engine.core cimport (
    FLAG_CLOSE_RECEIVED,
    FLAG_CLOSE_SENT,
    FLAG_ECHO,
    FLAG_FRAGMENTED,
    NO_FRAME,
    STATE_CLOSING,
    STATE_HANDSHAKE,
    STATE_OPEN,
    partial_t,
)
from loadtest.engine.echoing cimport on_answer, on_echo
from loadtest.engine.frames cimport (
    FAULT_CLOSE_PAYLOAD,
    FAULT_CONTINUATION,
    FAULT_INTERLEAVED,
    OP_CLOSE,
    OP_CONTINUATION,
    OP_PONG,
    OP_TEXT,
    decode_header,
    fault_t,
    header_t,
    is_close_code,
)
from loadtest.engine.histogram cimport hist_record
from loadtest.engine.linux cimport MSG_DONTWAIT, c_recv, monotonic_ns
from loadtest.engine.sending cimport send_close, send_control, set_interest
from loadtest.engine.sequences cimport DUPLICATE, judge
from loadtest.engine.stamps cimport ECHO_BIT, find_stamp, stamp_t
from loadtest.engine.table cimport borrow_partial, end, lose, return_partial, set_state


cdef int receive(core_t* core, conn_t* conn, size_t most) noexcept nogil:
    """Read once from a connection, at most `most` bytes.

    The rest keeps the socket readable, so that no connection can occupy the loop.
    """
    cdef ssize_t used = 0
    cdef uint64_t now
    cdef ssize_t size = c_recv(conn.fd, core.read_buffer, min(most, core.read_bytes), MSG_DONTWAIT)
    core.counters.receive_calls += 1
    if size < 0:
        if errno == EAGAIN or errno == EINTR:
            return 0
        lose(core, conn, errno)
        return -1
    if size == 0:
        lose(core, conn, 0)
        return -1
    core.counters.bytes_received += <uint64_t>size
    now = monotonic_ns()
    if conn.state == STATE_HANDSHAKE:
        used = feed_head(core, conn, core.read_buffer, size, now)
        # Frames may follow the head in the same packet.
        if used < 0 or used == size:
            return -1 if used < 0 else 0
    return feed(core, conn, core.read_buffer + used, size - used, now)


cdef int _fail(core_t* core, conn_t* conn, fault_t fault) noexcept nogil:
    """End a connection whose server violated the protocol (RFC 6455 7.1.7), and count the fault."""
    core.counters.faults[<int>fault] += 1
    if not conn.flags & FLAG_CLOSE_SENT:
        if send_close(core, conn, 1002) < 0:
            return -1
    end(core, conn)
    return -1


cdef inline bint _begins(
    const uint8_t* data, size_t size, const uint8_t* text, size_t text_size
) noexcept nogil:
    return size >= text_size and memcmp(data, text, text_size) == 0


cdef int _take_unstamped(
    core_t* core, conn_t* conn, const uint8_t* head, size_t size, uint64_t now
) noexcept nogil:
    """Count a message without a stamp by its beginning; it may be an answer for the echo job."""
    cdef uint32_t i
    for i in range(core.counted_count):
        core.counters.counted[i] += _begins(head, size, core.counted[i].data, core.counted[i].size)
    if conn.flags & FLAG_ECHO and core.echo.answer_size:
        if _begins(head, size, core.echo.answer, core.echo.answer_size):
            return on_answer(core, conn, now)
    return 0


cdef int _take_message(
    core_t* core, conn_t* conn, const uint8_t* head, size_t size, uint64_t now
) noexcept nogil:
    """Count one complete message and check its stamp; `head` is its beginning, up to the stamp window."""
    cdef stamp_t mark
    core.counters.messages += 1
    core.counters.message_bytes += conn.message_bytes
    core.counters.text_messages += conn.message_opcode == OP_TEXT
    if conn.flags & FLAG_FRAGMENTED:
        core.counters.fragmented_messages += 1
        conn.flags &= <uint16_t>~FLAG_FRAGMENTED
    conn.message_opcode = 0
    if not find_stamp(head, min(size, <size_t>core.stamp_window), &mark):
        return _take_unstamped(core, conn, head, size, now)
    core.counters.stamped += 1
    if mark.stream & ECHO_BIT:
        return on_echo(core, conn, &mark, now)
    if judge(&core.ledger, &conn.trackers, mark.stream, mark.sequence) != DUPLICATE:
        hist_record(&core.delivery_latency, <int64_t>(now - mark.intended_ns), 1)
    return 0


cdef int _take_close(core_t* core, conn_t* conn, const uint8_t* data, size_t size) noexcept nogil:
    """Process the server's Close: count its code, answer it unless it is itself an answer, await the FIN."""
    cdef unsigned int code = 1005
    if size == 1:
        return _fail(core, conn, FAULT_CLOSE_PAYLOAD)
    if size >= 2:
        code = (<unsigned int>data[0] << 8) | data[1]
        if not is_close_code(code):
            return _fail(core, conn, FAULT_CLOSE_PAYLOAD)
    core.counters.closes_received[code] += 1
    conn.flags |= FLAG_CLOSE_RECEIVED
    if conn.state == STATE_OPEN:
        set_state(core, conn, STATE_CLOSING)
        conn.deadline_ns = monotonic_ns() + core.close_timeout_ns
        # From now on a slow reader waits for the end like other connections.
        set_interest(core, conn)
    if conn.flags & FLAG_CLOSE_SENT:
        return 0
    # Section 5.5.1: answer with the same code; 1005 means no code and is never sent.
    return send_close(core, conn, 0 if code == 1005 else code)


cdef int _take_control(
    core_t* core, conn_t* conn, uint8_t opcode, const uint8_t* data, size_t size
) noexcept nogil:
    if opcode == OP_PONG:
        core.counters.pongs_received += 1
        return 0
    if opcode == OP_CLOSE:
        return _take_close(core, conn, data, size)
    # Nothing may be sent after our own Close (section 5.5.1).
    if conn.flags & FLAG_CLOSE_SENT:
        return 0
    core.counters.pings_answered += 1
    return send_control(core, conn, OP_PONG, data, size)


cdef int _begin_frame(core_t* core, conn_t* conn, const header_t* header) noexcept nogil:
    """Check a frame against the current message (section 5.4), and make it the current frame."""
    core.counters.frames_received += 1
    if header.opcode == OP_CONTINUATION:
        if conn.message_opcode == 0:
            return _fail(core, conn, FAULT_CONTINUATION)
    elif header.opcode < OP_CLOSE:
        if conn.message_opcode != 0:
            return _fail(core, conn, FAULT_INTERLEAVED)
        conn.message_opcode = header.opcode
        conn.message_bytes = 0
        if not header.is_final:
            conn.flags |= FLAG_FRAGMENTED
    conn.frame_opcode = header.opcode
    conn.frame_is_final = header.is_final
    conn.frame_left = header.payload
    if header.opcode < OP_CLOSE:
        conn.message_bytes += header.payload
    return 0


cdef int _read_header(core_t* core, conn_t* conn, const uint8_t* data, size_t size) noexcept nogil:
    """Begin the frame whose header continues at data.

    Returns how many bytes of data were used (all of them if the header is still incomplete), or -1 if the
    connection ended.
    """
    cdef header_t header
    cdef partial_t* partial
    cdef int result
    cdef int used = 0
    if conn.partial == NULL or conn.partial.header_len == 0:
        result = decode_header(data, size, &header)
        if result > 0:
            return -1 if _begin_frame(core, conn, &header) < 0 else result
        if result < 0:
            return _fail(core, conn, <fault_t>-result)
    partial = borrow_partial(core, conn)
    if partial == NULL:
        lose(core, conn, ENOMEM)
        return -1
    # A server's header has at most 10 bytes, so this loop ends soon and never overruns header[].
    while <size_t>used < size:
        partial.header[partial.header_len] = data[used]
        partial.header_len += 1
        used += 1
        result = decode_header(partial.header, partial.header_len, &header)
        if result < 0:
            return _fail(core, conn, <fault_t>-result)
        if result > 0:
            partial.header_len = 0
            return -1 if _begin_frame(core, conn, &header) < 0 else used
    return used


cdef int _read_control(core_t* core, conn_t* conn, const uint8_t* data, size_t size) noexcept nogil:
    """Process `size` bytes of the current control frame; the last byte completes the frame."""
    cdef partial_t* partial = conn.partial
    cdef uint8_t opcode = conn.frame_opcode
    conn.frame_left -= size
    if conn.frame_left == 0:
        conn.frame_opcode = NO_FRAME
        if partial == NULL or partial.control_len == 0:
            return _take_control(core, conn, opcode, data, size)
    partial = borrow_partial(core, conn)
    if partial == NULL:
        lose(core, conn, ENOMEM)
        return -1
    # decode_header has refused control frames over 125 bytes.
    memcpy(partial.control + partial.control_len, data, size)
    partial.control_len += <uint16_t>size
    if conn.frame_left:
        return 0
    size = partial.control_len
    partial.control_len = 0
    return _take_control(core, conn, opcode, partial.control, size)


cdef int _read_data(
    core_t* core, conn_t* conn, const uint8_t* data, size_t size, uint64_t now
) noexcept nogil:
    """Process `size` bytes of the current data frame; the end of a final frame completes the message."""
    cdef partial_t* partial = conn.partial
    cdef size_t room
    cdef bint is_complete
    conn.frame_left -= size
    if conn.frame_left == 0:
        conn.frame_opcode = NO_FRAME
    is_complete = conn.frame_left == 0 and conn.frame_is_final
    # The common case: the whole message is in the buffer, and nothing is copied.
    if is_complete and conn.message_bytes == size:
        return _take_message(core, conn, data, size, now)
    partial = borrow_partial(core, conn)
    if partial == NULL:
        lose(core, conn, ENOMEM)
        return -1
    room = min(size, <size_t>(core.stamp_window - partial.window_len))
    memcpy(partial.window + partial.window_len, data, room)
    partial.window_len += <uint32_t>room
    if not is_complete:
        return 0
    room = partial.window_len
    partial.window_len = 0
    return _take_message(core, conn, partial.window, room, now)


cdef inline bint _is_frame_empty(conn_t* conn) noexcept nogil:
    return conn.frame_opcode != NO_FRAME and conn.frame_left == 0


cdef int feed(core_t* core, conn_t* conn, const uint8_t* data, size_t size, uint64_t now) noexcept nogil:
    """Process bytes after the opening handshake. Every turn uses at least one byte or ends a frame."""
    cdef size_t take
    cdef int used
    # Section 5.5.1: bytes after a Close are ignored. An empty frame is complete with its header, also if no
    # byte follows.
    while not conn.flags & FLAG_CLOSE_RECEIVED and (size > 0 or _is_frame_empty(conn)):
        if conn.frame_opcode == NO_FRAME:
            used = _read_header(core, conn, data, size)
            if used < 0:
                return -1
            data += used
            size -= <size_t>used
            continue
        take = min(size, conn.frame_left)
        if conn.frame_opcode >= OP_CLOSE:
            if _read_control(core, conn, data, take) < 0:
                return -1
        elif _read_data(core, conn, data, take, now) < 0:
            return -1
        data += take
        size -= take
    if conn.partial != NULL and conn.frame_opcode == NO_FRAME and conn.message_opcode == 0:
        if conn.partial.header_len == 0:
            return_partial(core, conn)
    return 0
