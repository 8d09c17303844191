"""What happens when a connection's timer comes due.

One timer stands for all deadlines of a connection; `nearest` computes them from the state, so nothing
has to be kept in step. Those that judge a peer's diligence are on the reactor's own clock, which stands
still during a forgiven stall. The application's deadline is not, unless it asks for it: a stall of ours
must not prolong a token. The expiry of a token is wall-clock time and follows that clock when it is set.
Whenever such a deadline may have come nearer by itself (a stall was forgiven, the wall clock stepped
forward), `deadlines_rearm` looks at every timer again, a slice in each tick.

    HEAD, DECIDING      the head or the decision has not come: an HTTP answer, then the end
    OPEN                ping, pong, idle, message completion, write stall, age of the outbox, and the
                        one deadline of the application
    CLOSING             the write deadline: reset
    LINGERING           the linger deadline: close, or reset when the peer has not taken everything; who was
                        closed for slowness has until the write timeout
"""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t

from wsgate.reactor.closing cimport deliver, end_with, fail, release, unblocked
from wsgate.reactor.outbox cimport outbox_drop_aged, outbox_end_grace, outbox_grace_end, outbox_moving_end, outbox_oldest_ms, outbox_weigh
from wsgate.reactor.pongs cimport PUSHED
from wsgate.reactor.clocks cimport clock_ns
from wsgate.reactor.socket_io cimport seam_interest, seam_queued, seam_readable, seam_unsent, seam_writable
from wsgate.reactor.structs cimport (
    AUTH_TIMEOUT, BLOCKED, CHUNK_BITS, CLASS_CONTROL, Connection, Core, TOKEN_EXPIRED, Frame, HEAD_TIMEOUT, HEARTBEAT_TIMEOUT,
    IDLE_TIMEOUT, IN_ATTENTION, IS_FORGIVEN, IS_WALL_TIME, MESSAGE_TIMEOUT, NONE, OUTBOX_AGE, OUT_OF_MEMORY, PAUSED_APP, PAUSED_OUTBOX, PINGS_OUT,
    PING_SENT, REARM_SLOTS, SLOW_CONSUMER, STATE_CLOSING, STATE_DECIDING, STATE_HEAD, STATE_LINGERING, STATE_OPEN, TICK_MS, TIMERS,
    UPGRADE_TIMEOUT, WANT_IN, WATCHED, WRITE_STALL,
)
from wsgate.reactor.table cimport at, dirty_push, kernel_holds
from wsgate.reactor.wheel cimport wheel_arm, wheel_is_due, wheel_pop

cdef enum:
    NEVER = 0x3FFFFFFFFFFFFFFF
    LOOK_MS = 25000
    PAUSED = PAUSED_APP | PAUSED_OUTBOX    # what lies unread is our doing: no clock of the peer's runs


cdef inline int64_t since(Core *core, uint32_t moment) noexcept nogil:
    """The full clock value of a moment kept as its low 32 bits (49 days back at most)."""
    return core.clock_ms - <uint32_t>(<uint32_t>core.clock_ms - moment)


cdef inline uint32_t scatter(uint32_t slot, uint32_t range_) noexcept nogil:
    """A fixed pseudo-random share of a range for each slot."""
    return <uint32_t>((<int64_t>(slot * <uint32_t>2654435761) * range_) >> 32)


cdef int64_t heartbeat_ms(Core *core, Connection *c, uint32_t slot) noexcept nogil:
    """When the next ping or the missing pong is due.

    A crowd that connected, or was last heard, in one instant must not be pinged in one: the first
    interval is spread over its second half, later ones over their last sixteenth.
    """
    cdef int64_t interval = core.limits.ping_interval_ms
    if interval == 0 or c.flags & (PAUSED | BLOCKED):
        return NEVER                          # we do not listen, or a ping could not leave
    if c.flags & PING_SENT:
        return since(core, c.heartbeat_ms) + core.limits.pong_timeout_ms
    if c.heartbeat_ms:
        return since(core, c.seen_ms) + interval - scatter(slot, <uint32_t>interval >> 4)
    return since(core, c.seen_ms) + interval - scatter(slot, <uint32_t>interval >> 1)


cdef int64_t application_at(Core *core, Connection *c) noexcept nogil:
    """The application's deadline on the reactor's clock. Only where one is set."""
    if c.application_code & IS_WALL_TIME:
        return c.application_ms - core.wall_offset_ms - core.forgiven_ms
    return c.application_ms if c.application_code & IS_FORGIVEN else c.application_ms - core.forgiven_ms


