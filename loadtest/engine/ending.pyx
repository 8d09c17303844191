"""The close job, and the sweep that enforces deadlines and lets slow readers with a rate read.

The sweep checks every used slot every 100 ms, but only while there is a handshake, a close or a slow reader
with a rate: 20,000 slots are 2 MB, about 100 us. A timer per connection would need memory on every connection
instead.
"""

from libc.stdint cimport uint16_t, uint32_t

from loadtest.engine.core cimport (
    FAIL_TIMEOUT,
    FLAG_CLOSE_JOB,
    FLAG_FIN_SENT,
    FLAG_SLOW,
    PHASE_DONE,
    PHASE_RUNNING,
    STATE_CLOSING,
    STATE_FREE,
    STATE_HANDSHAKE,
    STATE_OPEN,
    conn_t,
)
from loadtest.engine.linux cimport SHUT_WR, c_shutdown
from loadtest.engine.receiving cimport receive
from loadtest.engine.sending cimport send_close, set_interest
from loadtest.engine.table cimport fail_connect, reset, set_state

cdef enum:
    _SWEEP_NS = 100_000_000
    _CLOSES_PER_TICK = 256


cdef void _end_one(core_t* core, conn_t* conn) noexcept nogil:
    conn.flags |= FLAG_CLOSE_JOB
    core.closing.waiting += 1
    if core.closing.mode == MODE_RESET:
        reset(core, conn)
        return
    if conn.state == STATE_CLOSING:
        conn.deadline_ns = min(conn.deadline_ns, core.closing.deadline_ns)
        return
    set_state(core, conn, STATE_CLOSING)
    conn.deadline_ns = core.closing.deadline_ns
    if conn.flags & FLAG_SLOW:
        # The answer is behind all data that was not read.
        conn.flags &= <uint16_t>~FLAG_SLOW
        core.slow -= 1
        core.slow_timed -= conn.slow_bytes_per_s > 0
        set_interest(core, conn)
    if core.closing.mode == MODE_FIN:
        conn.flags |= FLAG_FIN_SENT
        c_shutdown(conn.fd, SHUT_WR)
    else:
        send_close(core, conn, 1000)


cdef uint64_t tick_close(core_t* core, uint64_t now) noexcept nogil:
    """Close the next connections; return when to call again (ns; UINT64_MAX: at no fixed time)."""
    cdef int budget = _CLOSES_PER_TICK
    cdef conn_t* conn
    if core.closing.phase != PHASE_RUNNING:
        return <uint64_t>-1
    while core.closing.cursor < core.fresh and core.closing.left > 0 and budget > 0:
        conn = &core.table[core.closing.cursor]
        core.closing.cursor += 1
        if conn.state == STATE_OPEN or conn.state == STATE_CLOSING:
            core.closing.left -= 1
            budget -= 1
            _end_one(core, conn)
    if core.closing.cursor < core.fresh and core.closing.left > 0:
        return now
    if core.closing.waiting == 0:
        core.closing.phase = PHASE_DONE
        core.is_job_over = True
        return now
    return <uint64_t>-1


cdef void _expire(core_t* core, conn_t* conn) noexcept nogil:
    if conn.state == STATE_HANDSHAKE:
        fail_connect(core, conn, FAIL_TIMEOUT, 0)
        return
    core.counters.close_timeouts += 1
    core.closing.timed_out += conn.flags & FLAG_CLOSE_JOB != 0
    reset(core, conn)


cdef uint64_t _allowance(uint64_t bytes_per_s, uint64_t from_ms, uint64_t to_ms) noexcept nogil:
    """Return how many bytes a reader may read between two times; rounding errors do not add up."""
    return bytes_per_s * to_ms // 1_000 - bytes_per_s * from_ms // 1_000


cdef uint64_t sweep(core_t* core, uint64_t now) noexcept nogil:
    """Enforce deadlines and let slow readers with a rate read; return when the next sweep is due."""
    cdef uint32_t slot
    cdef conn_t* conn
    cdef uint64_t from_ms, to_ms, quota
    if core.slow_timed + core.gauges[<int>STATE_HANDSHAKE] + core.gauges[<int>STATE_CLOSING] == 0:
        return <uint64_t>-1
    if now < core.sweep_ns:
        return core.sweep_ns
    # At most one second is made up for: a reader does not save its allowance while the loop does not run.
    to_ms = (now - core.start_ns) // 1_000_000
    from_ms = max((core.swept_ns - core.start_ns) // 1_000_000, to_ms - min(to_ms, 1_000))
    for slot in range(core.fresh):
        conn = &core.table[slot]
        if conn.state == STATE_FREE:
            continue
        if conn.state != STATE_OPEN:
            if now >= conn.deadline_ns:
                _expire(core, conn)
        elif conn.flags & FLAG_SLOW and conn.slow_bytes_per_s:
            quota = _allowance(conn.slow_bytes_per_s, from_ms, to_ms)
            if quota:
                receive(core, conn, quota)
    core.swept_ns = now
    core.sweep_ns = now + _SWEEP_NS
    return core.sweep_ns
