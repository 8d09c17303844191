"""Reading: from bytes to events, one connection's turn at a time.

A turn receives once (16 KiB at most) into the reactor's one buffer, or takes up a backlog, parses,
and appends events. What the turn's or the pass's budget leaves over waits in the backlog, and the
connection goes behind the others; nothing is received while a backlog waits, so a peer can make us
hold one receive of undelivered input and no more.

Frames are unmasked, and text validated, as bytes arrive, mid-frame. A frame that lies whole in the
buffer is read where it lies; only what is unfinished is copied out (partial.pyx). Pings, pongs,
Closes and fragments never reach Python; one `bytes` and one tuple are made per whole message.

Rules: RFC 6455 sections 5 and 7. The first violation ends reading; what was whole before it is
delivered, then `failing`.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from wsgate.reactor.closing cimport end_with, fail, linger, release
from wsgate.reactor.codec cimport (
    HEADER_BAD, HEADER_MAX, OP_CLOSE, OP_CONTINUATION, OP_PING, OP_TEXT, UTF8_BAD, FrameHeader, codec_close,
    codec_header, codec_unmask, codec_utf8,
)
from wsgate.reactor.memory cimport buffer_append, buffer_give, buffer_reserve
from wsgate.reactor.partial cimport partial_close, partial_open, partial_stash
from wsgate.reactor.seam cimport SEAM_AGAIN, SEAM_GONE, seam_interest, seam_receive
from wsgate.reactor.structs cimport (
    ANNOUNCED, BYTE_RATE, CLOSE_QUEUED, CONTROL_RATE, END_AFTER_WRITE, EVENT_CLOSED, EVENT_FAILING, EVENT_OPEN,
    EVENT_PEER_CLOSED, FRAMES_IN, HEAD_TOO_LARGE, INVALID_UTF8, KIND_PARTIAL, MESSAGE_BYTES_IN,
    MESSAGE_RATE, MESSAGE_TOO_BIG, MESSAGES_IN, OPENED, OPENS, PARTIAL_BYTES, PASS_BYTES,
    PASS_MESSAGES, PASS_OPENS, PAUSED_APP, PAUSED_OUTBOX, PEER_CLOSE_SEEN, PEER_CLOSED, PEER_GONE,
    PEER_RESET, PING_SENT, PINGS_IN, PONGS_IN, PROTOCOL_ERROR, RECEIVE_BYTES, STATE_CLOSING,
    STATE_DECIDING, STATE_FAILING, STATE_GONE, STATE_HEAD, STATE_LINGERING, STATE_OPEN, TOO_MANY_FRAGMENTS,
    TURN_FRAMES, TURN_MESSAGES, WANT_OUT, Connection, Core, Frame, Input,
)
from wsgate.reactor.table cimport at, attention_push, enter, failed_push, handle_of, table_free
from wsgate.reactor.wheel cimport wheel_arm
from wsgate.reactor.writer cimport pong

cdef enum Step:
    STEP_STOP = -1               # the connection is not read any more
    STEP_OK = 0
    STEP_MORE = 1                # bytes are needed

cdef enum:
    NS_PER_S = 1000000000


# --- limits -----------------------------------------------------------------------------------------

cdef inline bint conforms(int64_t *arrival_ns, int64_t now_ns, uint32_t rate_per_s, uint64_t amount) noexcept nogil:
    """A token bucket one second deep, kept as the moment at which it would be full again."""
    if arrival_ns[0] < now_ns:
        arrival_ns[0] = now_ns
    arrival_ns[0] += <int64_t>(amount * NS_PER_S // rate_per_s)
    # An amount larger than a second's worth passes when the bucket is full, and is paid off after.
    return arrival_ns[0] <= now_ns + NS_PER_S or arrival_ns[0] - <int64_t>(
        amount * NS_PER_S // rate_per_s
    ) <= now_ns


cdef bint control_conforms(Core *core, Connection *c) noexcept nogil:
    """Whether one more control frame is within the rate and its burst."""
    cdef uint32_t now = <uint32_t>core.clock_ms, cost, depth
    if core.limits.control_rate_per_s == 0:
        return True
    # In sixteenths of a millisecond, so that rates up to 16,000/s are told apart.
    now <<= 4
    cost = 16000 // core.limits.control_rate_per_s
    depth = cost * core.limits.control_burst
    if <int>(c.control_ms - now) < 0 or <int>(c.control_ms - now) > <int>(depth + cost):
        c.control_ms = now
    c.control_ms += cost
    return c.control_ms - now <= depth


# --- frames -----------------------------------------------------------------------------------------

cdef int violate(Core *core, uint32_t slot, int reason) noexcept nogil:
    """The peer broke a rule: no more is read from it. While closing, there is nothing left to wait for."""
    cdef Connection *c = at(core, slot)
    if c.state == STATE_CLOSING:
        if c.outbox == NULL and c.flags & CLOSE_QUEUED:
            linger(core, slot)
        else:
            c.flags |= PEER_CLOSE_SEEN
    else:
        fail(core, slot, reason, 0)
    return STEP_STOP


cdef int receive_control(
    Core *core, uint32_t slot, uint8_t opcode, const uint8_t *payload, uint32_t size
) noexcept nogil:
    """A whole control frame, unmasked. RFC 6455 section 5.5."""
    cdef Connection *c = at(core, slot)
    cdef uint16_t code = 0
    cdef int wrong
    if c.state != STATE_OPEN and opcode != OP_CLOSE:
        return STEP_OK
    if opcode == OP_CLOSE:
        wrong = codec_close(payload, size, &code)
        if wrong:
            return violate(core, slot, PROTOCOL_ERROR if wrong == 1002 else INVALID_UTF8)
        c.flags |= PEER_CLOSE_SEEN
        if c.state == STATE_CLOSING:
            if c.outbox == NULL and c.flags & CLOSE_QUEUED:
                linger(core, slot)
        else:
            fail(core, slot, PEER_CLOSED, code)
        return STEP_STOP
    if not control_conforms(core, c):
        return violate(core, slot, CONTROL_RATE)
    if opcode == OP_PING:
        core.counters[<int>PINGS_IN] += 1
        pong(core, slot, payload, size)
        return STEP_OK if c.state == STATE_OPEN else STEP_STOP
    core.counters[<int>PONGS_IN] += 1
    return STEP_OK


cdef int admit_frame(Core *core, uint32_t slot, FrameHeader *header) noexcept nogil:
    """Judge a whole header against the message in progress and the limits, before any payload."""
    cdef Connection *c = at(core, slot)
    cdef bint in_message = c.input != NULL and c.input.message_opcode
    cdef uint64_t so_far = c.input.message.length if in_message else 0
    core.counters[<int>FRAMES_IN] += 1
    if header.opcode >= OP_CLOSE:
        return STEP_OK
    if header.opcode == OP_CONTINUATION:
        if not in_message and c.state == STATE_OPEN:          # 5.4: nothing to continue
            return violate(core, slot, PROTOCOL_ERROR)
    elif in_message:                                          # 5.4: the message before is not whole
        return violate(core, slot, PROTOCOL_ERROR)
    if c.state != STATE_OPEN:
        return STEP_OK                                        # closing: nothing is kept
    if header.length > core.limits.message_bytes or so_far + header.length > core.limits.message_bytes:
        return violate(core, slot, MESSAGE_TOO_BIG)
    if in_message and core.limits.fragments and c.input.fragments + 1 > core.limits.fragments:
        return violate(core, slot, TOO_MANY_FRAGMENTS)
    return STEP_OK


cdef int admit_message(Core *core, uint32_t slot, uint64_t size) noexcept nogil:
    """Count a whole message against the connection's rates."""
    cdef Connection *c = at(core, slot)
    cdef int64_t now_ns = core.clock_ms * 1000000
    c.message_ms = <uint32_t>core.clock_ms
    if core.limits.message_rate_per_s and not conforms(
        &c.message_ns, now_ns, core.limits.message_rate_per_s, 1
    ):
        return violate(core, slot, MESSAGE_RATE)
    if core.limits.byte_rate_per_s and not conforms(&c.byte_ns, now_ns, core.limits.byte_rate_per_s, size):
        return violate(core, slot, BYTE_RATE)
    core.counters[<int>MESSAGES_IN] += 1
    core.counters[<int>MESSAGE_BYTES_IN] += size
    return STEP_OK


