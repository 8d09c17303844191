"""Reading: one connection's turn at a time.

A turn receives once (16 KiB at most) into the reactor's one buffer, or takes up a backlog, parses,
and appends events. What the turn's or the pass's budget leaves over waits in the backlog, and the
connection goes behind the others; nothing is received while a backlog waits, so a peer can make us
hold one receive of undelivered input and no more.

The frames themselves are read in messages.pyx, the request head in head.pyx.
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
from wsgate.reactor.socket_io cimport SEAM_AGAIN, SEAM_GONE, seam_interest, seam_receive, seam_unsent
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
        taken = parse_frames(core, slot, data, size, used, events)
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
    if c.flags & PING_SENT:
        c.flags &= ~PING_SENT
        if core.limits.ping_interval_ms < core.limits.pong_timeout_ms:
            deadlines_arm(core, slot)         # the next ping is nearer than the pong was
    taken = parse_frames(core, slot, data, size, used, events)
    end_turn(core, slot, data, size, taken, False)
    return 0


cdef void turn_linger(Core *core, uint32_t slot, Pass *used) noexcept nogil:
    """Discard; end with the stream, or when the peer does not stop talking."""
    cdef Connection *c = at(core, slot)
    cdef int64_t size = seam_receive(core, c, core.receive_buffer, RECEIVE_BYTES)
    if size == SEAM_AGAIN:
        return
    if size <= 0:
        release(core, slot, 0, False)
        return
    used.bytes += size
    c.heartbeat_ms += <uint32_t>size          # what was discarded; it pings nobody any more
    if c.heartbeat_ms > core.limits.linger_limit_bytes:
        release(core, slot, 0, seam_unsent(c))
        return
    if size == RECEIVE_BYTES:
        attention_push(core, slot)


cdef int announce(Core *core, uint32_t slot, list events) except -1:
    """Give `failing` or `peer_closed`, once; the next flush queues Close."""
    cdef Connection *c = at(core, slot)
    if c.flags & ANNOUNCED:
        return 0
    events.append((
        EVENT_PEER_CLOSED if c.reason == PEER_CLOSED else EVENT_FAILING, handle_of(c, slot), c.close_code
    ))
    c.flags |= ANNOUNCED                      # after the event: making it may fail, and is tried again then
    failed_push(core, slot)
    return 0


cdef int bury(Core *core, uint32_t slot, Pass *used, list events) except -1:
    """Give `closed`, the last event, and free the slot."""
    cdef Connection *c = at(core, slot)
    cdef PyObject *meta = c.meta
    if c.flags & OPENED:
        if core.report_meta:
            events.append((EVENT_CLOSED, handle_of(c, slot), (c.reason, None if meta == NULL else <object>meta)))
        else:
            events.append((EVENT_CLOSED, handle_of(c, slot), c.reason))
        used.messages += 1
    c.meta = NULL
    table_free(core, slot)
    Py_XDECREF(meta)
    return 0


cdef void turn_failed(Core *core, uint32_t slot, int reason) noexcept nogil:
    """A turn raised, mostly for want of memory: only this connection pays for it.

    What it said is lost, so it fails. One whose end is to be reported has another turn instead.
    """
    cdef Connection *c = at(core, slot)
    if c.state == STATE_OPEN:
        fail(core, slot, reason, 0)
    elif c.state == STATE_HEAD or c.state == STATE_DECIDING:
        release(core, slot, reason, True)
    elif c.state in (STATE_FAILING, STATE_GONE):
        attention_push(core, slot)


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
