"""The poll loop: it runs the jobs that are due, then handles the events of the sockets, and repeats.

Every turn is bounded: jobs have a budget per tick, a batch has at most 512 events, and an event reads once.
epoll is level-triggered, so that the kernel reports again what a budget left over.
"""

from libc.stdint cimport uint32_t

from loadtest.engine.connecting cimport tick_connect
from loadtest.engine.core cimport (
    FLAG_ECHO,
    FLAG_SERVER_ENDED,
    FLAG_SLOW,
    STATE_FREE,
    STATE_OPEN,
    WAKE_SLOT,
    conn_t,
)
from loadtest.engine.echoing cimport pump, tick_echo
from loadtest.engine.ending cimport sweep, tick_close
from loadtest.engine.linux cimport (
    CLOCK_THREAD_CPUTIME_ID,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    SO_ERROR,
    SOL_SOCKET,
    clock_ns,
    epoll_event,
    epoll_pwait2,
    getsockopt,
    monotonic_ns,
)
from loadtest.engine.receiving cimport receive
from loadtest.engine.sending cimport flush, set_interest
from loadtest.engine.table cimport free_batch, lose

from posix.time cimport timespec

cdef enum:
    _EVENTS = 512


cdef void _on_slow(core_t* core, conn_t* conn, uint32_t events) noexcept nogil:
    """Handle an event of a slow reader: an error, or the FIN of the server."""
    cdef int error = 0
    cdef unsigned int size = sizeof(error)
    if events & (EPOLLERR | EPOLLHUP):
        getsockopt(conn.fd, SOL_SOCKET, SO_ERROR, &error, &size)
        lose(core, conn, error)
    elif events & EPOLLRDHUP:
        # The earlier data of the server stays unread, as it does with a stuck client.
        conn.flags |= FLAG_SERVER_ENDED
        core.counters.slow_server_ended += 1
        set_interest(core, conn)


cdef void _on_event(core_t* core, const epoll_event* event) noexcept nogil:
    cdef conn_t* conn = &core.table[event.data.u32]
    if conn.state == STATE_FREE:
        return
    if event.events & EPOLLOUT:
        if flush(core, conn) < 0:
            return
        if conn.flags & FLAG_ECHO and pump(core, conn, monotonic_ns()) < 0:
            return
    if conn.flags & FLAG_SLOW and conn.state == STATE_OPEN:
        _on_slow(core, conn, event.events)
    elif event.events & (EPOLLIN | EPOLLERR | EPOLLHUP):
        receive(core, conn, core.read_bytes)


cdef uint64_t _tick(core_t* core, uint64_t now) noexcept nogil:
    """Run the jobs that are due; return when the next one is due."""
    cdef uint64_t next_ns = sweep(core, now)
    free_batch(core)
    next_ns = min(next_ns, tick_connect(core, now))
    next_ns = min(next_ns, tick_echo(core, now))
    return min(next_ns, tick_close(core, now))


cdef int run_loop(core_t* core, uint64_t until_ns, uint64_t until_messages) noexcept nogil:
    """Run until a time, a number of messages, the end of a job, or a wake-up. Polls at least once."""
    cdef epoll_event events[_EVENTS]
    cdef timespec timeout
    cdef uint64_t started_ns = monotonic_ns()
    cdef uint64_t started_cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID)
    cdef uint64_t now = started_ns
    cdef uint64_t next_ns
    cdef bint is_last = False
    cdef int i, count
    cdef int result = 0
    while not is_last:
        next_ns = min(until_ns, _tick(core, now))
        if core.is_job_over:
            core.is_job_over = False
            result |= RAN_JOB_OVER
        is_last = result != 0 or now >= until_ns or (0 < until_messages <= core.counters.messages)
        timeout.tv_sec = 0
        timeout.tv_nsec = 0
        if not is_last and next_ns > now:
            timeout.tv_sec = (next_ns - now) // 1_000_000_000
            timeout.tv_nsec = (next_ns - now) % 1_000_000_000
        count = epoll_pwait2(core.epoll_fd, events, _EVENTS, &timeout, NULL)
        core.counters.wakes += 1
        for i in range(count):
            if events[i].data.u32 == WAKE_SLOT:
                result |= RAN_WAKE
            else:
                _on_event(core, &events[i])
        is_last |= result & RAN_WAKE != 0
        now = monotonic_ns()
    core.cpu_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID) - started_cpu_ns
    core.loop_ns += now - started_ns
    return result
