"""Pacing: which connections are behind, and whether publications wait for them."""

from libc.stdint cimport int64_t, uint64_t

from wsgate.reactor.structs cimport Connection, Core, CROWD_END, CROWD_STILL_MS, Outbox, STATE_OPEN

cdef void pacing_weigh(Core *core, Connection *c) noexcept nogil
cdef void pacing_forget(Core *core, Outbox *outbox) noexcept nogil
cdef bint pacing_must_wait(Core *core) noexcept nogil
cdef void pacing_pass_time(Core *core, int64_t ms) noexcept nogil
cdef void pacing_fall_behind(Core *core, Connection *c) noexcept nogil
cdef void pacing_take(Core *core, Connection *c, uint64_t written) noexcept nogil
cdef int64_t pacing_grace_end(Core *core, Connection *c) noexcept nogil
cdef int64_t pacing_moving_end(Core *core, Connection *c) noexcept nogil
cdef void pacing_end_grace(Core *core, Connection *c) noexcept nogil


cdef inline bint pacing_is_moving(Core *core, Outbox *outbox) noexcept nogil:
    """Return whether the socket of a connection that is behind took bytes within `blocked_moving_ms`."""
    return core.clock_ms < outbox.blocked_ms + core.limits.blocked_moving_ms


cdef inline bint pacing_is_crowd_forgiven(Core *core) noexcept nogil:
    """Return whether the rules of a crowd apply: it has allowance left, and one of it took bytes lately.

    Connections that were opened since the last change may have made the crowd a minority.
    """
    return (
        core.is_crowd and core.behind * CROWD_END >= core.states[<int>STATE_OPEN]
        and core.crowd_us > 0 and core.clock_ms < core.moved_ms + CROWD_STILL_MS
    )
