"""The echo job: stamped messages out by the clock, answers in, latency from the intended time.

Open loop. Message k of all is due at start + k * interval, on member k mod N. A member therefore knows the
due time of its own next message from how many it has sent: nothing is queued, and a message that is late (its
connection's answers are outstanding, the socket is full, or this engine is behind) keeps its due time. Both
latency and send lag are measured from that time, so a stalled server cannot hide by stalling its own load
(coordinated omission; see wrk2).

An answer carries the stamp of its message, or is known by how it begins: then answers come in the order of the
messages, as a connection's do, and the due time of the n-th is known from n.

Closed loop (no rate). A message is due when it is sent; the latency of a stalled server then shows once per
connection, which is what was asked for.
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
    # Sends between two looks at the sockets; at 4 us each, answers wait at most about 2 ms for us.
    _SENDS_PER_TICK = 512
    # Messages written by one visit to one connection.
    _MESSAGES_PER_PUMP = 64


cdef inline uint32_t _stream_of(core_t* core, conn_t* conn) noexcept nogil:
    return <uint32_t>ECHO_BIT | core.stream_nonce | slot_of(core, conn)


cdef int begin_echo(core_t* core, uint64_t connections, double duration_s) noexcept nogil:
    """Choose the members and start the clock; the plan's numbers are in core.echo. -1 without memory."""
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
        # The first sequence is known here, so the loss of the first message shows too.
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
    """Return how many messages of this job the member may have sent by now."""
    cdef uint64_t due = 0
    if core.echo.interval_ns == 0:
        return core.echo.per_connection if core.echo.phase == PHASE_RUNNING else 0
    if core.echo.due > conn.echo_ordinal:
        due = (core.echo.due - conn.echo_ordinal - 1) // core.echo.member_count + 1
    return min(due, core.echo.per_connection)


cdef size_t _message_size(core_t* core, conn_t* conn) noexcept nogil:
    """Return the size of a member's message, which the header must know before it is written."""
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
    """Write the member's next message as a masked frame; returns its size."""
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
    """Send what the member may send now, in one write; -1 when the connection ended.

    Stops at 64 messages: those in flight or unsent then bring it back here.
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
    """Take an answer: judge it, measure it, send what it made room for; -1 when the connection ended."""
    cdef uint32_t sequence = <uint32_t>mark.sequence
    if mark.stream != _stream_of(core, conn) or mark.sequence >= conn.echo_total:
        core.counters.misrouted += 1
        return 0
    if judge(&core.ledger, &conn.trackers, mark.stream, mark.sequence) == DUPLICATE:
        return 0
    core.counters.echoes_received += 1
    hist_record(&core.echo_latency, <int64_t>(now - mark.intended_ns), 1)
    # An answer to an earlier job (its drain was over) frees no room in this one.
    if not conn.flags & FLAG_ECHO or sequence < conn.echo_base:
        return 0
    return _take_one(core, conn, now)


cdef int on_answer(core_t* core, conn_t* conn, uint64_t now) noexcept nogil:
    """Take an answer without a stamp, that of the oldest message; -1 when the connection ended."""
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
    """Release the members and settle what was due and never left."""
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
    """Tell whether an open loop's clock has nothing more to give."""
    if _intended(core, core.echo.due) >= core.echo.stop_ns:
        return True
    return core.echo.due // core.echo.member_count >= core.echo.per_connection


cdef uint64_t _tick_due(core_t* core, uint64_t now) noexcept nogil:
    """Send what has come due since the last tick; returns when the next is due."""
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
    """Tell whether the sending part is over, but for what is due and waits."""
    if core.echo.finished == core.echo.live:
        return True
    if core.echo.interval_ns > 0:
        return _is_all_due(core)
    if core.echo.stop_ns != <uint64_t>-1:
        return now >= core.echo.stop_ns
    return now >= core.echo.progress_ns + core.echo.drain_ns


cdef uint64_t tick_echo(core_t* core, uint64_t now) noexcept nogil:
    """Advance the job; returns when it wants to be called again (ns, UINT64_MAX for not by the clock)."""
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
            # Without an end in time, answers that never come must not keep the job for ever.
            next_ns = min(next_ns, min(core.echo.stop_ns, core.echo.progress_ns + core.echo.drain_ns))
    if core.echo.phase == PHASE_DRAINING:
        next_ns = core.echo.drain_until_ns
        if now >= next_ns or (core.echo.received + core.echo.lost == core.echo.sent and _owed(core) == 0):
            _finish(core, now)
            next_ns = now
    return next_ns


cdef uint64_t _owed(core_t* core) noexcept nogil:
    """Return how many messages are due and unsent on members still there. O(members), in the drain only."""
    cdef uint64_t i, owed = 0
    cdef conn_t* conn
    if core.echo.interval_ns == 0:
        return 0
    for i in range(core.echo.member_count):
        conn = &core.table[core.echo.members[i]]
        if conn.flags & FLAG_ECHO:
            owed += _allowed(core, conn) - (conn.echo_total - conn.echo_base)
    return owed
