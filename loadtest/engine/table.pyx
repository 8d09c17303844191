"""The connection table: slots, the buffers that connections borrow, and all ways in which a connection ends.

Rules: a connection ends only in `end`. Functions that may end a connection (all that send or receive) return
-1 if they did, and the caller must not use the connection any more. A connection owns a buffer from borrowing
to returning it, and `end` returns the remaining ones.
"""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from loadtest.engine.core cimport (
    ERRNOS,
    FAIL_EOF,
    FAIL_NONE,
    FLAG_CLOSE_JOB,
    FLAG_CLOSE_RECEIVED,
    FLAG_CLOSE_SENT,
    FLAG_ECHO,
    FLAG_SLOW,
    GONE_NO_ANSWER,
    NO_FRAME,
    NO_SLOT,
    STATE_FREE,
    STATE_HANDSHAKE,
    STATE_OPEN,
)
from loadtest.engine.linux cimport SO_LINGER, SOL_SOCKET, c_close, linger_t, setsockopt
from loadtest.engine.sequences cimport drop_trackers

cdef enum:
    # Partial buffers that are kept for later; further ones are freed.
    _FREE_PARTIALS = 1_024
    # The largest number of unsent or unparsed bytes of one connection: a socket that accepts nothing must not
    # make the engine grow.
    _BLOCK_MOST = 16_777_216
    _BLOCK_LEAST = 256


cdef conn_t* take_slot(core_t* core) noexcept nogil:
    """Return a blank connection in STATE_HANDSHAKE, or NULL if the table is full. O(1)."""
    cdef conn_t* conn
    if core.free_head != NO_SLOT:
        conn = &core.table[core.free_head]
        core.free_head = conn.index
    elif core.fresh < core.slots:
        # The pages of the table are touched here for the first time, so that unused slots need no memory.
        conn = &core.table[core.fresh]
        core.fresh += 1
    else:
        return NULL
    memset(conn, 0, sizeof(conn_t))
    conn.fd = -1
    conn.frame_opcode = NO_FRAME
    conn.state = STATE_HANDSHAKE
    core.gauges[<int>STATE_HANDSHAKE] += 1
    core.used += 1
    core.most_used = max(core.most_used, core.used)
    return conn


cdef void free_batch(core_t* core) noexcept nogil:
    """Make the slots of connections that ended in the last batch of events available. O(slots freed)."""
    cdef uint32_t slot
    while core.free_taken_head != NO_SLOT:
        slot = core.free_taken_head
        core.free_taken_head = core.table[slot].index
        core.table[slot].index = core.free_head
        core.free_head = slot


cdef uint32_t slot_of(core_t* core, conn_t* conn) noexcept nogil:
    """Return the number of a connection's slot."""
    return <uint32_t>(conn - core.table)


cdef void set_state(core_t* core, conn_t* conn, state_t state) noexcept nogil:
    """Change the state of a connection, and the gauges with it."""
    core.gauges[conn.state] -= 1
    conn.state = <unsigned char>state
    core.gauges[conn.state] += 1


cdef partial_t* borrow_partial(core_t* core, conn_t* conn) noexcept nogil:
    """Return the partial buffer of a connection; lend one if it has none. NULL without memory."""
    cdef partial_t* partial = conn.partial
    if partial != NULL:
        return partial
    partial = core.free_partials
    if partial != NULL:
        core.free_partials = partial.next
        core.free_partial_count -= 1
    else:
        partial = <partial_t*>malloc(sizeof(partial_t) + core.stamp_window)
        if partial == NULL:
            return NULL
    partial.window_len = 0
    partial.header_len = 0
    partial.control_len = 0
    core.partials += 1
    conn.partial = partial
    return partial


cdef void return_partial(core_t* core, conn_t* conn) noexcept nogil:
    """Take the partial buffer of a connection back, if it has one."""
    cdef partial_t* partial = conn.partial
    if partial == NULL:
        return
    conn.partial = NULL
    core.partials -= 1
    if core.free_partial_count >= _FREE_PARTIALS:
        free(partial)
        return
    partial.next = core.free_partials
    core.free_partials = partial
    core.free_partial_count += 1


