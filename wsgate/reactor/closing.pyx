"""How a connection ends, step by step.

The path of a connection that ends (states and diagram in structs.pxd):

    fail         OPEN -> FAILING: a fault was found, or the peer's Close. The event is reported first. The
                 next flush then calls queue_close, so that Close follows the replies sent meanwhile.
    queue_close  FAILING -> CLOSING: queue the `bye` message if there is one, then Close.
    begin_close  OPEN -> CLOSING when the application closes the connection.
    end_with     HEAD, DECIDING -> CLOSING: send an HTTP response instead of frames.
    all_written  CLOSING: the last byte is written. Wait for the peer's Close, or linger.
    linger       CLOSING -> LINGERING: shut the write side and discard input, because closing a socket
                 with unread input makes the kernel reset it before the peer has read the response.
    release      any -> GONE: release everything; only the `closed` event remains to be reported.

Memory that the kernel holds for a connection stays charged until the descriptor is closed. A peer that has
not taken everything when the linger timeout ends is reset, so that the kernel frees the data. A peer that was
closed because it was slow has until the write timeout instead, as if its Close still waited in the outbox. If
a socket is closed earlier, or does not linger because too many do, the kernel keeps the data for ORPHAN_MS;
meanwhile the account of orphans is charged with them.

The first reason given to a connection is the one that is counted; later ones are ignored.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from wsgate.reactor.addresses cimport address_leave
from wsgate.reactor.channels cimport channel_unsubscribe_all
from wsgate.reactor.frames cimport frame_close, frame_release
from wsgate.reactor.outbox cimport outbox_close, outbox_discard, outbox_push
from wsgate.reactor.pacing cimport pacing_weigh
from wsgate.reactor.partial cimport partial_close
from wsgate.reactor.pongs cimport PUSHED
from wsgate.reactor.socket_io cimport (
    socket_close, socket_interest, socket_orphan, socket_queued, socket_shut_write,
)
from wsgate.reactor.structs cimport (
    BLOCKED, BYTE_RATE, Bye, CLASS_CONTROL, CLASS_RESPONSE, CLOSE_QUEUED, CONTROL_RATE, Connection, Core,
    TOKEN_EXPIRED, END_AFTER_WRITE, Frame, HEARTBEAT_TIMEOUT, IDLE_TIMEOUT, INTERNAL,
    INVALID_DEFLATE, INVALID_UTF8, LINGERS_SKIPPED, MESSAGE_RATE, MESSAGE_TIMEOUT, MESSAGE_TOO_BIG, NONE,
    ORPHAN_TICKS, OUTBOX_AGE, OUT_OF_MEMORY, PARTIAL_BYTES, PAUSED_APP, PAUSED_OUTBOX,
    PEER_CLOSED, PEER_CLOSE_SEEN, PROTOCOL_ERROR, RUSH_STEP, SHED, SHUTDOWN, SLOW_CONSUMER, STATE_CLOSING,
    STATE_FAILING, STATE_GONE, STATE_HEAD, STATE_LINGERING, STATE_OPEN, TOO_MANY_FRAGMENTS, WANT_OUT,
    WRITE_STALL,
)
from wsgate.reactor.table cimport (
    at, attention_push, dirty_push, dirty_remove, enter, heads_remove, kernel_holds,
)
from wsgate.reactor.users cimport user_leave
from wsgate.reactor.wheel cimport wheel_arm, wheel_disarm


cdef enum:
    ORPHAN_BYTES = 2400          # the kernel's socket after its file is gone


cdef uint16_t close_code_of(int reason) noexcept nogil:
    """Return the close code for a fault that the reactor finds itself.

    The same table is in wsgate/reasons.py.
    """
    if reason in (PROTOCOL_ERROR, INVALID_DEFLATE):
        return 1002
    if reason == INVALID_UTF8:
        return 1007
    if reason == MESSAGE_TOO_BIG:
        return 1009
    if reason in (TOO_MANY_FRAGMENTS, CONTROL_RATE, MESSAGE_TIMEOUT):
        return 1008
    if reason in (MESSAGE_RATE, BYTE_RATE):
        return 4029
    if reason == HEARTBEAT_TIMEOUT:
        return 4008
    if reason == IDLE_TIMEOUT:
        return 4003
    if reason in (SLOW_CONSUMER, OUTBOX_AGE, WRITE_STALL):
        return 4010
    if reason == PARTIAL_BYTES:
        return 1013
    if reason == SHED:
        return 4013
    if reason == OUT_OF_MEMORY:
        return 1011
    if reason == SHUTDOWN:
        return 4012
    if reason == TOKEN_EXPIRED:
        return 4001
    return 4050 if reason == INTERNAL else 1000


cdef void fail(Core *core, uint32_t slot, int reason, uint16_t code) noexcept nogil:
    """Stop an open connection because of a fault or the peer's Close; `code` 0 means the reason's own code.

    In state CLOSING only want of memory and a write stall matter: the connection is then reset. In every
    other state nothing is done.
    """
    cdef Connection *c = at(core, slot)
    if c.state == STATE_CLOSING and reason != PEER_CLOSED:
        if reason in (OUT_OF_MEMORY, WRITE_STALL):
            release(core, slot, reason, True)
        return
    if c.state != STATE_OPEN:
        return
    c.reason = <uint8_t>reason
    c.close_code = code if code else close_code_of(reason)
    enter(core, c, STATE_FAILING)
    # Nothing more is parsed, so unfinished input can be released.
    partial_close(core, c)
    # For these reasons the outbox is emptied now: the peer receives only a frame that is half written, the
    # bye and Close.
    if reason in (SLOW_CONSUMER, OUTBOX_AGE, OUT_OF_MEMORY, SHED):
        outbox_discard(core, c)
    pacing_weigh(core, c)
    if reason != PEER_CLOSED:
        c.flags |= END_AFTER_WRITE
    attention_push(core, slot)


cdef Bye *bye_for(Core *core, uint16_t close_code, int reason, int rank) noexcept nogil:
    """Return the bye message of a close code, reason and rank, made empty if there is none.

    NULL without memory.
    """
    cdef uint32_t index
    cdef Bye *grown
    for index in range(core.bye_count):
        if (
            core.byes[index].close_code == close_code and core.byes[index].reason == reason
            and core.byes[index].rank == rank
        ):
            return &core.byes[index]
    grown = <Bye *>malloc((core.bye_count + 1) * sizeof(Bye))
    if grown == NULL:
        return NULL
    if core.bye_count:
        memcpy(grown, core.byes, core.bye_count * sizeof(Bye))
    free(core.byes)
    core.byes = grown
    memset(&grown[core.bye_count], 0, sizeof(Bye))
    grown[core.bye_count].close_code = close_code
    grown[core.bye_count].reason = <uint8_t>reason
    grown[core.bye_count].rank = <uint8_t>rank
    core.bye_count += 1
    return &grown[core.bye_count - 1]


cdef uint32_t rank_of(Core *core, int reason) noexcept nogil:
    """Count a close for this reason and return how many thousand preceded it in the same second.

    Clients that are closed for one reason within one second would all reconnect within one second. A bye of a
    higher rank names a later time, so that they reconnect at a thousand a second.
    """
    cdef int64_t second = core.clock_ms // 1000
    if core.rush_second != second:
        core.rush_second = second
        memset(core.rush, 0, sizeof(core.rush))
    core.rush[reason] += 1
    return (core.rush[reason] - 1) // RUSH_STEP


cdef void queue_close(Core *core, uint32_t slot) noexcept nogil:
    """Queue the `bye` message, if one is set, and Close behind the replies of a failing connection.

    A bye for the reason is preferred to one for the close code alone. Of several ranks, the highest that is
    not above the rank of this close is used.
    """
    cdef Connection *c = at(core, slot)
    cdef Frame *frame = NULL
    cdef Bye *bye
    cdef uint32_t index, rank = 0
    cdef int best = -1
    if c.reason != PEER_CLOSED:
        if core.bye_count:
            rank = rank_of(core, c.reason)
        for index in range(core.bye_count):
            bye = &core.byes[index]
            if bye.close_code != c.close_code or bye.frames[c.variant] == NULL:
                continue
            if bye.rank > rank:
                continue
            if (bye.reason == c.reason and bye.rank > best) or (bye.reason == 0 and frame == NULL):
                frame = bye.frames[c.variant]
                if bye.reason == c.reason:
                    best = bye.rank
        if frame != NULL:
            outbox_push(core, c, frame, CLASS_CONTROL, NONE)
    frame = frame_close(core, c.close_code, NULL, 0)
    send_last(core, slot, frame, CLASS_CONTROL)


cdef void send_last(Core *core, uint32_t slot, Frame *frame, int klass) noexcept nogil:
    """Queue the frame that ends the stream and start the write deadline; the caller's reference is consumed.

    Without a frame, or without memory for its entry, the connection is reset.
    """
    cdef Connection *c = at(core, slot)
    cdef int outcome
    if frame == NULL:
        release(core, slot, OUT_OF_MEMORY, True)
        return
    outcome = outbox_push(core, c, frame, klass, NONE)
    frame_release(core, frame)
    if outcome != PUSHED:
        release(core, slot, OUT_OF_MEMORY, True)
        return
    if c.state != STATE_CLOSING:
        enter(core, c, STATE_CLOSING)
    pacing_weigh(core, c)
    c.flags |= CLOSE_QUEUED
    c.deadline_ms = core.clock_ms + core.limits.write_timeout_ms
    wheel_arm(core, slot, c.deadline_ms)
    if not c.flags & BLOCKED:
        dirty_push(core, slot, True)


cdef void begin_close(
    Core *core, uint32_t slot, uint16_t code, const uint8_t *text, uint32_t size, int reason
) noexcept nogil:
    """Close an open connection with this code and text, behind everything in its outbox."""
    cdef Connection *c = at(core, slot)
    c.reason = <uint8_t>reason
    c.close_code = code
    # Nothing is delivered any more, so a pause has no purpose; the peer's Close must still be read.
    c.flags &= ~(PAUSED_APP | PAUSED_OUTBOX)
    socket_interest(core, slot, True, (c.flags & WANT_OUT) != 0)
    attention_push(core, slot)
    send_last(core, slot, frame_close(core, code, text, size), CLASS_CONTROL)


cdef void end_with(Core *core, uint32_t slot, Frame *frame, int reason) noexcept nogil:
    """Answer a request head with an HTTP response and end the connection; NULL ends it without a response.

    The caller's reference to the frame is consumed.
    """
    cdef Connection *c = at(core, slot)
    c.reason = <uint8_t>reason
    c.flags |= END_AFTER_WRITE
    partial_close(core, c)
    if frame == NULL:
        release(core, slot, reason, False)
        return
    if c.state == STATE_HEAD:
        heads_remove(core, slot)
        enter(core, c, STATE_CLOSING)
    send_last(core, slot, frame, CLASS_RESPONSE)


cdef void all_written(Core *core, uint32_t slot) noexcept nogil:
    """Take the next step after the outbox was written to its end and Close was its last entry.

    Linger if the peer's Close has come or is not awaited; otherwise wait for it.
    """
    cdef Connection *c = at(core, slot)
    if c.flags & (END_AFTER_WRITE | PEER_CLOSE_SEEN):
        linger(core, slot)
    else:
        kernel_holds(core, c, max(socket_queued(c), <int64_t>0))


cdef void linger(Core *core, uint32_t slot) noexcept nogil:
    """Shut the write side and discard input until the peer ends too, limited in time and bytes."""
    cdef Connection *c = at(core, slot)
    if core.states[<int>STATE_LINGERING] >= core.limits.linger_limit_sockets:
        core.counters[<int>LINGERS_SKIPPED] += 1
        release(core, slot, c.reason, False)
        return
    socket_shut_write(c)
    kernel_holds(core, c, max(socket_queued(c), <int64_t>0))
    enter(core, c, STATE_LINGERING)
    c.heartbeat_ms = 0                        # from here on: the bytes that were discarded
    c.message_ms = <uint32_t>core.clock_ms    # from here on: when lingering began
    partial_close(core, c)
    if socket_interest(core, slot, True, False) < 0:
        release(core, slot, c.reason, False)
        return
    c.deadline_ms = core.clock_ms + core.limits.linger_timeout_ms
    wheel_arm(core, slot, c.deadline_ms)
    attention_push(core, slot)


cdef void note_orphan(Core *core, Connection *c) noexcept nogil:
    """Charge the account of orphans with a socket that is closed with unsent data."""
    cdef uint64_t held = <uint64_t>max(socket_queued(c), <int64_t>0) + ORPHAN_BYTES
    core.orphan_bytes += held
    core.orphans[core.orphan_tick] += held


cdef void orphans_tick(Core *core) noexcept nogil:
    """Remove from the account of orphans what was closed ORPHAN_TICKS ago; call it once in each tick.

    The kernel has freed those sockets by then.
    """
    core.orphan_tick = (core.orphan_tick + 1) % ORPHAN_TICKS
    core.orphan_bytes -= core.orphans[core.orphan_tick]
    core.orphans[core.orphan_tick] = 0


cdef void unblocked(Core *core, Connection *c) noexcept nogil:
    """Clear the blocked mark of a socket, and the charge for what the kernel held in it."""
    c.flags &= ~BLOCKED
    core.blocked -= 1
    kernel_holds(core, c, 0)


cdef void release(Core *core, uint32_t slot, int reason, bint reset) noexcept nogil:
    """Close a connection's socket and release everything but its slot, which waits for the `closed` event.

    With `reset` the kernel drops unsent data and resets the peer.
    """
    cdef Connection *c = at(core, slot)
    if c.state == STATE_GONE:
        return
    if c.reason == 0:
        c.reason = <uint8_t>reason
    core.ended[c.reason] += 1
    wheel_disarm(core, slot)
    if c.state == STATE_HEAD:
        heads_remove(core, slot)
    dirty_remove(core, slot)
    user_leave(core, slot)
    channel_unsubscribe_all(core, slot)
    outbox_close(core, c)
    partial_close(core, c)
    if c.flags & BLOCKED:
        unblocked(core, c)
    kernel_holds(core, c, 0)
    # After a plain close the kernel still keeps unsent data, for ORPHAN_MS at most; charge it until then.
    if not reset and socket_orphan(c.fd):
        note_orphan(core, c)
    if core.addresses.journal != NULL:
        address_leave(core, slot)
    socket_close(core, c, reset)
    enter(core, c, STATE_GONE)
    attention_push(core, slot)
