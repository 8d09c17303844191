"""The echo job: sends stamped messages at fixed times, and measures the answers from the intended times.

Open loop. Message k of all is due at start + k * interval, on member k mod N. A member therefore knows the
due time of its next message from the number of messages that it has sent, and needs no queue. A message that
is late (answers on its connection are outstanding, the socket is full, or this engine is behind) keeps its
due time. Latency and send lag are measured from that time, so a stalled server cannot improve its numbers by
delaying the load (coordinated omission; see wrk2).

An answer has the stamp of its message, or is recognized by its beginning. In the second case answers arrive
in the order of the messages, and the due time of the n-th follows from n.

Closed loop (no rate). A message is due when it is sent. The latency of a stalled server then appears once per
connection.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from loadtest.engine.core cimport (
    FLAG_ECHO,
    FLAG_SLOW,
    PART_LITERAL,
    PART_STAMP,
    PHASE_DONE,
    PHASE_DRAINING,
    PHASE_RUNNING,
    STATE_OPEN,
)
from loadtest.engine.digest cimport draw
from loadtest.engine.frames cimport encode_header, mask
from loadtest.engine.histogram cimport hist_record
from loadtest.engine.linux cimport monotonic_ns
from loadtest.engine.sending cimport write_bytes
from loadtest.engine.sequences cimport DUPLICATE, add_tracker, find_tracker, judge
from loadtest.engine.stamps cimport ECHO_BIT, STAMP_SIZE, write_stamp
from loadtest.engine.table cimport slot_of

cdef enum:
    # Sends between two polls of the sockets: at 4 us each, an answer waits at most about 2 ms for the engine.
    _SENDS_PER_TICK = 512
    # The largest number of messages in one write to one connection.
    _MESSAGES_PER_PUMP = 64


cdef inline uint32_t _stream_of(core_t* core, conn_t* conn) noexcept nogil:
    return <uint32_t>ECHO_BIT | core.stream_nonce | slot_of(core, conn)


cdef int begin_echo(core_t* core, uint64_t connections, double duration_s) noexcept nogil:
    """Select the members and start the clock; the plan's numbers are in core.echo.

    Return -1 without memory.
    """
    cdef uint32_t slot
    cdef conn_t* conn
    cdef uint64_t limit = connections if connections else core.slots
    core.echo.members = <uint32_t*>malloc((core.fresh + 1) * sizeof(uint32_t))
    if core.echo.members == NULL:
        return -1
    core.echo.member_count = 0
    for slot in range(core.fresh):
        conn = &core.table[slot]
        if conn.state != STATE_OPEN or conn.flags & FLAG_SLOW or core.echo.member_count >= limit:
            continue
        conn.flags |= FLAG_ECHO
        conn.echo_base = conn.echo_total
        conn.echo_in_flight = 0
        conn.echo_ordinal = <uint32_t>core.echo.member_count
        # The first sequence is known here, so that the loss of the first message is detected too.
        if find_tracker(conn.trackers, _stream_of(core, conn)) == NULL:
            add_tracker(&core.ledger, &conn.trackers, _stream_of(core, conn), conn.echo_total)
        core.echo.members[core.echo.member_count] = slot
        core.echo.member_count += 1
    core.echo.live = core.echo.member_count
    core.echo.start_ns = monotonic_ns()
    core.echo.progress_ns = core.echo.start_ns
    core.echo.stop_ns = <uint64_t>-1
    if duration_s > 0:
        core.echo.stop_ns = core.echo.start_ns + <uint64_t>(duration_s * 1e9)
    core.echo.phase = PHASE_RUNNING
    return 0


cdef inline uint64_t _intended(core_t* core, uint64_t number) noexcept nogil:
    return core.echo.start_ns + <uint64_t>(<double>number * core.echo.interval_ns)


cdef inline uint64_t _allowed(core_t* core, conn_t* conn) noexcept nogil:
    """Return how many messages of this job the member may have sent up to now."""
    cdef uint64_t due = 0
    if core.echo.interval_ns == 0:
        return core.echo.per_connection if core.echo.phase == PHASE_RUNNING else 0
    if core.echo.due > conn.echo_ordinal:
        due = (core.echo.due - conn.echo_ordinal - 1) // core.echo.member_count + 1
    return min(due, core.echo.per_connection)


cdef size_t _message_size(core_t* core, conn_t* conn) noexcept nogil:
    """Return the size of a member's message, which the frame header needs before the message is written."""
    cdef size_t size = 0
    cdef uint32_t i, index
    for i in range(core.echo.piece_count):
        if core.echo.pieces[i].kind == PART_STAMP:
            size += core.echo.payload_bytes
        elif core.echo.pieces[i].kind == PART_LITERAL:
            size += core.echo.pieces[i].size
        else:
            size += 1
            index = conn.index
            while index >= 10:
                index //= 10
                size += 1
    return size