cdef int64_t nearest(Core *core, uint32_t slot) noexcept nogil:
    """The nearest deadline of a connection, or NEVER."""
    cdef Connection *c = at(core, slot)
    cdef int64_t when = NEVER
    if c.state in (STATE_HEAD, STATE_DECIDING, STATE_CLOSING, STATE_LINGERING):
        return c.deadline_ms
    if c.state != STATE_OPEN:
        return NEVER
    when = heartbeat_ms(core, c, slot)
    if c.application_ms:
        when = min(when, application_at(core, c))
    if core.limits.idle_timeout_ms and not c.flags & PAUSED:
        when = min(when, since(core, c.message_ms) + core.limits.idle_timeout_ms)
    if c.input != NULL and c.input.started_ms and core.limits.message_timeout_ms and not c.flags & PAUSED:
        when = min(when, c.input.started_ms + core.limits.message_timeout_ms)
    if c.flags & BLOCKED and c.outbox != NULL:
        when = min(when, c.outbox.blocked_ms + core.limits.write_timeout_ms)
    if is_behind(c):
        when = min(when, outbox_oldest_ms(core, c) + core.limits.outbox_age_ms)
        when = min(when, outbox_grace_end(core, c))
        when = min(when, outbox_moving_end(core, c))
    return when


cdef void deadlines_arm(Core *core, uint32_t slot) noexcept nogil:
    """See to it that the nearest deadline is noticed."""
    cdef int64_t when = nearest(core, slot)
    if when != NEVER:
        wheel_arm(core, slot, when)
    elif at(core, slot).state == STATE_OPEN:
        # Look again: a pause may have ended, and the kernel may hold something.
        wheel_arm(core, slot, core.clock_ms + (core.limits.ping_interval_ms or LOOK_MS))


cdef void deadlines_resume(Core *core, uint32_t slot) noexcept nogil:
    """Reading goes on after a pause: the peer's clocks start anew, but for that of its message.

    That one goes on: a peer that has itself paused again and again, by not reading, gains no time by it.
    """
    cdef Connection *c = at(core, slot)
    c.seen_ms = c.message_ms = <uint32_t>core.clock_ms
    if c.flags & PING_SENT:
        c.heartbeat_ms = <uint32_t>core.clock_ms | 1
    if c.input != NULL and c.input.started_ms:
        c.input.started_ms += core.clock_ms - c.input.paused_ms
    deadlines_arm(core, slot)


cdef void heartbeat(Core *core, uint32_t slot) noexcept nogil:
    """Ping a silent peer, or give it up."""
    cdef Connection *c = at(core, slot)
    if c.flags & PING_SENT:
        # Its pong may lie unread because we were late: a byte that waits is life.
        if seam_readable(c):
            c.flags &= ~PING_SENT
            c.seen_ms = <uint32_t>core.clock_ms
            return
        fail(core, slot, HEARTBEAT_TIMEOUT, 0)
        return
    c.flags |= PING_SENT
    c.heartbeat_ms = <uint32_t>core.clock_ms | 1
    core.counters[<int>PINGS_OUT] += 1
    deliver(core, slot, core.ping, CLASS_CONTROL, NONE, True)


cdef inline bint is_behind(Connection *c) noexcept nogil:
    """Whether the socket owes what waited when it was full last; see outbox.pyx."""
    return c.outbox != NULL and c.outbox.owed != 0


cdef inline bint is_stalled(Core *core, Connection *c) noexcept nogil:
    """Whether a full socket has taken no byte for a whole write deadline."""
    return (
        c.flags & BLOCKED and c.outbox != NULL and c.outbox.blocked_ms + core.limits.write_timeout_ms <= core.clock_ms
    )


cdef void due_open(Core *core, uint32_t slot) noexcept nogil:
    cdef Connection *c = at(core, slot)
    cdef int64_t now = core.clock_ms
    cdef uint16_t code = c.application_code & ~<uint16_t>(IS_WALL_TIME | IS_FORGIVEN)
    if outbox_moving_end(core, c) <= now:
        outbox_weigh(core, c)
    if c.application_ms and application_at(core, c) <= now:
        c.application_ms = 0
        # The deadline for a first token and that of a token are one field; the code tells them apart.
        fail(core, slot, AUTH_TIMEOUT if code == 4002 else TOKEN_EXPIRED, code)
    elif is_stalled(core, c) and seam_writable(c):
        # The socket takes bytes, and only we have not looked: a busy pass must not cost a reader its connection.
        unblocked(core, c)
        seam_interest(core, slot, (c.flags & WANT_IN) != 0, False)
        dirty_push(core, slot, False)
        c.outbox.blocked_ms = now
        outbox_weigh(core, c)
    elif is_stalled(core, c):
        # Not a byte for a whole write deadline: Close would not leave either.
        release(core, slot, WRITE_STALL, True)
    elif (
        is_behind(c) and outbox_oldest_ms(core, c) + core.limits.outbox_age_ms <= now
        and outbox_drop_aged(core, c) != PUSHED
    ):
        fail(core, slot, OUTBOX_AGE, 0)
    elif outbox_grace_end(core, c) <= now:
        outbox_end_grace(core, c)
    elif (
        c.input != NULL and c.input.started_ms and core.limits.message_timeout_ms and not c.flags & PAUSED
        and c.input.started_ms + core.limits.message_timeout_ms <= now
    ):
        fail(core, slot, MESSAGE_TIMEOUT, 0)
    elif core.limits.idle_timeout_ms and not c.flags & PAUSED and since(core, c.message_ms) + core.limits.idle_timeout_ms <= now:
        fail(core, slot, IDLE_TIMEOUT, 0)
    elif heartbeat_ms(core, c, slot) <= now:
        heartbeat(core, slot)