cdef int emit(
    Core *core, uint32_t slot, uint8_t opcode, const uint8_t *payload, uint64_t size, Pass *used, list events
) except -2:
    """A whole message: one event."""
    cdef Connection *c = at(core, slot)
    if admit_message(core, slot, size) == STEP_STOP:
        return STEP_STOP
    events.append((opcode, handle_of(c, slot), PyBytes_FromStringAndSize(<char *>payload, size)))
    used.messages += 1
    used.bytes += size
    return STEP_OK


cdef int receive_whole(
    Core *core, uint32_t slot, FrameHeader *header, uint8_t *payload, Pass *used, list events
) except -2:
    """A frame that lies whole in the buffer, with no message in progress, or a control frame."""
    codec_unmask(payload, payload, header.length, header.mask, 0)
    if header.opcode >= OP_CLOSE:
        return receive_control(core, slot, header.opcode, payload, <uint32_t>header.length)
    if at(core, slot).state != STATE_OPEN:
        return STEP_OK
    if header.opcode == OP_TEXT and codec_utf8(0, payload, header.length) != 0:
        return violate(core, slot, INVALID_UTF8)
    return emit(core, slot, header.opcode, payload, header.length, used, events)


cdef int begin_frame(Core *core, uint32_t slot, FrameHeader *header) noexcept nogil:
    """Start to collect a frame's payload."""
    cdef Connection *c = at(core, slot)
    cdef Input *input = partial_open(core, c)
    if input == NULL:
        return violate(core, slot, PARTIAL_BYTES)
    if input.started_ms == 0 and header.opcode < OP_CLOSE:
        start_message(core, slot)
    input.frame_length = header.length
    input.frame_received = 0
    input.opcode = header.opcode
    input.final = header.final
    memcpy(input.mask, header.mask, 4)
    input.in_payload = 1
    input.header_length = 0
    if header.opcode < OP_CLOSE:
        if header.opcode != OP_CONTINUATION:
            input.message_opcode = header.opcode
            input.fragments = 0
            input.utf8 = 0
        input.fragments += 1
    return STEP_OK