cdef void _write_message(core_t* core, conn_t* conn, const stamp_t* mark, uint8_t* at) noexcept nogil:
    cdef uint32_t i
    for i in range(core.echo.piece_count):
        if core.echo.pieces[i].kind == PART_STAMP:
            write_stamp(at, mark)
            memset(at + STAMP_SIZE, c'.', core.echo.payload_bytes - STAMP_SIZE)
            at += core.echo.payload_bytes
        elif core.echo.pieces[i].kind == PART_LITERAL:
            memcpy(at, core.echo.pieces[i].data, core.echo.pieces[i].size)
            at += core.echo.pieces[i].size
        else:
            at += snprintf(<char*>at, 11, "%u", <unsigned int>conn.index)


cdef size_t _encode(core_t* core, conn_t* conn, uint8_t* out, uint64_t now) noexcept nogil:
    """Write the member's next message as a masked frame, and return its size."""
    cdef stamp_t mark
    cdef uint32_t key = <uint32_t>draw(&core.random)
    cdef size_t size = _message_size(core, conn)
    cdef size_t header = encode_header(out, core.echo.opcode, size, key)
    cdef uint64_t sent = conn.echo_total - conn.echo_base
    mark.stream = _stream_of(core, conn)
    mark.sequence = conn.echo_total
    mark.intended_ns = now
    if core.echo.interval_ns > 0:
        mark.intended_ns = _intended(core, sent * core.echo.member_count + conn.echo_ordinal)
        hist_record(&core.send_lag, <int64_t>(now - mark.intended_ns), 1)
    _write_message(core, conn, &mark, out + header)
    mask(out + header, size, key)
    conn.echo_total += 1
    conn.echo_in_flight += 1
    core.echo.sent += 1
    core.counters.echoes_sent += 1
    core.counters.messages_sent += 1
    if sent + 1 == core.echo.per_connection:
        core.echo.finished += 1
    return header + size


cdef int pump(core_t* core, conn_t* conn, uint64_t now) noexcept nogil:
    """Send the messages that the member may send now, in one write; return -1 if the connection ended.

    Stops at 64 messages: this is called again for answers in flight, or when the socket is writable.
    """
    cdef size_t used = 0
    cdef uint64_t allowed
    cdef int count = 0
    if not conn.flags & FLAG_ECHO or conn.state != STATE_OPEN or conn.output != NULL:
        return 0
    allowed = _allowed(core, conn)
    while (
        conn.echo_total - conn.echo_base < allowed
        and conn.echo_in_flight < core.echo.in_flight
        and count < _MESSAGES_PER_PUMP
        and used + core.echo.most <= core.scratch_bytes
    ):
        used += _encode(core, conn, core.scratch + used, now)
        count += 1
    return write_bytes(core, conn, core.scratch, used) if used else 0


cdef int on_echo(core_t* core, conn_t* conn, const stamp_t* mark, uint64_t now) noexcept nogil:
    """Check and measure an answer with a stamp, and send the next message; -1 if the connection ended."""
    cdef uint32_t sequence = <uint32_t>mark.sequence
    if mark.stream != _stream_of(core, conn) or mark.sequence >= conn.echo_total:
        core.counters.misrouted += 1
        return 0
    if judge(&core.ledger, &conn.trackers, mark.stream, mark.sequence) == DUPLICATE:
        return 0
    core.counters.echoes_received += 1
    hist_record(&core.echo_latency, <int64_t>(now - mark.intended_ns), 1)
    # An answer to an earlier job, whose drain has ended, does not count for this job.
    if not conn.flags & FLAG_ECHO or sequence < conn.echo_base:
        return 0
    return _take_one(core, conn, now)


cdef int on_answer(core_t* core, conn_t* conn, uint64_t now) noexcept nogil:
    """Process an answer without a stamp, to the oldest message; return -1 if the connection ended."""
    cdef uint64_t number = conn.echo_total - conn.echo_base - conn.echo_in_flight
    cdef uint64_t due_ns
    if conn.echo_in_flight == 0:
        core.counters.misrouted += 1
        return 0
    due_ns = _intended(core, number * core.echo.member_count + conn.echo_ordinal)
    core.counters.echoes_received += 1
    hist_record(&core.echo_latency, <int64_t>(now - due_ns), 1)
    return _take_one(core, conn, now)


