"""Gives connections their turns: reads, parses and reports events, one connection at a time.

A turn receives once (at most 16 KiB) into the one receive buffer of the reactor, or continues with the
backlog of the connection, parses the bytes and appends events. Bytes beyond the budget of the turn or the
pass wait in the backlog, and the connection is queued again behind the others. Nothing is received while a
backlog waits, so a peer can make us store at most one receive of input that is not parsed.

Frames are parsed in messages.pyx, request heads in head.pyx.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from wsgate.reactor.closing cimport fail, release
from wsgate.reactor.deadlines cimport deadlines_arm
from wsgate.reactor.head cimport turn_head
from wsgate.reactor.memory cimport buffer_give
from wsgate.reactor.messages cimport give_back, parse_frames, violate
from wsgate.reactor.partial cimport partial_stash
from wsgate.reactor.socket_io cimport SOCKET_AGAIN, SOCKET_GONE, socket_interest, socket_receive, socket_unsent
from wsgate.reactor.structs cimport (
    ANNOUNCED, Connection, Core, END_AFTER_WRITE, EVENT_CLOSED, EVENT_FAILING, EVENT_PEER_CLOSED,
    KIND_PARTIAL, OPENED, PARTIAL_BYTES, PASS_OPENS, PAUSED_APP, PAUSED_OUTBOX, PEER_CLOSED,
    PEER_CLOSE_SEEN, PEER_GONE, PEER_RESET, PING_SENT, Pass, RECEIVE_BYTES, STATE_CLOSING, STATE_DECIDING,
    STATE_FAILING, STATE_GONE, STATE_HEAD, STATE_LINGERING, STATE_OPEN, WANT_OUT,
)
from wsgate.reactor.table cimport at, attention_push, failed_push, handle_of, table_free


cdef int end_turn(
    Core *core, uint32_t slot, uint8_t *data, uint64_t size, int64_t taken, bint from_backlog
) noexcept nogil:
    """Store the bytes that a turn did not parse, and queue the connection again if input may be left."""
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
            attention_push(core, slot)        # the receive buffer was full: the socket may have more
    return 0


cdef int turn_frames(Core *core, uint32_t slot, Pass *used, list events) except -1:
    """Give an open or closing connection a turn: parse its backlog, or receive once and parse."""
    cdef Connection *c = at(core, slot)
    cdef uint8_t *data
    cdef int64_t size, taken
    if c.state == STATE_OPEN and c.flags & (PAUSED_APP | PAUSED_OUTBOX):
        return 0                              # queued again when reading resumes
    if c.input != NULL and c.input.backlog.length:
        # Nothing is received before the backlog is parsed, so that it never grows.
        data = c.input.backlog.data + c.input.backlog_taken
        size = c.input.backlog.length - c.input.backlog_taken
        taken = parse_frames(core, slot, data, size, used, events)
        end_turn(core, slot, data, size, taken, True)
        return 0
    data = core.receive_buffer
    size = socket_receive(core, c, data, RECEIVE_BYTES)
    if size == SOCKET_AGAIN:
        return 0
    if size <= 0:
        # The stream ended without a Close, or the socket failed.
        release(core, slot, PEER_RESET if size == SOCKET_GONE else PEER_GONE, False)
        return 0
    c.seen_ms = <uint32_t>core.clock_ms
    if c.flags & PING_SENT:
        c.flags &= ~PING_SENT
        if core.limits.ping_interval_ms < core.limits.pong_timeout_ms:
            deadlines_arm(core, slot)         # the next ping is due before the pong would have been
    taken = parse_frames(core, slot, data, size, used, events)
    end_turn(core, slot, data, size, taken, False)
    return 0


cdef void turn_linger(Core *core, uint32_t slot, Pass *used) noexcept nogil:
    """Discard input of a lingering connection; release it at the end of its stream or over the byte limit."""
    cdef Connection *c = at(core, slot)
    cdef int64_t size = socket_receive(core, c, core.receive_buffer, RECEIVE_BYTES)
    if size == SOCKET_AGAIN:
        return
    if size <= 0:
        release(core, slot, 0, False)
        return
    used.bytes += size
    c.heartbeat_ms += <uint32_t>size          # counts the discarded bytes in this state
    if c.heartbeat_ms > core.limits.linger_limit_bytes:
        release(core, slot, 0, socket_unsent(c))
        return
    if size == RECEIVE_BYTES:
        attention_push(core, slot)


cdef int announce(Core *core, uint32_t slot, list events) except -1:
    """Report `failing` or `peer_closed` once, and have the next flush queue our Close."""
    cdef Connection *c = at(core, slot)
    if c.flags & ANNOUNCED:
        return 0
    events.append((
        EVENT_PEER_CLOSED if c.reason == PEER_CLOSED else EVENT_FAILING, handle_of(c, slot), c.close_code
    ))
    c.flags |= ANNOUNCED                      # only now: if making the event fails, it is tried again
    failed_push(core, slot)
    return 0


cdef int bury(Core *core, uint32_t slot, Pass *used, list events) except -1:
    """Report `closed`, the last event, if the connection was ever open, and free its slot."""
    cdef Connection *c = at(core, slot)
    cdef PyObject *meta = c.meta
    if c.flags & OPENED:
        if core.report_meta:
            events.append(
                (EVENT_CLOSED, handle_of(c, slot), (c.reason, None if meta == NULL else <object>meta))
            )
        else:
            events.append((EVENT_CLOSED, handle_of(c, slot), c.reason))
        used.messages += 1
    c.meta = NULL
    table_free(core, slot)
    Py_XDECREF(meta)
    return 0


cdef void turn_failed(Core *core, uint32_t slot, int reason) noexcept nogil:
    """End the connection whose turn raised an exception, mostly because memory was short.

    Its input is lost, so an open connection fails, and one in HEAD or DECIDING is reset. A connection whose
    end is still to be reported is queued for another turn instead.
    """
    cdef Connection *c = at(core, slot)
    if c.state == STATE_OPEN:
        fail(core, slot, reason, 0)
    elif c.state == STATE_HEAD or c.state == STATE_DECIDING:
        release(core, slot, reason, True)
    elif c.state in (STATE_FAILING, STATE_GONE):
        attention_push(core, slot)


cdef int take_turn(Core *core, uint32_t slot, Pass *used, list events) except -1:
    """Give a queued connection one turn, as its state demands, within the budget `used`.

    A fault that is found in a turn queues the connection again, and its next turn reports the fault.
    """
    cdef Connection *c = at(core, slot)
    if c.state == STATE_OPEN:
        turn_frames(core, slot, used, events)
    elif c.state == STATE_CLOSING:
        if c.flags & (PEER_CLOSE_SEEN | END_AFTER_WRITE):
            socket_interest(core, slot, False, c.flags & WANT_OUT != 0)    # no input matters any more
        else:
            turn_frames(core, slot, used, events)
    elif c.state == STATE_HEAD:
        if used.opens < PASS_OPENS:
            turn_head(core, slot, used, events)
        else:
            attention_push(core, slot)
    elif c.state == STATE_DECIDING:
        # The peer sends more before it has our response: these bytes stay in the kernel.
        socket_interest(core, slot, False, c.flags & WANT_OUT != 0)
    elif c.state == STATE_FAILING:
        announce(core, slot, events)
    elif c.state == STATE_LINGERING:
        turn_linger(core, slot, used)
    elif c.state == STATE_GONE:
        bury(core, slot, used, events)
    return 0