cdef int append_block(core_t* core, block_t** at, const void* data, size_t size) noexcept nogil:
    """Append bytes to a block; create or grow it if necessary. -1 without memory or beyond 16 MiB."""
    cdef block_t* block = at[0]
    cdef size_t held = 0 if block == NULL else block.end
    cdef size_t capacity = 0 if block == NULL else block.capacity
    cdef block_t* made
    if held + size > capacity and block != NULL and block.start > 0:
        memmove(block.data, block.data + block.start, block.end - block.start)
        block.end -= block.start
        block.start = 0
        held = block.end
    if held + size > _BLOCK_MOST:
        return -1
    if held + size > capacity:
        capacity = max(max(capacity * 2, held + size), <size_t>_BLOCK_LEAST)
        made = <block_t*>realloc(block, sizeof(block_t) + capacity)
        if made == NULL:
            return -1
        if block == NULL:
            made.start = 0
            made.end = 0
            made.capacity = 0
        core.block_bytes += capacity - made.capacity
        made.capacity = <uint32_t>capacity
        at[0] = made
    memcpy(at[0].data + at[0].end, data, size)
    at[0].end += <uint32_t>size
    return 0


cdef void free_block(core_t* core, block_t** at) noexcept nogil:
    """Free a block, if there is one."""
    if at[0] != NULL:
        core.block_bytes -= at[0].capacity
        free(at[0])
        at[0] = NULL


cdef void _leave_echo(core_t* core, conn_t* conn) noexcept nogil:
    """Count what a member of the echo job had in flight and still had to send as lost and unsent."""
    cdef uint64_t sent = conn.echo_total - conn.echo_base
    cdef uint64_t due
    core.echo.lost += conn.echo_in_flight
    core.echo.live -= 1
    if sent >= core.echo.per_connection:
        core.echo.finished -= 1
    elif core.echo.interval_ns > 0:
        # Messages due up to now. Those that would become due later are not counted.
        if core.echo.due > conn.echo_ordinal:
            due = (core.echo.due - conn.echo_ordinal - 1) // core.echo.member_count + 1
            core.echo.unsent += min(due, core.echo.per_connection) - sent
    elif core.echo.per_connection != <uint64_t>-1:
        core.echo.unsent += core.echo.per_connection - sent


cdef void end(core_t* core, conn_t* conn) noexcept nogil:
    """Close the socket, return every buffer, free the slot. The caller has counted the cause."""
    if conn.flags & FLAG_ECHO:
        _leave_echo(core, conn)
    if conn.flags & FLAG_CLOSE_JOB:
        core.closing.waiting -= 1
        core.closing.closed += 1
    if conn.flags & FLAG_SLOW:
        core.slow -= 1
        core.slow_timed -= conn.slow_bytes_per_s > 0
    # Closing the only descriptor of a socket also removes it from the epoll set.
    c_close(conn.fd)
    return_partial(core, conn)
    free_block(core, &conn.output)
    free_block(core, &conn.head)
    drop_trackers(&core.ledger, &conn.trackers)
    core.gauges[conn.state] -= 1
    core.used -= 1
    conn.state = STATE_FREE
    conn.flags = 0
    conn.index = core.free_taken_head
    core.free_taken_head = slot_of(core, conn)


cdef void reset(core_t* core, conn_t* conn) noexcept nogil:
    """End a connection with a reset: SO_LINGER 0 leaves no TIME_WAIT."""
    cdef linger_t linger
    linger.l_onoff = 1
    linger.l_linger = 0
    setsockopt(conn.fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger))
    end(core, conn)


cdef void fail_connect(core_t* core, conn_t* conn, failure_t failure, int error) noexcept nogil:
    """End a handshake that failed; count it by name, or by errno if the name is FAIL_NONE."""
    if failure != FAIL_NONE:
        core.totals.failures[<int>failure] += 1
        core.connect.outcome.failures[<int>failure] += 1
    else:
        core.totals.errnos[error % ERRNOS] += 1
        core.connect.outcome.errnos[error % ERRNOS] += 1
    core.connect.settled += 1
    reset(core, conn)


cdef void lose(core_t* core, conn_t* conn, int error) noexcept nogil:
    """End a connection whose peer has ended it: with an errno, or 0 for the end of input."""
    if conn.state == STATE_HANDSHAKE:
        fail_connect(core, conn, FAIL_EOF if error == 0 else FAIL_NONE, error)
        return
    if conn.state == STATE_OPEN:
        core.counters.disconnects[error % ERRNOS] += 1
    elif conn.flags & FLAG_CLOSE_SENT and not conn.flags & FLAG_CLOSE_RECEIVED:
        core.counters.disconnects[GONE_NO_ANSWER] += 1
    else:
        core.counters.ended_clean += 1
    end(core, conn)
