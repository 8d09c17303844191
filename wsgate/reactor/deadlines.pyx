"""The deadlines of connections, and what happens when a connection's timer expires.

One timer stands for all deadlines of a connection. `nearest` computes them from the state each time, so that
no second copy must be kept up to date. Deadlines that apply to a peer are on the reactor's own clock, which
stands still during a forgiven stall of this process. The application's deadline moves with a stall only if
the application wants that, because a stall must not prolong a token. The expiry of a token is wall-clock time
and follows that clock when it is set. Whenever such a deadline may have come nearer (a stall was forgiven, or
the wall clock stepped forward), `deadlines_rearm` computes all timers anew, some of them in each tick.

    HEAD, DECIDING      the head or the decision has not come: send an HTTP response and end
    OPEN                ping, pong, idle time, end of a message, write stall, age of the outbox, end of a
                        grace, and the one deadline of the application
    CLOSING             the write deadline: reset
    LINGERING           the linger deadline: close, or reset if the peer has not taken everything; a peer
                        that was closed because it was slow has until the write timeout
"""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t

from wsgate.reactor.clocks cimport clock_ns
from wsgate.reactor.closing cimport end_with, fail, release, unblocked
from wsgate.reactor.delivery cimport deliver
from wsgate.reactor.outbox cimport outbox_drop_aged, outbox_oldest_ms
from wsgate.reactor.pacing cimport pacing_end_grace, pacing_grace_end, pacing_moving_end, pacing_weigh
from wsgate.reactor.pongs cimport PUSHED
from wsgate.reactor.socket_io cimport socket_interest, socket_queued, socket_readable, socket_unsent, socket_writable
from wsgate.reactor.structs cimport (
    AUTH_TIMEOUT, BLOCKED, CHUNK_BITS, CLASS_CONTROL, Connection, Core, TOKEN_EXPIRED, Frame, HEAD_TIMEOUT,
    HEARTBEAT_TIMEOUT, IDLE_TIMEOUT, IN_ATTENTION, IS_FORGIVEN, IS_WALL_TIME, MESSAGE_TIMEOUT, NONE,
    OUTBOX_AGE, OUT_OF_MEMORY, PAUSED_APP, PAUSED_OUTBOX, PINGS_OUT, PING_SENT, REARM_SLOTS, SLOW_CONSUMER,
    STATE_CLOSING, STATE_DECIDING, STATE_HEAD, STATE_LINGERING, STATE_OPEN, TICK_MS, TIMERS, UPGRADE_TIMEOUT,
    WANT_IN, WATCHED, WRITE_STALL,
)
from wsgate.reactor.table cimport at, attention_push, dirty_push, kernel_holds
from wsgate.reactor.wheel cimport wheel_arm, wheel_is_due, wheel_pop

cdef enum:
    NEVER = 0x3FFFFFFFFFFFFFFF
    # How long the timer of an open connection without any deadline runs, if there is no heartbeat.
    LOOK_MS = 25000
    PAUSED = PAUSED_APP | PAUSED_OUTBOX    # nothing is read, so no deadline of the peer may run


cdef inline int64_t since(Core *core, uint32_t moment) noexcept nogil:
    """Restore the full clock value of a moment that is stored as its low 32 bits.

    The moment must be at most 49 days ago.
    """
    return core.clock_ms - <uint32_t>(<uint32_t>core.clock_ms - moment)


cdef inline uint32_t scatter(uint32_t slot, uint32_t range_) noexcept nogil:
    """Return a share of a range that looks random but is fixed for each slot."""
    return <uint32_t>((<int64_t>(slot * <uint32_t>2654435761) * range_) >> 32)


cdef int64_t heartbeat_ms(Core *core, Connection *c, uint32_t slot) noexcept nogil:
    """Return when the next ping of a connection, or the pong that it owes, is due.

    Many connections that were opened, or last heard from, in the same instant must not be pinged in one. So
    the first ping is spread over the second half of the interval, and later pings over its last sixteenth.
    """
    cdef int64_t interval = core.limits.ping_interval_ms
    if interval == 0 or c.flags & (PAUSED | BLOCKED):
        return NEVER                          # nothing is read, or a ping could not be written
    if c.flags & PING_SENT:
        return since(core, c.heartbeat_ms) + core.limits.pong_timeout_ms
    if c.heartbeat_ms:
        return since(core, c.seen_ms) + interval - scatter(slot, <uint32_t>interval >> 4)
    return since(core, c.seen_ms) + interval - scatter(slot, <uint32_t>interval >> 1)


cdef int64_t application_at(Core *core, Connection *c) noexcept nogil:
    """Return when the application's deadline is due on the reactor's clock.

    Only for a connection that has one.
    """
    if c.application_code & IS_WALL_TIME:
        return c.application_ms - core.wall_offset_ms - core.forgiven_ms
    return c.application_ms if c.application_code & IS_FORGIVEN else c.application_ms - core.forgiven_ms


cdef int64_t nearest(Core *core, uint32_t slot) noexcept nogil:
    """Compute the earliest of a connection's deadlines, on the reactor's clock; NEVER if it has none."""
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
        when = min(when, pacing_grace_end(core, c))
        when = min(when, pacing_moving_end(core, c))
    return when


