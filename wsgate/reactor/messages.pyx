"""Parses the frames of a client into messages, by RFC 6455 sections 5 and 7, and applies all limits on them.

Frames are unmasked, and text is validated, as the bytes arrive, also in the middle of a frame. A frame that
is complete in the buffer is parsed in place; only unfinished frames are copied (partial.pyx). Pings, pongs,
Closes and fragments never reach Python: a complete message makes one `bytes` object and one tuple. A
compressed message stays compressed until it is complete, and is then inflated and validated at once.

The first violation ends reading. Messages that were complete before it are delivered. Limits are checked as
soon as a header is complete, before any payload is stored.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from wsgate.reactor.closing cimport fail, linger
from wsgate.reactor.codec cimport (
    FrameHeader, HEADER_BAD, HEADER_MAX, OP_CLOSE, OP_CONTINUATION, OP_PING, OP_TEXT, UTF8_BAD, codec_close,
    codec_header, codec_unmask, codec_utf8,
)
from wsgate.reactor.debts cimport debts_measured
from wsgate.reactor.inflate cimport inflate, wire_limit
from wsgate.reactor.memory cimport buffer_give, buffer_reserve
from wsgate.reactor.partial cimport partial_close, partial_open
from wsgate.reactor.clocks cimport clock_ns
from wsgate.reactor.structs cimport (
    BYTE_NS, BYTE_RATE, CLOSE_QUEUED, CONTROL_RATE, Connection, Core, FRAMES_IN, INVALID_UTF8, Input,
    KIND_PARTIAL, MESSAGES_IN, MESSAGES_INFLATED, MESSAGE_BYTES_IN, MESSAGE_NS, MESSAGE_RATE, MESSAGE_TOO_BIG,
    PARTIAL_BYTES, PASS_BYTES, PASS_NS, PEER_CLOSED, PEER_CLOSE_SEEN, PINGS_IN, PONGS_IN, PROTOCOL_ERROR,
    Pass, STATE_CLOSING, STATE_HEAD, STATE_OPEN, TOO_MANY_FRAGMENTS, TURN_FRAMES,
)
from wsgate.reactor.table cimport at, handle_of
from wsgate.reactor.wheel cimport wheel_arm
from wsgate.reactor.writer cimport pong

cdef enum Step:
    STEP_STOP = -1               # stop reading from the connection
    STEP_OK = 0

cdef enum:
    NS_PER_S = 1000000000
    # The most that the socket buffers of both ends hold after a long pause of our process: 4 MiB each by
    # tcp_rmem and tcp_wmem of Linux. A small message of a client has about 64 bytes on the wire, a ping or
    # pong 6.
    GATHERED_BYTES = 8388608
    GATHERED_MESSAGES = 131072
    GATHERED_CONTROLS = 1398101


# --- limits -----------------------------------------------------------------------------------------

cdef inline int64_t credit_ms(Core *core, uint32_t rate_per_s, uint64_t gathered) noexcept nogil:
    """Return how many milliseconds beyond its depth a token bucket has filled during a pause of our process.

    What a peer sent during such a pause arrives in one burst and is no flood. The credit is bounded by the
    time in which two full socket buffers would be sent at this rate; `gathered` is their content, in the unit
    of the bucket.
    """
    if core.now_ms > core.pause_until_ms:
        return 0
    return min(core.pause_ms, <int64_t>(gathered * 1000 // rate_per_s))


cdef inline bint conforms(
    Core *core, int64_t *arrival_ns, uint32_t rate_per_s, uint64_t amount, uint64_t gathered
) noexcept nogil:
    """Take `amount` from a token bucket one second deep; return whether the rate allows it.

    The bucket is stored as the time at which it will be full again.
    """
    cdef int64_t now_ns = core.now_ms * 1000000
    cdef int64_t full_ns = now_ns - credit_ms(core, rate_per_s, gathered) * 1000000
    cdef int64_t cost_ns = <int64_t>(amount * NS_PER_S // rate_per_s)
    if arrival_ns[0] < full_ns:
        arrival_ns[0] = full_ns
    arrival_ns[0] += cost_ns
    # An amount above one second's worth passes when the bucket is full; the bucket then refills for longer.
    return arrival_ns[0] <= now_ns + NS_PER_S or arrival_ns[0] - cost_ns <= now_ns


cdef bint control_conforms(Core *core, Connection *c) noexcept nogil:
    """Take one control frame from the token bucket of a connection; return whether rate and burst allow it.

    The unit is 1/16 ms, so that 32 bits can distinguish rates of up to 8,000/s. For a bucket that is not used
    for days, deadlines.pyx prevents that the value wraps.
    """
    cdef uint32_t now, full, cost, depth
    if core.limits.control_rate_per_s == 0:
        return True
    now = <uint32_t>core.now_ms << 4
    full = now - (<uint32_t>credit_ms(core, core.limits.control_rate_per_s, GATHERED_CONTROLS) << 4)
    cost = 16000 // core.limits.control_rate_per_s
    depth = cost * core.limits.control_burst
    # In the past: the bucket is full. Further in the future than any burst: the 32 bits have wrapped.
    if <int32_t>(c.control_ms - full) < 0 or <int32_t>(c.control_ms - now) > <int32_t>(depth + cost):
        c.control_ms = full
    c.control_ms += cost
    return <int32_t>(c.control_ms - now) <= <int32_t>depth


# --- frames -----------------------------------------------------------------------------------------

cdef int violate(Core *core, uint32_t slot, int reason) noexcept nogil:
    """End reading from a peer that broke a rule, and fail an open connection with `reason`.

    A connection that is closing stops waiting for the peer's Close and starts to linger when its outbox is
    empty. Returns STEP_STOP.
    """
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
    """Handle a complete, unmasked ping, pong or Close. RFC 6455 section 5.5."""
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
    """Check a frame header against the message in progress and the limits, before payload is stored."""
    cdef Connection *c = at(core, slot)
    cdef bint in_message = c.input != NULL and c.input.message_opcode
    cdef uint64_t so_far = c.input.message.length if in_message else 0
    cdef uint64_t most = core.limits.max_message_bytes
    core.counters[<int>FRAMES_IN] += 1
    if header.opcode >= OP_CLOSE:
        return STEP_OK
    if header.opcode == OP_CONTINUATION:
        if not in_message and c.state == STATE_OPEN:          # 5.4: nothing to continue
            return violate(core, slot, PROTOCOL_ERROR)
    elif in_message:                                          # 5.4: the message before is not complete
        return violate(core, slot, PROTOCOL_ERROR)
    if c.state != STATE_OPEN:
        return STEP_OK                                        # closing: the payload is discarded
    if header.deflated or (in_message and c.input.deflated):
        most = wire_limit(most)
    if header.length > most or so_far + header.length > most:
        return violate(core, slot, MESSAGE_TOO_BIG)
    if in_message and core.limits.max_fragments and c.input.fragments + 1 > core.limits.max_fragments:
        return violate(core, slot, TOO_MANY_FRAGMENTS)
    return STEP_OK


cdef int admit_message(Core *core, uint32_t slot, uint64_t size) noexcept nogil:
    """Take a complete message from the message and byte buckets of the connection, and count it.

    The buckets use the caller's clock, which does not stop during a pause of our process: the messages of the
    pause arrive in one burst, and the buckets have filled meanwhile.
    """
    cdef Connection *c = at(core, slot)
    c.message_ms = <uint32_t>core.clock_ms
    if core.limits.message_rate_per_s and not conforms(
        core, &c.message_ns, core.limits.message_rate_per_s, 1, GATHERED_MESSAGES
    ):
        return violate(core, slot, MESSAGE_RATE)
    if core.limits.byte_rate_per_s and not conforms(
        core, &c.byte_ns, core.limits.byte_rate_per_s, size, GATHERED_BYTES
    ):
        return violate(core, slot, BYTE_RATE)
    core.counters[<int>MESSAGES_IN] += 1
    core.counters[<int>MESSAGE_BYTES_IN] += size
    return STEP_OK


cdef inline void note_message(Pass *used, uint64_t size) noexcept nogil:
    """Charge a message of `size` bytes, and the time that Python will need for it, to the budget of the pass."""
    used.messages += 1
    used.bytes += size
    used.expected_ns += max(<int64_t>used.message_ns, <int64_t>(MESSAGE_NS + size * BYTE_NS))


cdef int emit(
    Core *core, uint32_t slot, uint8_t opcode, const uint8_t *payload, uint64_t size, Pass *used, list events
) except -2:
    """Append the event of a complete message that was not compressed, if the rates allow it."""
    cdef Connection *c = at(core, slot)
    if admit_message(core, slot, size) == STEP_STOP:
        return STEP_STOP
    events.append((opcode, handle_of(c, slot), PyBytes_FromStringAndSize(<char *>payload, size)))
    note_message(used, size)
    return STEP_OK


cdef int emit_deflated(
    Core *core, uint32_t slot, uint8_t opcode, const uint8_t *payload, uint64_t size, Pass *used, list events
) except -2:
    """Inflate and validate a complete compressed message and append its event; rates count the content."""
    cdef Connection *c = at(core, slot)
    cdef bytes content
    cdef uint64_t length
    cdef int64_t began_ns
    began_ns = clock_ns()
    made = inflate(payload, size, core.limits.max_message_bytes)
    if not core.is_exact:
        used.inflate_ns += debts_measured(core, clock_ns() - began_ns)
    if type(made) is not bytes:
        return violate(core, slot, <int>made)
    content = made
    length = <uint64_t>PyBytes_GET_SIZE(content)
    if opcode == OP_TEXT and codec_utf8(0, <const uint8_t *>PyBytes_AS_STRING(content), length) != 0:
        return violate(core, slot, INVALID_UTF8)
    core.counters[<int>MESSAGES_INFLATED] += 1
    if admit_message(core, slot, length) == STEP_STOP:
        return STEP_STOP
    events.append((opcode, handle_of(c, slot), content))
    note_message(used, length)
    return STEP_OK


cdef int receive_whole(
    Core *core, uint32_t slot, FrameHeader *header, uint8_t *payload, Pass *used, list events
) except -2:
    """Handle a frame that is complete in the buffer: a message of one frame, or a control frame."""
    codec_unmask(payload, payload, header.length, header.mask, 0)
    if header.opcode >= OP_CLOSE:
        return receive_control(core, slot, header.opcode, payload, <uint32_t>header.length)
    if at(core, slot).state != STATE_OPEN:
        return STEP_OK
    if header.deflated:
        return emit_deflated(core, slot, header.opcode, payload, header.length, used, events)
    if header.opcode == OP_TEXT and codec_utf8(0, payload, header.length) != 0:
        return violate(core, slot, INVALID_UTF8)
    return emit(core, slot, header.opcode, payload, header.length, used, events)


cdef int begin_frame(Core *core, uint32_t slot, FrameHeader *header) noexcept nogil:
    """Begin to collect the payload of a frame that is not complete in the buffer, or is a fragment."""
    cdef Connection *c = at(core, slot)
    cdef Input *input = partial_open(core, c)
    if input == NULL:
        return violate(core, slot, PARTIAL_BYTES)
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
            input.deflated = header.deflated
            input.fragments = 0
            input.utf8 = 0
        input.fragments += 1
    return STEP_OK


cdef void start_message(Core *core, uint32_t slot) noexcept nogil:
    """Start the deadline of an unfinished message, if it does not run already."""
    cdef Connection *c = at(core, slot)
    if c.input.started_ms == 0:
        c.input.started_ms = c.input.paused_ms = core.clock_ms
        if core.limits.message_timeout_ms and c.state == STATE_OPEN:
            wheel_arm(core, slot, core.clock_ms + core.limits.message_timeout_ms)


cdef int receive_payload(Core *core, uint32_t slot, const uint8_t *data, uint64_t size) noexcept nogil:
    """Unmask, store and validate some payload bytes of the frame in progress."""
    cdef Connection *c = at(core, slot)
    cdef Input *input = c.input
    cdef uint64_t place
    if input.opcode >= OP_CLOSE:
        codec_unmask(input.control + input.frame_received, data, size, input.mask, input.frame_received)
    elif c.state == STATE_OPEN:
        place = input.message.length
        if buffer_reserve(
            core, &input.message, place + size, place + input.frame_length - input.frame_received,
            KIND_PARTIAL
        ) < 0:
            return violate(core, slot, PARTIAL_BYTES)
        codec_unmask(input.message.data + place, data, size, input.mask, input.frame_received)
        input.message.length += <uint32_t>size
        if input.message_opcode == OP_TEXT and not input.deflated:
            input.utf8 = codec_utf8(input.utf8, input.message.data + place, size)
            if input.utf8 == UTF8_BAD:
                return violate(core, slot, INVALID_UTF8)
    input.frame_received += size
    return STEP_OK


cdef int end_frame(Core *core, uint32_t slot, Pass *used, list events) except -2:
    """Finish the frame in progress, whose bytes are complete, and its message if it is the final fragment."""
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
        if c.state == STATE_OPEN and input.deflated:
            step = emit_deflated(
                core, slot, input.message_opcode, input.message.data, input.message.length, used, events
            )
        elif c.state == STATE_OPEN:
            step = emit(
                core, slot, input.message_opcode, input.message.data, input.message.length, used, events
            )
        if step == STEP_OK:
            input.message_opcode = 0
            input.started_ms = 0
            buffer_give(core, &input.message, KIND_PARTIAL)
    return step


cdef inline bint at_boundary(Input *input) noexcept nogil:
    """Return whether the next byte is the first of a frame header."""
    return input == NULL or (input.in_payload == 0 and input.header_length == 0)


cdef inline bint may_deflate(Core *core, Connection *c) noexcept nogil:
    """Return whether the connection agreed to permessage-deflate, so that RSV1 is valid in its frames."""
    return core.variant_deflated[c.variant]


cdef int64_t collect_header(
    Core *core, uint32_t slot, const uint8_t *data, uint64_t size, FrameHeader *header, int *outcome
) noexcept nogil:
    """Add bytes to a header that arrives in pieces; return how many were used.

    `outcome` becomes 0 while the header is incomplete, above 0 when it is complete, else HEADER_BAD.
    """
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
        outcome[0] = codec_header(input.header, input.header_length, may_deflate(core, c), header)
    return taken


cdef int64_t parse_frames(
    Core *core, uint32_t slot, uint8_t *data, uint64_t size, Pass *used, list events
) except -2:
    """Parse frames until the bytes or the budget of the turn or of the pass are used up.

    Returns:
        How many bytes were parsed; -1 when no more may be read from the connection.
    """
    cdef Connection *c = at(core, slot)
    cdef FrameHeader header
    cdef uint64_t place = 0, chunk
    cdef uint32_t frames = 0, messages = used.messages
    cdef int step, outcome = 0
    while place < size:
        # The budget of the turn, then that of the pass: the caller stores the rest in the backlog.
        if frames >= TURN_FRAMES or used.messages - messages >= used.turn_messages:
            return place
        if used.messages >= used.messages_limit or used.bytes >= PASS_BYTES or used.expected_ns >= PASS_NS:
            return place
        if c.input == NULL or not c.input.in_payload:
            if at_boundary(c.input):
                outcome = codec_header(data + place, size - place, may_deflate(core, c), &header)
                if outcome > 0:
                    place += outcome
            if outcome == 0 or not at_boundary(c.input):
                place += collect_header(core, slot, data + place, size - place, &header, &outcome)
                if outcome == 0:
                    return place
                if c.input == NULL:           # without memory collect_header has ended reading
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
            # A control frame, or a message of one frame, that is complete in the buffer is handled in place.
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
    """Stop the deadline of the message in progress if no frame and no message is unfinished."""
    if c.input != NULL and not c.input.in_payload and not c.input.message_opcode:
        c.input.started_ms = 0


cdef void give_back(Core *core, Connection *c) noexcept nogil:
    """Release the `Input` of a connection if nothing in it is unfinished; not in HEAD."""
    cdef Input *input = c.input
    if (
        input != NULL and at_boundary(input) and not input.message_opcode
        and input.backlog.length == input.backlog_taken and c.state != STATE_HEAD
    ):
        partial_close(core, c)