cdef inline bint may_still_read(Core *core, Connection *c) noexcept nogil:
    """Whether a lingering peer that was closed for its slowness has time left to read why.

    It has the write timeout, as it has when its Close does not fit into the socket buffer. Without this it was
    reset after a second and read no reason. Half of the places stay with others.
    """
    return (
        c.reason in (SLOW_CONSUMER, OUTBOX_AGE)
        and core.states[<int>STATE_LINGERING] * 2 <= core.limits.linger_limit_sockets
        and since(core, c.message_ms) + core.limits.write_timeout_ms > core.clock_ms
    )


cdef void due_lingering(Core *core, uint32_t slot) noexcept nogil:
    """End lingering, or look again later when the peer may still read its Close."""
    cdef Connection *c = at(core, slot)
    cdef bint holds_data = seam_unsent(c)
    if not holds_data or not may_still_read(core, c):
        release(core, slot, 0, holds_data)
        return
    kernel_holds(core, c, max(seam_queued(c), <int64_t>0))
    c.deadline_ms = min(
        core.clock_ms + max(core.limits.linger_timeout_ms, <uint32_t>TICK_MS), since(core, c.message_ms) + core.limits.write_timeout_ms
    )


cdef void ask_kernel(Core *core, Connection *c) noexcept nogil:
    """Put on the books what a socket holds that is not full: up to its buffers of somebody who does not read.

    Once an interval of the heartbeat, when its timer is looked at anyway, where more than pings was sent: 0.4 us.
    A second after a write of ASK_BYTES, because so much may fill a small window at once (writer.pyx).
    Fifty such peers held 19 KB each, booked with nothing, until their sockets were full.
    """
    cdef int64_t held
    if c.units == 0 and not c.flags & PAUSED:
        return
    held = seam_queued(c)
    if held >= 0:
        kernel_holds(core, c, held)


cdef inline Frame *shared(Frame *frame) noexcept nogil:
    """One more reference, for an owner."""
    if frame != NULL:
        frame.references += 1
    return frame


cdef void due(Core *core, uint32_t slot) noexcept nogil:
    """Act on what has come due and arm the timer for what comes next."""
    cdef Connection *c = at(core, slot)
    core.counters[<int>TIMERS] += 1
    if <int32_t>(c.control_ms - (<uint32_t>core.now_ms << 4)) < -(1 << 24):
        c.control_ms = (<uint32_t>core.now_ms << 4) - (1 << 24)    # before its 32 bits wrap, in 74 hours
    if c.state == STATE_DECIDING and not c.flags & WATCHED and seam_interest(core, slot, True, False) < 0:
        # Undecided after a tick: from now on it is noticed when the peer goes away.
        release(core, slot, OUT_OF_MEMORY, True)
    if c.state == STATE_OPEN and not c.flags & (BLOCKED | PING_SENT):
        ask_kernel(core, c)
    if nearest(core, slot) <= core.clock_ms:
        if c.state == STATE_OPEN:
            due_open(core, slot)
        elif c.state == STATE_HEAD and c.flags & IN_ATTENTION:
            # Its bytes wait for a turn: it is judged once they have been read.
            wheel_arm(core, slot, core.clock_ms + TICK_MS)
            return
        elif c.state == STATE_HEAD:
            end_with(core, slot, shared(core.head_timeout), HEAD_TIMEOUT)
        elif c.state == STATE_DECIDING:
            end_with(core, slot, shared(core.upgrade_timeout), UPGRADE_TIMEOUT)
        elif c.state == STATE_CLOSING:
            release(core, slot, 0, True)
        elif c.state == STATE_LINGERING:
            due_lingering(core, slot)
    deadlines_arm(core, slot)


cdef bint deadlines_run(Core *core, int64_t until_ns) noexcept nogil:
    """Look at the timers that came due until the time is over; True when more wait."""
    cdef uint32_t slot
    cdef int look = 0
    while True:
        slot = wheel_pop(core)
        if slot == NONE:
            return False
        due(core, slot)
        look += 1
        if look & 63 == 0 and clock_ns() >= until_ns:
            return wheel_is_due(core)


cdef void deadlines_rearm(Core *core) noexcept nogil:
    """Look at the next slice of timers again, because a deadline may have come nearer. Call it every tick.

    A timer is only ever armed for a nearer deadline here, so looking too often costs time and nothing else.
    """
    cdef uint32_t slots = core.chunk_count << CHUNK_BITS, looks
    for looks in range(<uint32_t>REARM_SLOTS):
        if core.rearm_slot >= slots:
            core.rearm_slot = NONE
            return
        if at(core, core.rearm_slot).state == STATE_OPEN:
            deadlines_arm(core, core.rearm_slot)
        core.rearm_slot += 1