cdef void start_message(Core *core, uint32_t slot) noexcept nogil:
    """The clock of an unfinished message starts with its first byte."""
    cdef Connection *c = at(core, slot)
    if c.input.started_ms == 0:
        c.input.started_ms = core.clock_ms
        if core.limits.message_ms and c.state == STATE_OPEN:
            wheel_arm(core, slot, core.clock_ms + core.limits.message_ms)


cdef int receive_payload(Core *core, uint32_t slot, const uint8_t *data, uint64_t size) noexcept nogil:
    """Some bytes of the frame in progress: unmask and validate them as they come."""
    cdef Connection *c = at(core, slot)
    cdef Input *input = c.input
    cdef uint64_t place
    if input.opcode >= OP_CLOSE:
        codec_unmask(input.control + input.frame_received, data, size, input.mask, input.frame_received)
    elif c.state == STATE_OPEN:
        place = input.message.length
        if buffer_reserve(
            core, &input.message, place + size, place + input.frame_length - input.frame_received, KIND_PARTIAL
        ) < 0:
            return violate(core, slot, PARTIAL_BYTES)
        codec_unmask(input.message.data + place, data, size, input.mask, input.frame_received)
        input.message.length += <uint32_t>size
        if input.message_opcode == OP_TEXT:
            input.utf8 = codec_utf8(input.utf8, input.message.data + place, size)
            if input.utf8 == UTF8_BAD:
                return violate(core, slot, INVALID_UTF8)
    input.frame_received += size
    return STEP_OK


