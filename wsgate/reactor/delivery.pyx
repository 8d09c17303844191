"""Queue a frame in a connection's outbox and have the connection written.

Every frame for an open connection goes through `deliver`: replies, publications, pings and HTTP responses.
"""

from libc.stdint cimport uint32_t

from wsgate.reactor.closing cimport fail
from wsgate.reactor.outbox cimport outbox_close_empty, outbox_over_half, outbox_push
from wsgate.reactor.pacing cimport pacing_moving_end, pacing_weigh
from wsgate.reactor.pongs cimport PUSHED, PUSH_OVERFLOW
from wsgate.reactor.structs cimport (
    BLOCKED, Connection, Core, DROPPED_CLOSING, Frame, OUT_OF_MEMORY, PACE_MOVING, PAUSED_APP, PAUSED_OUTBOX,
    SLOW_CONSUMER, STATE_OPEN,
)
from wsgate.reactor.table cimport at, dirty_push, note_pause
from wsgate.reactor.wheel cimport wheel_arm


cdef int deliver(
    Core *core, uint32_t slot, Frame *frame, int klass, uint32_t channel, bint urgent
) noexcept nogil:
    """Queue a frame in a connection's outbox and have it written; 0 if the outbox could not take it.

    In that case an open connection is closed. The outbox takes its own reference to the frame. A publication
    that the policy of its channel drops counts as queued, because a gap is queued in its place.

    Args:
        klass: A number of `EntryClass`.
        channel: The channel of a publication, or NONE.
        urgent: Whether the connection is written before those with bulk publications.
    """
    cdef Connection *c = at(core, slot)
    cdef int outcome = outbox_push(core, c, frame, klass, channel)
    if outcome != PUSHED:
        if c.state != STATE_OPEN:
            core.counters[<int>DROPPED_CLOSING] += 1
            outbox_close_empty(core, c)       # the outbox may have been made for this frame
        fail(core, slot, SLOW_CONSUMER if outcome == PUSH_OVERFLOW else OUT_OF_MEMORY, 0)
        return 0
    if not c.flags & BLOCKED:
        dirty_push(core, slot, urgent)
    # A blocked socket reports by itself when it can be written; only the age of the entry needs a timer.
    elif c.state == STATE_OPEN:
        wheel_arm(core, slot, core.clock_ms + core.limits.outbox_age_ms)
    if not c.flags & PAUSED_OUTBOX and outbox_over_half(core, c):
        if not c.flags & PAUSED_APP:
            note_pause(core, c)
        c.flags |= PAUSED_OUTBOX
        pacing_weigh(core, c)
        if c.outbox.pace == PACE_MOVING:
            wheel_arm(core, slot, pacing_moving_end(core, c))
    return 1
