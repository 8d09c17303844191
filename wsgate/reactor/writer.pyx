"""Writing: visits to dirty connections, in slices.

A visit writes what one connection has waiting, at most 64 frames and 64 KiB, in one system call:
`send` for one piece, `sendmsg` for several. Frames that gathered since the last visit leave together;
when publications come faster than a walk takes, they coalesce by themselves.

Two lists: urgent (replies, control frames, publications to few) and bulk. A slice takes at most 2 ms
of clock; urgent goes first, but bulk keeps at least a quarter. A connection is on one list only, so
its frames keep their order.

EPOLLOUT is asked for only after the socket refused bytes, and given up with its first report.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from wsgate.reactor.channels cimport channel_name
from wsgate.reactor.closing cimport all_written, fail, queue_close, release, unblocked
from wsgate.reactor.deadlines cimport deadlines_arm, deadlines_resume
from wsgate.reactor.fanout cimport walks_step
from wsgate.reactor.frames cimport frame_message
from wsgate.reactor.outbox cimport (
    outbox_consume, outbox_fall_behind, outbox_head_first, outbox_moving_end, outbox_open, outbox_over_half,
    outbox_replace_gap, outbox_weigh,
)
from wsgate.reactor.pongs cimport PUSHED, PUSH_NO_MEMORY, PUSH_OVERFLOW, pongs_add, pongs_drop_oldest
from wsgate.reactor.clocks cimport clock_ns
from wsgate.reactor.socket_io cimport (
    SEAM_AGAIN, SEAM_GONE, iovec, seam_interest, seam_queued, seam_send, seam_send_vector,
)
from wsgate.reactor.structs cimport (
    BLOCKED, CLASS_GAP, CLOSE_QUEUED, Connection, Core, Entry, Frame, GAPS, Gap, INTERNAL, NONE,
    OUT_OF_MEMORY, Outbox, PAUSED_APP, PAUSED_OUTBOX, PEER_RESET, PING_SENT, SENT_SINCE, SLICE_NS,
    STATE_FAILING, STATE_GONE, STATE_OPEN, VISIT_BYTES, VISIT_FRAMES, WALK_AHEAD, WALK_STEP, WANT_IN,
)
from wsgate.reactor.table cimport at, attention_push, dirty_push, dirty_remove, failed_pop, kernel_holds
from wsgate.reactor.wheel cimport wheel_arm

cdef enum:
    PING_BYTES = 2               # who was sent nothing else has nothing in the kernel that matters
    ASK_BYTES = 2048             # after a write of so much the kernel is asked soon what it holds, not with the next ping
    ASK_AFTER_MS = 1000          # by then a peer that reads has taken it

cdef enum Visit:
    VISIT_DONE                   # nothing waits any more, or nothing may be written now
    VISIT_MORE                   # the visit's limits were reached


cdef Frame *encode_gap(Core *core, Connection *c, uint32_t channel, Gap *gap) noexcept with gil:
    """Ask the application's encoder for the gap's message; NULL when it has none or failed.

    The one place where the write path meets Python: only for consumers that were slow and read again.
    An exception is reported as unraisable; the connection is then closed as our own fault.
    """
    cdef bytes name, payload
    cdef Frame *frame
    if core.gap_encoder == NULL:
        return NULL
    core.gap_failed += 1                      # taken back when nothing raised
    name = PyBytes_FromStringAndSize(
        <char *>channel_name(&core.channels.channels[channel]), core.channels.channels[channel].name_length
    )
    payload = (<object>core.gap_encoder)(c.variant, name, gap.first, gap.last)
    if payload is None:
        raise TypeError("the gap encoder must return bytes")
    frame = frame_message(
        core, core.variant_opcodes[c.variant],
        <const uint8_t *>PyBytes_AS_STRING(payload), <uint32_t>PyBytes_GET_SIZE(payload),
    )
    core.gap_failed -= 1
    return frame


cdef int gather(Core *core, Connection *c, iovec *parts) noexcept nogil:
    """Lay out one visit in the order of the wire; returns the number of pieces."""
    cdef Outbox *outbox = c.outbox
    cdef Entry *entry
    cdef Frame *frame
    cdef uint32_t index = 0
    cdef int count = 0
    cdef uint64_t total = 0, size, rest
    if outbox.control != NULL and not outbox_head_first(outbox):
        parts[0].iov_base = outbox.control.data + outbox.control.written
        parts[0].iov_len = outbox.control.used - outbox.control.written
        count = 1
    while index < outbox.count and count < VISIT_FRAMES and total < VISIT_BYTES:
        entry = outbox.entries + outbox.head + index
        if entry.klass == CLASS_GAP:
            frame = encode_gap(core, c, entry.channel, <Gap *>entry.item)
            outbox_replace_gap(core, c, index, frame)
            if frame == NULL:
                continue
            core.counters[<int>GAPS] += 1
        frame = <Frame *>entry.item
        parts[count].iov_base = frame.data
        size = frame.length
        if index == 0 and outbox.head_written:
            parts[count].iov_base = frame.data + outbox.head_written
            size -= outbox.head_written
        rest = size
        if size > VISIT_BYTES - total:
            size = VISIT_BYTES - total
        parts[count].iov_len = size
        total += size
        count += 1
        index += 1
        if index == 1 and outbox.control != NULL and outbox_head_first(outbox):
            if size < rest:
                break                         # the head is not whole yet: no pong may cut into it
            parts[count].iov_base = outbox.control.data + outbox.control.written
            parts[count].iov_len = outbox.control.used - outbox.control.written
            count += 1
    return count


cdef void block(Core *core, uint32_t slot) noexcept nogil:
    """The socket refused bytes: wait for EPOLLOUT, and for the write deadline.

    What it holds is asked for now, once: it can only become less before we write again. A fixed charge for
    every full socket, 96 KB, was four to eight times too much for small windows.
    """
    cdef Connection *c = at(core, slot)
    cdef int64_t held = seam_queued(c)
    if held < 0:
        held = core.limits.send_buffer_bytes
    kernel_holds(core, c, held)
    c.flags |= BLOCKED
    core.blocked += 1
    outbox_fall_behind(core, c)
    seam_interest(core, slot, (c.flags & WANT_IN) != 0, True)
    if c.state == STATE_OPEN:
        wheel_arm(core, slot, core.clock_ms + core.limits.write_timeout_ms)
        if core.limits.outbox_age_ms < core.limits.write_timeout_ms:
            wheel_arm(core, slot, core.clock_ms + core.limits.outbox_age_ms)
        if core.limits.blocked_grace_ms:
            wheel_arm(core, slot, core.clock_ms + core.limits.blocked_grace_ms)
            wheel_arm(core, slot, outbox_moving_end(core, c))


cdef void unblock(Core *core, uint32_t slot) noexcept nogil:
    """The socket takes bytes again."""
    cdef Connection *c = at(core, slot)
    if c.flags & BLOCKED:
        unblocked(core, c)
    seam_interest(core, slot, (c.flags & WANT_IN) != 0, False)
    if c.flags & PING_SENT:
        c.heartbeat_ms = <uint32_t>core.clock_ms | 1    # it may have left only now
        deadlines_arm(core, slot)
    if c.outbox != NULL:
        dirty_push(core, slot, False)


cdef void after_progress(Core *core, uint32_t slot) noexcept nogil:
    """Some bytes went out: reading may go on, and a finished close takes its next step."""
    cdef Connection *c = at(core, slot)
    if c.flags & PAUSED_OUTBOX and not outbox_over_half(core, c):
        c.flags &= ~PAUSED_OUTBOX
        outbox_weigh(core, c)
        if not c.flags & PAUSED_APP:
            seam_interest(core, slot, True, (c.flags & BLOCKED) != 0)
            deadlines_resume(core, slot)
            attention_push(core, slot)
    if c.outbox == NULL and c.flags & CLOSE_QUEUED:
        all_written(core, slot)


cdef int visit(Core *core, uint32_t slot) noexcept nogil:
    """Write once to one connection."""
    cdef iovec parts[VISIT_FRAMES + 1]
    cdef Connection *c = at(core, slot)
    cdef int64_t written
    cdef uint64_t offered = 0
    cdef int count, index
    if c.outbox == NULL or c.flags & BLOCKED:
        return VISIT_DONE
    count = gather(core, c, parts)
    if core.gap_failed:
        core.gap_failed = 0
        fail(core, slot, INTERNAL, 0)
    if count == 0:
        # Only gaps waited and none is to be sent.
        outbox_consume(core, c, 0)
        after_progress(core, slot)
        return VISIT_DONE
    if count == 1:
        offered = parts[0].iov_len
        written = seam_send(core, c, <const uint8_t *>parts[0].iov_base, offered)
    else:
        for index in range(count):
            offered += parts[index].iov_len
        written = seam_send_vector(core, c, parts, count)
    if written == SEAM_AGAIN:
        block(core, slot)
        return VISIT_DONE
    if written == SEAM_GONE:
        release(core, slot, PEER_RESET, False)
        return VISIT_DONE
    c.outbox.blocked_ms = core.clock_ms
    if written >= ASK_BYTES:
        # Also when a small write came before, whose time to be asked about is the next ping. An earlier timer stays.
        wheel_arm(core, slot, core.clock_ms + ASK_AFTER_MS)
    if written > PING_BYTES:
        c.units |= SENT_SINCE
    outbox_consume(core, c, written)
    if <uint64_t>written < offered:
        block(core, slot)                     # the next send would say EAGAIN: spare the call
    after_progress(core, slot)
    return VISIT_MORE if c.outbox != NULL and not c.flags & BLOCKED else VISIT_DONE


cdef void walk(Core *core, bint urgent, int64_t until_ns) noexcept nogil:
    """Visit connections of one list until it is empty or the time is over."""
    cdef uint32_t slot
    while True:
        slot = core.urgent.head if urgent else core.bulk.head
        if slot == NONE:
            return
        dirty_remove(core, slot)
        if visit(core, slot) == VISIT_MORE:
            dirty_push(core, slot, urgent)    # behind the others
        if clock_ns() >= until_ns:
            return


cdef bint flush_slice(Core *core) noexcept nogil:
    """Queue the Closes that are due, then write for at most 2 ms; True when more waits."""
    cdef int64_t start
    cdef uint32_t slot
    cdef bint has_bulk
    while True:
        slot = failed_pop(core)
        if slot == NONE:
            break
        if at(core, slot).state == STATE_FAILING:
            queue_close(core, slot)
        elif at(core, slot).state == STATE_GONE:
            attention_push(core, slot)
    if core.urgent.count == 0 and core.bulk.count == 0 and core.walks == NULL:
        return False
    start = clock_ns()
    has_bulk = core.bulk.count != 0 or core.walks != NULL
    walk(core, True, start + (SLICE_NS // 4 * 3 if has_bulk else SLICE_NS))
    while True:
        if core.walks != NULL and core.bulk.count < WALK_AHEAD:
            walks_step(core, WALK_STEP)
        walk(core, False, start + SLICE_NS)
        if core.walks == NULL or clock_ns() >= start + SLICE_NS:
            break
    return core.urgent.count != 0 or core.bulk.count != 0 or core.walks != NULL


cdef void pong(Core *core, uint32_t slot, const uint8_t *payload, uint32_t size) noexcept nogil:
    """Answer a ping, in order. Older pongs give way only when the socket is blocked."""
    cdef Connection *c = at(core, slot)
    cdef Outbox *outbox = outbox_open(core, c)
    cdef int outcome
    if outbox == NULL:
        fail(core, slot, OUT_OF_MEMORY, 0)
        return
    outcome = pongs_add(core, outbox, payload, size)
    if outcome == PUSH_OVERFLOW and not c.flags & BLOCKED:
        visit(core, slot)
        outbox = outbox_open(core, c) if c.state == STATE_OPEN else NULL
        if outbox == NULL:
            return
        outcome = pongs_add(core, outbox, payload, size)
    while outcome == PUSH_OVERFLOW and pongs_drop_oldest(core, outbox):
        outcome = pongs_add(core, outbox, payload, size)
    if outcome == PUSH_NO_MEMORY:
        fail(core, slot, OUT_OF_MEMORY, 0)
    elif outcome == PUSHED and not c.flags & BLOCKED:
        dirty_push(core, slot, True)