cdef int end_frame(Core *core, uint32_t slot, Pass *used, list events) except -2:
    """The frame in progress has all its bytes."""
    cdef Connection *c = at(core, slot)
    cdef Input *input = c.input
    cdef int step
    input.in_payload = 0
    if input.opcode >= OP_CLOSE:
        step = receive_control(core, slot, input.opcode, input.control, <uint32_t>input.frame_length)
    elif not input.final:
        return STEP_OK
    else:
        if input.message_opcode == OP_TEXT and input.utf8 != 0 and c.state == STATE_OPEN:
            return violate(core, slot, INVALID_UTF8)          # 8.1: ends inside a character
        step = STEP_OK
        if c.state == STATE_OPEN:
            step = emit(
                core, slot, input.message_opcode, input.message.data, input.message.length, used, events
            )
        if step == STEP_OK:
            input.message_opcode = 0
            input.started_ms = 0
            buffer_give(core, &input.message, KIND_PARTIAL)
    return step


cdef inline bint at_boundary(Input *input) noexcept nogil:
    """Whether a header would start here."""
    return input == NULL or (input.in_payload == 0 and input.header_length == 0)


cdef int64_t collect_header(
    Core *core, uint32_t slot, const uint8_t *data, uint64_t size, FrameHeader *header, int *outcome
) noexcept nogil:
    """Add bytes to a header that came in pieces; returns how many were taken."""
    cdef Connection *c = at(core, slot)
    cdef Input *input = partial_open(core, c)
    cdef uint64_t taken = 0
    if input == NULL:
        outcome[0] = HEADER_BAD
        violate(core, slot, PARTIAL_BYTES)
        return 0
    outcome[0] = 0
    start_message(core, slot)
    while taken < size and outcome[0] == 0 and input.header_length < HEADER_MAX:
        input.header[input.header_length] = data[taken]
        input.header_length += 1
        taken += 1
        outcome[0] = codec_header(input.header, input.header_length, header)
    return taken


cdef int64_t parse(
    Core *core, uint32_t slot, uint8_t *data, uint64_t size, Pass *used, list events
) except -2:
    """Parse frames until the bytes or the turn's budget end; how many were taken, -1 to stop."""
    cdef Connection *c = at(core, slot)
    cdef FrameHeader header
    cdef uint64_t place = 0, chunk
    cdef uint32_t frames = 0, messages = used.messages
    cdef int step, outcome = 0
    while place < size:
        if frames >= TURN_FRAMES or used.messages - messages >= TURN_MESSAGES:
            return place
        if used.messages >= PASS_MESSAGES or used.bytes >= PASS_BYTES:
            return place
        if c.input == NULL or not c.input.in_payload:
            if at_boundary(c.input):
                outcome = codec_header(data + place, size - place, &header)
                if outcome > 0:
                    place += outcome
            if outcome == 0 or not at_boundary(c.input):
                place += collect_header(core, slot, data + place, size - place, &header, &outcome)
                if outcome == 0:
                    return place
                if c.input == NULL:
                    return -1
                if outcome > 0:
                    c.input.header_length = 0
            if outcome == HEADER_BAD:
                violate(core, slot, PROTOCOL_ERROR)
                return -1
            outcome = 0
            frames += 1
            if admit_frame(core, slot, &header) == STEP_STOP:
                return -1
            if header.length <= size - place and (
                header.opcode >= OP_CLOSE
                or (header.final and (c.input == NULL or not c.input.message_opcode))
            ):
                step = receive_whole(core, slot, &header, data + place, used, events)
                place += header.length
                if step == STEP_STOP:
                    return -1
                settle(core, c)
                continue
            if begin_frame(core, slot, &header) == STEP_STOP:
                return -1
        chunk = min(c.input.frame_length - c.input.frame_received, size - place)
        if receive_payload(core, slot, data + place, chunk) == STEP_STOP:
            return -1
        place += chunk
        if c.input.frame_received == c.input.frame_length:
            if end_frame(core, slot, used, events) == STEP_STOP:
                return -1
            settle(core, c)
    return place