cdef void deadlines_arm(Core *core, uint32_t slot) noexcept nogil:
    """Arm a connection's timer for its nearest deadline."""
    cdef int64_t when = nearest(core, slot)
    if when != NEVER:
        wheel_arm(core, slot, when)
    elif at(core, slot).state == STATE_OPEN:
        # Check again later: a pause may have ended, and the kernel may hold unread or unsent bytes.
        wheel_arm(core, slot, core.clock_ms + (core.limits.ping_interval_ms or LOOK_MS))


cdef uint32_t ping_stamp(Core *core) noexcept nogil:
    """Return the present as a value for `Connection.heartbeat_ms`: never 0, and never in the future.

    A stamp 1 ms ahead would be 49 days in the past for `since`, and the pong would be overdue at once.
    """
    return <uint32_t>(core.clock_ms - 1) | 1


cdef void deadlines_resume(Core *core, uint32_t slot) noexcept nogil:
    """Restart the peer's deadlines after reading was paused; that of an unfinished message continues.

    The message's deadline moves by the length of the pause only, so that a peer which causes pauses by not
    reading gains no time.
    """
    cdef Connection *c = at(core, slot)
    c.seen_ms = c.message_ms = <uint32_t>core.clock_ms
    if c.flags & PING_SENT:
        c.heartbeat_ms = ping_stamp(core)
    if c.input != NULL and c.input.started_ms:
        c.input.started_ms += core.clock_ms - c.input.paused_ms
    deadlines_arm(core, slot)


cdef void heartbeat(Core *core, uint32_t slot) noexcept nogil:
    """Send a ping to a silent peer, or close the connection if the last ping is unanswered."""
    cdef Connection *c = at(core, slot)
    if c.flags & PING_SENT:
        # The pong may be unread because this process was late: an unread byte shows that the peer is alive.
        if socket_readable(c):
            c.flags &= ~PING_SENT
            c.seen_ms = <uint32_t>core.clock_ms
            return
        fail(core, slot, HEARTBEAT_TIMEOUT, 0)
        return
    c.flags |= PING_SENT
    c.heartbeat_ms = ping_stamp(core)
    core.counters[<int>PINGS_OUT] += 1
    deliver(core, slot, core.ping, CLASS_CONTROL, NONE, True)


cdef inline bint is_behind(Connection *c) noexcept nogil:
    """Whether a connection's socket has not yet taken what waited when it was last full; see outbox.pyx."""
    return c.outbox != NULL and c.outbox.owed != 0


cdef inline bint is_too_old(Core *core, Connection *c) noexcept nogil:
    """Whether a connection is behind and the oldest entry of its outbox is over the age limit."""
    return is_behind(c) and outbox_oldest_ms(core, c) + core.limits.outbox_age_ms <= core.clock_ms


cdef inline bint may_have_come(Core *core, Connection *c, int64_t due_ms) noexcept nogil:
    """Whether bytes of the peer wait unread that may have arrived before a deadline at `due_ms`.

    They are read first, and the deadline is looked at again in the next step. By then bytes were received
    after the deadline, so a peer that sends byte by byte gains no more than the wait for its turn.
    """
    return since(core, c.seen_ms) < due_ms and (
        (c.flags & IN_ATTENTION) != 0 or (c.input != NULL and c.input.backlog.length != 0) or socket_readable(c)
    )


cdef inline bint is_stalled(Core *core, Connection *c) noexcept nogil:
    """Whether a full socket has taken no byte within the write timeout."""
    return (
        c.flags & BLOCKED and c.outbox != NULL
        and c.outbox.blocked_ms + core.limits.write_timeout_ms <= core.clock_ms
    )


cdef void due_open(Core *core, uint32_t slot) noexcept nogil:
    """Act on the first deadline of an open connection that has passed."""
    cdef Connection *c = at(core, slot)
    cdef int64_t now = core.clock_ms
    cdef uint16_t code = c.application_code & ~<uint16_t>(IS_WALL_TIME | IS_FORGIVEN)
    if pacing_moving_end(core, c) <= now:
        pacing_weigh(core, c)
    if c.application_ms and application_at(core, c) <= now:
        c.application_ms = 0
        # The deadline for the first token and the expiry of a token share one field; the code distinguishes
        # them.
        fail(core, slot, AUTH_TIMEOUT if code == 4002 else TOKEN_EXPIRED, code)
    elif is_stalled(core, c) and socket_writable(c):
        # The socket takes bytes and only this process has not noticed. A busy pass must not close such a
        # connection.
        unblocked(core, c)
        socket_interest(core, slot, (c.flags & WANT_IN) != 0, False)
        dirty_push(core, slot, False)
        c.outbox.blocked_ms = now
        pacing_weigh(core, c)
    elif is_stalled(core, c):
        # The socket has taken no byte within the write timeout, so a Close frame would not leave either.
        release(core, slot, WRITE_STALL, True)
    elif is_too_old(core, c) and outbox_drop_aged(core, c) != PUSHED:
        fail(core, slot, OUTBOX_AGE, 0)
    elif pacing_grace_end(core, c) <= now:
        pacing_end_grace(core, c)
    elif (
        c.input != NULL and c.input.started_ms and core.limits.message_timeout_ms and not c.flags & PAUSED
        and c.input.started_ms + core.limits.message_timeout_ms <= now
    ):
        if may_have_come(core, c, c.input.started_ms + core.limits.message_timeout_ms):
            attention_push(core, slot)
        else:
            fail(core, slot, MESSAGE_TIMEOUT, 0)
    elif core.limits.idle_timeout_ms and not c.flags & PAUSED and since(core, c.message_ms) + core.limits.idle_timeout_ms <= now:
        if may_have_come(core, c, since(core, c.message_ms) + core.limits.idle_timeout_ms):
            attention_push(core, slot)
        else:
            fail(core, slot, IDLE_TIMEOUT, 0)
    elif heartbeat_ms(core, c, slot) <= now:
        heartbeat(core, slot)


