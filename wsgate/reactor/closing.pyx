"""How a connection ends, and what is put in its outbox on the way.

The one path out (states and diagram in structs.pxd):

    fail         OPEN -> FAILING: a fault, or the peer's Close. The event is given first, then the
                 next flush calls queue_close, so that Close follows the answers made meanwhile.
    queue_close  FAILING -> CLOSING: `bye` if there is one, then Close.
    begin_close  OPEN -> CLOSING at the application's wish.
    end_with     HEAD, DECIDING -> CLOSING: an HTTP answer instead of frames.
    all_written  CLOSING: the last byte is out. Wait for the peer's Close, or linger.
    linger       CLOSING -> LINGERING: the write side is shut and input discarded, because a plain
                 close with unread input resets the peer before it has read why.
    release      any -> GONE: everything is given back; only the `closed` event is still owed.

What the kernel holds for a connection stays on its account until the descriptor is closed. A peer that has not
taken everything when the linger timeout is over is reset, so that the kernel gives the data up. If it is closed
because it was slow, it has until the write timeout, as if its Close still waited in the outbox. If a socket is
closed before, or did not linger because too many do, the kernel keeps the data for ORPHAN_MS, and it is on the
account of orphans meanwhile.

The first reason given is the reason; later ones of the same connection are not counted.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from wsgate.reactor.addresses cimport address_leave
from wsgate.reactor.channels cimport channel_unsubscribe_all
from wsgate.reactor.frames cimport frame_close, frame_release
from wsgate.reactor.outbox cimport (
    outbox_close, outbox_close_empty, outbox_discard, outbox_moving_end, outbox_over_half, outbox_push, outbox_weigh,
)
from wsgate.reactor.partial cimport partial_close
from wsgate.reactor.pongs cimport PUSHED, PUSH_OVERFLOW
from wsgate.reactor.socket_io cimport (
    seam_close, seam_interest, seam_orphan, seam_queued, seam_shut_write,
)
from wsgate.reactor.structs cimport (
    BLOCKED, BYTE_RATE, Bye, CLASS_CONTROL, CLASS_RESPONSE, CLOSE_QUEUED, CONTROL_RATE, Connection, Core,
    TOKEN_EXPIRED, DROPPED_CLOSING, END_AFTER_WRITE, Frame, HEARTBEAT_TIMEOUT, IDLE_TIMEOUT, INTERNAL, INVALID_DEFLATE,
    INVALID_UTF8, LINGERS_SKIPPED, MESSAGE_RATE, MESSAGE_TIMEOUT, MESSAGE_TOO_BIG, NONE, ORPHAN_TICKS, OUTBOX_AGE,
    OUT_OF_MEMORY, PACE_MOVING, PARTIAL_BYTES, PAUSED_APP, PAUSED_OUTBOX, PEER_CLOSED, PEER_CLOSE_SEEN, PROTOCOL_ERROR,
    RUSH_STEP, SHED, SHUTDOWN, SLOW_CONSUMER, STATE_CLOSING, STATE_FAILING, STATE_GONE, STATE_HEAD, STATE_LINGERING, STATE_OPEN,
    TOO_MANY_FRAGMENTS, WANT_OUT, WRITE_STALL,
)
from wsgate.reactor.table cimport (
    at, attention_push, dirty_push, dirty_remove, enter, heads_remove, kernel_holds, note_pause,
)
from wsgate.reactor.users cimport user_leave
from wsgate.reactor.wheel cimport wheel_arm, wheel_disarm


cdef enum:
    ORPHAN_BYTES = 2400          # a socket of the kernel without its file


cdef uint16_t close_code_of(int reason) noexcept nogil:
    """The close code of a fault the reactor finds itself; the table is wsgate/reasons.py."""
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


cdef int deliver(
    Core *core, uint32_t slot, Frame *frame, int klass, uint32_t channel, bint urgent
) noexcept nogil:
    """Queue a frame for a connection; 1 when queued, 0 when that ended the connection instead.

    Takes its own reference. A publication dropped by its channel's policy counts as queued: its gap is.
    """
    cdef Connection *c = at(core, slot)
    cdef int outcome = outbox_push(core, c, frame, klass, channel)
    if outcome != PUSHED:
        if c.state != STATE_OPEN:
            core.counters[<int>DROPPED_CLOSING] += 1
            outbox_close_empty(core, c)       # it may have been made for this frame
        fail(core, slot, SLOW_CONSUMER if outcome == PUSH_OVERFLOW else OUT_OF_MEMORY, 0)
        return 0
    if not c.flags & BLOCKED:
        dirty_push(core, slot, urgent)
    elif c.state == STATE_OPEN:
        wheel_arm(core, slot, core.clock_ms + core.limits.outbox_age_ms)
    if not c.flags & PAUSED_OUTBOX and outbox_over_half(core, c):
        if not c.flags & PAUSED_APP:
            note_pause(core, c)
        c.flags |= PAUSED_OUTBOX
        outbox_weigh(core, c)
        if c.outbox.pace == PACE_MOVING:
            wheel_arm(core, slot, outbox_moving_end(core, c))
    return 1


cdef void fail(Core *core, uint32_t slot, int reason, uint16_t code) noexcept nogil:
    """End an open connection; `code` 0 means the reason's own.

    Outside OPEN there is nobody to tell: a connection that is closing already goes on to linger.
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
    # Unfinished input will never be finished.
    partial_close(core, c)
    if reason in (SLOW_CONSUMER, OUTBOX_AGE, OUT_OF_MEMORY, SHED):
        outbox_discard(core, c)
    outbox_weigh(core, c)
    if reason != PEER_CLOSED:
        c.flags |= END_AFTER_WRITE
    attention_push(core, slot)