cdef inline void settle(Core *core, Connection *c) noexcept nogil:
    """At a boundary with nothing unfinished the message's clock stops; see `give_back`."""
    if c.input != NULL and not c.input.in_payload and not c.input.message_opcode:
        c.input.started_ms = 0


cdef void give_back(Core *core, Connection *c) noexcept nogil:
    """Return the input to the pool when it holds nothing."""
    cdef Input *input = c.input
    if (
        input != NULL and at_boundary(input) and not input.message_opcode
        and input.backlog.length == input.backlog_taken and c.state != STATE_HEAD
    ):
        partial_close(core, c)


# --- one turn ---------------------------------------------------------------------------------------

cdef int end_turn(
    Core *core, uint32_t slot, uint8_t *data, uint64_t size, int64_t taken, bint from_backlog
) noexcept nogil:
    """Keep what was not taken, and queue again if there is more to do."""
    cdef Connection *c = at(core, slot)
    if taken < 0 or c.state not in (STATE_OPEN, STATE_CLOSING):
        return 0
    if from_backlog:
        c.input.backlog_taken += <uint32_t>taken
        if c.input.backlog_taken == c.input.backlog.length:
            buffer_give(core, &c.input.backlog, KIND_PARTIAL)
            c.input.backlog_taken = 0
    elif <uint64_t>taken < size and partial_stash(
        core, c, data + taken, <uint32_t>(size - taken)
    ) < 0:
        violate(core, slot, PARTIAL_BYTES)
        return 0
    if c.input != NULL and c.input.backlog.length:
        attention_push(core, slot)
    else:
        give_back(core, c)
        if size == RECEIVE_BYTES and not from_backlog:
            attention_push(core, slot)        # the buffer was full: the socket may hold more
    return 0


cdef int turn_frames(Core *core, uint32_t slot, Pass *used, list events) except -1:
    """Frames of an open or closing connection."""
    cdef Connection *c = at(core, slot)
    cdef uint8_t *data
    cdef int64_t size, taken
    if c.state == STATE_OPEN and c.flags & (PAUSED_APP | PAUSED_OUTBOX):
        return 0
    if c.input != NULL and c.input.backlog.length:
        data = c.input.backlog.data + c.input.backlog_taken
        size = c.input.backlog.length - c.input.backlog_taken
        taken = parse(core, slot, data, size, used, events)
        end_turn(core, slot, data, size, taken, True)
        return 0
    data = core.receive_buffer
    size = seam_receive(core, c, data, RECEIVE_BYTES)
    if size == SEAM_AGAIN:
        return 0
    if size <= 0:
        release(core, slot, PEER_RESET if size == SEAM_GONE else PEER_GONE, False)
        return 0
    c.seen_ms = <uint32_t>core.clock_ms
    c.flags &= ~PING_SENT
    taken = parse(core, slot, data, size, used, events)
    end_turn(core, slot, data, size, taken, False)
    return 0


cdef int64_t head_end(const uint8_t *data, uint64_t size, uint64_t start) noexcept nogil:
    """Size of the head, with its empty line; 0 when it is not whole.

    A line feed without its carriage return ends it too: such a head is bad however it goes on
    (RFC 9112 section 2.2), and the handshake says so at once instead of at the deadline.
    """
    cdef uint64_t index
    for index in range(start, size):
        if data[index] == 10:
            if index == 0 or data[index - 1] != 13:
                return index + 1
            if index >= 3 and data[index - 2] == 10 and data[index - 3] == 13:
                return index + 1
    return 0