cdef inline bint may_still_read(Core *core, Connection *c) noexcept nogil:
    """Whether a lingering peer that was closed because it was slow has time left to read the reason.

    Such a peer has the write timeout, as it has when its Close does not fit into the socket buffer. With the
    linger timeout alone it was reset after a second and read no reason. Half of the places for lingering
    sockets stay free for other peers.
    """
    return (
        c.reason in (SLOW_CONSUMER, OUTBOX_AGE)
        and core.states[<int>STATE_LINGERING] * 2 <= core.limits.linger_limit_sockets
        and since(core, c.message_ms) + core.limits.write_timeout_ms > core.clock_ms
    )


cdef void due_lingering(Core *core, uint32_t slot) noexcept nogil:
    """End a lingering connection, or set a later deadline if the peer may still read its Close."""
    cdef Connection *c = at(core, slot)
    cdef bint holds_data = socket_unsent(c)
    if not holds_data or not may_still_read(core, c):
        release(core, slot, 0, holds_data)
        return
    kernel_holds(core, c, max(socket_queued(c), <int64_t>0))
    c.deadline_ms = min(
        core.clock_ms + max(core.limits.linger_timeout_ms, <uint32_t>TICK_MS),
        since(core, c.message_ms) + core.limits.write_timeout_ms
    )


cdef void ask_kernel(Core *core, Connection *c) noexcept nogil:
    """Charge a connection for what the kernel holds in a socket that is not full.

    A peer that does not read can fill the buffers of the kernel before its socket is full. The query takes
    0.4 us. It is made when the timer of the heartbeat expires in any case, if more than pings was sent
    since the last query, if the kernel held something then, or if reading is paused. After a write of
    ASK_BYTES it is made within a second, because so much may fill a small window at once (writer.pyx). Before
    this, fifty such peers held 19 KB each that was not charged, until their sockets were full.
    """
    cdef int64_t held
    if c.units == 0 and not c.flags & PAUSED:
        return
    held = socket_queued(c)
    if held >= 0:
        kernel_holds(core, c, held)


cdef inline Frame *shared(Frame *frame) noexcept nogil:
    """Return a frame with one reference more, for another owner; NULL stays NULL."""
    if frame != NULL:
        frame.references += 1
    return frame


cdef void due(Core *core, uint32_t slot) noexcept nogil:
    """Act on the deadlines of one connection that have passed, and arm its timer for the next one."""
    cdef Connection *c = at(core, slot)
    core.counters[<int>TIMERS] += 1
    if <int32_t>(c.control_ms - (<uint32_t>core.now_ms << 4)) < -(1 << 24):
        # Move the bucket forward before its 32 bits wrap, which takes 74 hours.
        c.control_ms = (<uint32_t>core.now_ms << 4) - (1 << 24)
    if c.state == STATE_DECIDING and not c.flags & WATCHED and socket_interest(core, slot, True, False) < 0:
        # No decision after a tick: watch the socket from now on, to notice when the peer closes it.
        release(core, slot, OUT_OF_MEMORY, True)
    if c.state == STATE_OPEN and not c.flags & (BLOCKED | PING_SENT):
        ask_kernel(core, c)
    if nearest(core, slot) <= core.clock_ms:
        if c.state == STATE_OPEN:
            due_open(core, slot)
        elif c.state == STATE_HEAD and c.flags & IN_ATTENTION:
            # Its bytes wait for a turn: check the head once they have been read.
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
    """Process timers that have come due until a time in nanoseconds; True if more wait."""
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
    """Recompute the timers of the next REARM_SLOTS slots, because deadlines may have come nearer.

    Call every tick. A timer is only ever moved to a nearer deadline here, so an unneeded call costs time and
    nothing else.
    """
    cdef uint32_t slots = core.chunk_count << CHUNK_BITS, looks
    for looks in range(<uint32_t>REARM_SLOTS):
        if core.rearm_slot >= slots:
            core.rearm_slot = NONE
            return
        if at(core, core.rearm_slot).state == STATE_OPEN:
            deadlines_arm(core, core.rearm_slot)
        core.rearm_slot += 1