cdef int _take_one(core_t* core, conn_t* conn, uint64_t now) noexcept nogil:
    core.echo.received += 1
    core.echo.progress_ns = now
    conn.echo_in_flight -= 1
    return pump(core, conn, now)


cdef void _finish(core_t* core, uint64_t now) noexcept nogil:
    """Release the members, and count the messages that were due and never sent."""
    cdef uint64_t i, allowed
    cdef conn_t* conn
    for i in range(core.echo.member_count):
        conn = &core.table[core.echo.members[i]]
        if not conn.flags & FLAG_ECHO:
            continue
        allowed = _allowed(core, conn)
        if core.echo.interval_ns == 0:
            allowed = 0 if core.echo.per_connection == <uint64_t>-1 else core.echo.per_connection
        if allowed > conn.echo_total - conn.echo_base:
            core.echo.unsent += allowed - (conn.echo_total - conn.echo_base)
        conn.flags &= <uint16_t>~FLAG_ECHO
    free(core.echo.members)
    core.echo.members = NULL
    core.echo.end_ns = now
    core.echo.phase = PHASE_DONE
    core.is_job_over = True


cdef inline bint _is_all_due(core_t* core) noexcept nogil:
    """Whether every message of an open loop has become due."""
    if _intended(core, core.echo.due) >= core.echo.stop_ns:
        return True
    return core.echo.due // core.echo.member_count >= core.echo.per_connection


cdef uint64_t _tick_due(core_t* core, uint64_t now) noexcept nogil:
    """Send the messages that have become due since the last tick; return when the next is due."""
    cdef int budget = _SENDS_PER_TICK
    cdef conn_t* conn
    while budget > 0 and _intended(core, core.echo.due) <= now:
        if _is_all_due(core):
            return <uint64_t>-1
        conn = &core.table[core.echo.members[core.echo.due % core.echo.member_count]]
        core.echo.due += 1
        pump(core, conn, monotonic_ns())
        budget -= 1
    return _intended(core, core.echo.due)


cdef bint _is_sent(core_t* core, uint64_t now) noexcept nogil:
    """Whether sending has ended, except for messages that are due and wait."""
    if core.echo.finished == core.echo.live:
        return True
    if core.echo.interval_ns > 0:
        return _is_all_due(core)
    if core.echo.stop_ns != <uint64_t>-1:
        return now >= core.echo.stop_ns
    return now >= core.echo.progress_ns + core.echo.drain_ns


cdef uint64_t tick_echo(core_t* core, uint64_t now) noexcept nogil:
    """Advance the job; return when it must be called again (ns; UINT64_MAX: at no fixed time)."""
    cdef uint64_t next_ns = <uint64_t>-1
    cdef int budget = _SENDS_PER_TICK
    if core.echo.phase == PHASE_RUNNING:
        if core.echo.interval_ns > 0 and core.echo.live:
            next_ns = _tick_due(core, now)
        while core.echo.interval_ns == 0 and core.echo.cursor < core.echo.member_count and budget > 0:
            pump(core, &core.table[core.echo.members[core.echo.cursor]], monotonic_ns())
            core.echo.cursor += 1
            budget -= 1
            next_ns = now
        if _is_sent(core, now):
            core.echo.phase = PHASE_DRAINING
            core.echo.drain_until_ns = now + core.echo.drain_ns
        elif core.echo.interval_ns == 0:
            # Without a duration, answers that never arrive must not keep the job running without end.
            next_ns = min(next_ns, min(core.echo.stop_ns, core.echo.progress_ns + core.echo.drain_ns))
    if core.echo.phase == PHASE_DRAINING:
        next_ns = core.echo.drain_until_ns
        if now >= next_ns or (core.echo.received + core.echo.lost == core.echo.sent and _owed(core) == 0):
            _finish(core, now)
            next_ns = now
    return next_ns


cdef uint64_t _owed(core_t* core) noexcept nogil:
    """Return how many messages are due and unsent on open members. O(members), called in the drain only."""
    cdef uint64_t i, owed = 0
    cdef conn_t* conn
    if core.echo.interval_ns == 0:
        return 0
    for i in range(core.echo.member_count):
        conn = &core.table[core.echo.members[i]]
        if conn.flags & FLAG_ECHO:
            owed += _allowed(core, conn) - (conn.echo_total - conn.echo_base)
    return owed