cdef int turn_head(Core *core, uint32_t slot, Pass *used, list events) except -1:
    """A request head: collected under a cap, handed up once, whole."""
    cdef Connection *c = at(core, slot)
    cdef uint8_t *data = core.receive_buffer
    cdef uint64_t length, start = 0
    cdef int64_t end, size = seam_receive(core, c, data, RECEIVE_BYTES)
    cdef Frame *answer
    if size == SEAM_AGAIN:
        return 0
    if size <= 0:
        release(core, slot, PEER_RESET if size == SEAM_GONE else PEER_GONE, False)
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
    end = head_end(data, length, start)
    if end > core.limits.head_bytes or (end == 0 and length >= core.limits.head_bytes):
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
        c.input.scanned = <uint32_t>length
        return 0
    # What follows the head are frames, read after 101 and never as HTTP.
    events.append((EVENT_OPEN, handle_of(c, slot), PyBytes_FromStringAndSize(<char *>data, end)))
    used.opens += 1
    core.counters[<int>OPENS] += 1
    c.flags |= OPENED
    enter(core, c, STATE_DECIDING)
    c.deadline_ms = core.clock_ms + core.limits.upgrade_ms
    if partial_stash(core, c, data + end, <uint32_t>(length - end)) < 0:
        release(core, slot, PARTIAL_BYTES, False)
        return 0
    if c.input != NULL:
        buffer_give(core, &c.input.message, KIND_PARTIAL)
        c.input.scanned = 0
        if c.input.backlog.length == 0:
            partial_close(core, c)
    return 0


cdef void turn_linger(Core *core, uint32_t slot, Pass *used) noexcept nogil:
    """Discard; end with the stream, or when the peer does not stop talking."""
    cdef Connection *c = at(core, slot)
    cdef int64_t size = seam_receive(core, c, core.receive_buffer, RECEIVE_BYTES)
    cdef uint32_t units
    if size == SEAM_AGAIN:
        return
    if size <= 0:
        release(core, slot, 0, False)
        return
    used.bytes += size
    units = c.lingered_units + <uint32_t>((size + 15) // 16)
    if <uint64_t>units * 16 > core.limits.linger_bytes:
        release(core, slot, 0, False)
        return
    c.lingered_units = <uint16_t>units
    if size == RECEIVE_BYTES:
        attention_push(core, slot)


cdef int announce(Core *core, uint32_t slot, list events) except -1:
    """Give `failing` or `peer_closed`, once; the next flush queues Close."""
    cdef Connection *c = at(core, slot)
    if c.flags & ANNOUNCED:
        return 0
    c.flags |= ANNOUNCED
    events.append((
        EVENT_PEER_CLOSED if c.reason == PEER_CLOSED else EVENT_FAILING, handle_of(c, slot), c.close_code
    ))
    failed_push(core, slot)
    return 0


cdef int bury(Core *core, uint32_t slot, Pass *used, list events) except -1:
    """Give `closed`, the last event, and free the slot."""
    cdef Connection *c = at(core, slot)
    cdef PyObject *meta = c.meta
    if c.flags & OPENED:
        events.append((EVENT_CLOSED, handle_of(c, slot), c.reason))
        used.messages += 1
    c.meta = NULL
    table_free(core, slot)
    Py_XDECREF(meta)
    return 0


cdef int take_turn(Core *core, uint32_t slot, Pass *used, list events) except -1:
    """Whatever a connection from the attention queue is waiting for. Bounded by its turn's budget.

    A fault found in a turn puts the connection on the queue again, and its next turn announces it.
    """
    cdef Connection *c = at(core, slot)
    if c.state == STATE_OPEN:
        turn_frames(core, slot, used, events)
    elif c.state == STATE_CLOSING:
        if c.flags & (PEER_CLOSE_SEEN | END_AFTER_WRITE):
            seam_interest(core, slot, False, c.flags & WANT_OUT != 0)    # nothing it says matters now
        else:
            turn_frames(core, slot, used, events)
    elif c.state == STATE_HEAD:
        if used.opens < PASS_OPENS:
            turn_head(core, slot, used, events)
        else:
            attention_push(core, slot)
    elif c.state == STATE_DECIDING:
        # The peer talks on before it has its answer: what it says stays in the kernel.
        seam_interest(core, slot, False, c.flags & WANT_OUT != 0)
    elif c.state == STATE_FAILING:
        announce(core, slot, events)
    elif c.state == STATE_LINGERING:
        turn_linger(core, slot, used)
    elif c.state == STATE_GONE:
        bury(core, slot, used, events)
    return 0