cdef uint32_t rank_of(Core *core, int reason) noexcept nogil:
    """How many thousand byes of this reason were queued in this second; counts one more.

    Clients that end for one reason in one second would come back in one second too. Byes of a higher rank
    name a later time, so that they come back a thousand a second.
    """
    cdef int64_t second = core.clock_ms // 1000
    if core.rush_second != second:
        core.rush_second = second
        memset(core.rush, 0, sizeof(core.rush))
    core.rush[reason] += 1
    return (core.rush[reason] - 1) // RUSH_STEP


cdef void queue_close(Core *core, uint32_t slot) noexcept nogil:
    """Put `bye`, if one is set, and Close behind the answers. The bye of the reason outranks the code's.

    Of several ranks the highest counts that is not above the rank of this Close.
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
    """Queue the frame that ends the stream, and let the write deadline run. Owns the reference."""
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
    outbox_weigh(core, c)
    c.flags |= CLOSE_QUEUED
    c.deadline_ms = core.clock_ms + core.limits.write_timeout_ms
    wheel_arm(core, slot, c.deadline_ms)
    if not c.flags & BLOCKED:
        dirty_push(core, slot, True)


cdef void begin_close(
    Core *core, uint32_t slot, uint16_t code, const uint8_t *text, uint32_t size, int reason
) noexcept nogil:
    """Close an open connection after what waits in its outbox."""
    cdef Connection *c = at(core, slot)
    c.reason = <uint8_t>reason
    c.close_code = code
    # Whoever paused it is done with it; the peer's Close is still to be read.
    c.flags &= ~(PAUSED_APP | PAUSED_OUTBOX)
    seam_interest(core, slot, True, (c.flags & WANT_OUT) != 0)
    attention_push(core, slot)
    send_last(core, slot, frame_close(core, code, text, size), CLASS_CONTROL)


cdef void end_with(Core *core, uint32_t slot, Frame *frame, int reason) noexcept nogil:
    """Answer a head with these bytes (owned; NULL: with nothing) and end."""
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
    """The outbox is empty and Close was its last entry."""
    cdef Connection *c = at(core, slot)
    if c.flags & (END_AFTER_WRITE | PEER_CLOSE_SEEN):
        linger(core, slot)
    else:
        kernel_holds(core, c, max(seam_queued(c), <int64_t>0))


cdef void linger(Core *core, uint32_t slot) noexcept nogil:
    """Shut the write side and discard input until the peer ends too, bounded in time and bytes."""
    cdef Connection *c = at(core, slot)
    if core.states[<int>STATE_LINGERING] >= core.limits.linger_limit_sockets:
        core.counters[<int>LINGERS_SKIPPED] += 1
        release(core, slot, c.reason, False)
        return
    seam_shut_write(c)
    kernel_holds(core, c, max(seam_queued(c), <int64_t>0))
    enter(core, c, STATE_LINGERING)
    c.heartbeat_ms = 0                        # counts what is discarded from here on
    c.message_ms = <uint32_t>core.clock_ms    # when lingering began
    partial_close(core, c)
    if seam_interest(core, slot, True, False) < 0:
        release(core, slot, c.reason, False)
        return
    c.deadline_ms = core.clock_ms + core.limits.linger_timeout_ms
    wheel_arm(core, slot, c.deadline_ms)
    attention_push(core, slot)


cdef void note_orphan(Core *core, Connection *c) noexcept nogil:
    """Put a socket that is closed with unsent data on the account of orphans."""
    cdef uint64_t held = <uint64_t>max(seam_queued(c), <int64_t>0) + ORPHAN_BYTES
    core.orphan_bytes += held
    core.orphans[core.orphan_tick] += held


cdef void orphans_tick(Core *core) noexcept nogil:
    """Call once a tick: what was closed ORPHAN_TICKS ago is gone from the kernel."""
    core.orphan_tick = (core.orphan_tick + 1) % ORPHAN_TICKS
    core.orphan_bytes -= core.orphans[core.orphan_tick]
    core.orphans[core.orphan_tick] = 0


cdef void unblocked(Core *core, Connection *c) noexcept nogil:
    """A full socket takes bytes again, or is gone: what it held is off the books."""
    c.flags &= ~BLOCKED
    core.blocked -= 1
    kernel_holds(core, c, 0)


cdef void release(Core *core, uint32_t slot, int reason, bint reset) noexcept nogil:
    """Give back everything but the slot, which waits for the `closed` event."""
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
    if not reset and seam_orphan(c.fd):
        note_orphan(core, c)
    if core.addresses.journal != NULL:
        address_leave(core, slot)
    seam_close(core, c, reset)
    enter(core, c, STATE_GONE)
    attention_push(core, slot)
