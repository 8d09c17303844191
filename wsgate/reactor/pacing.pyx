"""Pacing: which connections are behind, and whether publications wait for them.

The limits of an outbox (outbox.pyx) are applied only to a connection that is behind. A connection falls
behind when its socket takes a write only in part, or not at all. It has caught up when the socket has taken
all bytes that waited at that time (`Outbox.owed`). So a peer that reads 1 KB a second is always behind, while
a peer that keeps up is not, however many publications wait in its outbox. Memory is bounded all the same,
because the caller paces its publications: it queues none while `pacing_must_wait` is true.

A connection that falls behind first has a grace (`Limits.blocked_grace_ms`, 0: none), because a socket is
also full for a moment when the peer's process waits for a CPU. During the grace the outbox may hold
more frames than its limit, as long as their bytes and their entries are together at most `outbox_bytes`. The
limits for bytes and age apply during the grace too. A connection that takes 64 KiB within its grace gets
another one.

In two cases publications wait for connections that are within their grace and over half their limits. Such an
outbox may then hold one message more than its limit for bytes: the message that made the publications wait.

- The connection is moving: its socket took bytes in the last `Limits.blocked_moving_ms`. So a few clients
  that read more slowly than a burst arrives receive the whole burst. A peer that takes nothing delays the
  others once, for that time.
- There is a crowd. A crowd starts when more than half of all open connections are behind, and ends when less
  than an eighth is. It counts only while one of these connections takes bytes at least once a second. The
  cause is then mostly one client process that reads for many connections. In a crowd the limit for frames
  does not apply, a grace is three times as long, and every connection that takes 64 bytes within its grace
  gets another.

Both cases have an allowance, so that peers that are slow on purpose do not delay the others for ever. For
moving connections it is 1 s, and it grows by a twentieth of the time in which no publication waits for them.
For a crowd it is 10 s, and it grows by a quarter of the time in which no publication waits for the crowd, and
by 1 us for each byte that a connection which is behind takes: so publications wait as long as needed for a
crowd that reads 1 MB a second together. When the allowance is used up, the limits apply: a peer that reads
1 KB a second is then treated like a peer that reads nothing.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport (
    Connection, Core, CROWD_END, CROWD_GRACES, CROWD_MS, CROWD_PART, CROWD_REST, KEEPS_UP_UNITS, MOVING_MS,
    MOVING_REST, Outbox, PACE_BEHIND, PACE_MOVING, PACE_NONE, PACE_READER, PAUSED_OUTBOX, STATE_OPEN,
)


cdef inline void set_pace(Core *core, Outbox *outbox, int pace) noexcept nogil:
    """Change the `Pace` of an outbox, and the counts of connections by `Pace`."""
    if pace != outbox.pace:
        core.paced[outbox.pace] -= outbox.pace != PACE_NONE
        core.paced[pace] += pace != PACE_NONE
        outbox.pace = <uint8_t>pace


cdef inline void count_behind(Core *core, Outbox *outbox, bint is_counted) noexcept nogil:
    """Count the connection as behind or not, and update whether there is a crowd."""
    cdef uint32_t all_open = core.states[<int>STATE_OPEN]
    if is_counted == outbox.is_counted:
        return
    outbox.is_counted = is_counted
    core.behind += 1 if is_counted else -1
    if core.is_crowd:
        core.is_crowd = core.behind != 0 and core.behind * CROWD_END >= all_open
    else:
        # A single connection that is behind is a crowd only if it is the only open one.
        core.is_crowd = core.behind * CROWD_PART > all_open and (core.behind > 1 or all_open == 1)


cdef void pacing_forget(Core *core, Outbox *outbox) noexcept nogil:
    """Take an outbox that is about to be released out of all counts."""
    set_pace(core, outbox, PACE_NONE)
    count_behind(core, outbox, False)


cdef void pacing_weigh(Core *core, Connection *c) noexcept nogil:
    """Update how the connection counts for pacing, after its outbox, its state or its grace has changed."""
    cdef Outbox *outbox = c.outbox
    if outbox == NULL:
        return
    count_behind(core, outbox, c.state == STATE_OPEN and outbox.owed != 0)
    if c.state != STATE_OPEN or not c.flags & PAUSED_OUTBOX:
        set_pace(core, outbox, PACE_NONE)
    elif outbox.owed == 0:
        set_pace(core, outbox, PACE_READER)
    elif outbox.grace_ms == 0:
        set_pace(core, outbox, PACE_NONE)
    else:
        set_pace(core, outbox, PACE_MOVING if pacing_is_moving(core, outbox) else PACE_BEHIND)


cdef int64_t pacing_moving_end(Core *core, Connection *c) noexcept nogil:
    """Return until when a moving connection counts as moving if its socket takes no more bytes.

    In milliseconds of the reactor's clock; the far future for a connection that is not counted as moving.
    """
    if c.outbox == NULL or c.outbox.pace != PACE_MOVING:
        return <int64_t>1 << 62
    return c.outbox.blocked_ms + core.limits.blocked_moving_ms


cdef bint pacing_must_wait(Core *core) noexcept nogil:
    """Return whether publications must wait for connections over half their limits. O(1)."""
    return core.paced[<int>PACE_READER] != 0 or is_crowd_waited_for(core) or (
        core.paced[<int>PACE_MOVING] != 0 and core.moving_us > 0
    )


cdef inline bint is_crowd_waited_for(Core *core) noexcept nogil:
    """Return whether publications wait for the crowd: one of its connections is over half its limits."""
    return pacing_is_crowd_forgiven(core) and core.paced[<int>PACE_BEHIND] + core.paced[<int>PACE_MOVING] != 0


cdef void pacing_pass_time(Core *core, int64_t ms) noexcept nogil:
    """Charge `ms` of passed time to the two waiting allowances while publications wait, else refill them."""
    if is_crowd_waited_for(core):
        core.crowd_us = max(core.crowd_us - 1000 * ms, <int64_t>0)
        return
    core.crowd_us = min(core.crowd_us + 1000 * ms // CROWD_REST, <int64_t>1000 * CROWD_MS)
    if core.paced[<int>PACE_MOVING]:
        core.moving_us = max(core.moving_us - 1000 * ms, <int64_t>0)
    else:
        core.moving_us = min(core.moving_us + 1000 * ms // MOVING_REST, <int64_t>1000 * MOVING_MS)


cdef void begin_grace(Core *core, Outbox *outbox) noexcept nogil:
    """Start a grace now, or none if `blocked_grace_ms` is 0; a grace is longer in a crowd."""
    cdef uint32_t length_ms = core.limits.blocked_grace_ms * <uint32_t>(CROWD_GRACES if core.is_crowd else 1)
    outbox.grace_ms = <uint32_t>(core.clock_ms + length_ms) | 1 if length_ms else 0
    outbox.taken = 0


cdef inline uint64_t control_bytes(Outbox *outbox) noexcept nogil:
    """Return the unwritten bytes of the pongs in the control slot."""
    return 0 if outbox.control == NULL else outbox.control.used - outbox.control.written


cdef void pacing_fall_behind(Core *core, Connection *c) noexcept nogil:
    """Note that a write was short: the connection is behind until the bytes that wait now are written."""
    cdef Outbox *outbox = c.outbox
    if outbox == NULL:
        return
    core.moved_ms = core.clock_ms
    if outbox.owed == 0:
        outbox.owed = 1
        pacing_weigh(core, c)                 # a crowd may begin now, which makes the grace longer
        begin_grace(core, outbox)
    outbox.owed = outbox.bytes + control_bytes(outbox)
    pacing_weigh(core, c)


cdef void pacing_take(Core *core, Connection *c, uint64_t written) noexcept nogil:
    """Note that the socket of a connection that is behind took `written` bytes; it may have caught up."""
    cdef Outbox *outbox = c.outbox
    # Bytes that were dropped meanwhile do not have to be written any more.
    outbox.owed = min(outbox.owed - min(outbox.owed, written), outbox.bytes + control_bytes(outbox))
    core.moved_ms = core.clock_ms
    core.crowd_us = min(core.crowd_us + <int64_t>written, <int64_t>1000 * CROWD_MS)
    outbox.taken = <uint16_t>min(<uint64_t>outbox.taken + (written >> 6), <uint64_t>0xFFFF)
    if outbox.owed == 0:
        outbox.grace_ms = 0
    pacing_weigh(core, c)


cdef int64_t pacing_grace_end(Core *core, Connection *c) noexcept nogil:
    """Return when the grace of a connection ends, in clock time; the far future if it has no grace."""
    if c.outbox == NULL or c.outbox.owed == 0 or c.outbox.grace_ms == 0:
        return <int64_t>1 << 62
    return core.clock_ms + <int32_t>(c.outbox.grace_ms - <uint32_t>core.clock_ms)


cdef void pacing_end_grace(Core *core, Connection *c) noexcept nogil:
    """End a grace: begin another one if the peer took enough bytes, else apply the limits from now on.

    In a crowd 64 bytes are enough, because one client process serves many connections in turn. Otherwise
    KEEPS_UP_UNITS are needed.
    """
    cdef uint32_t least = 1 if pacing_is_crowd_forgiven(core) else KEEPS_UP_UNITS
    if c.outbox.taken >= least:
        begin_grace(core, c.outbox)
    else:
        c.outbox.grace_ms = 0
    pacing_weigh(core, c)
