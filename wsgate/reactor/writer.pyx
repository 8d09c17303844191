"""Writes the outboxes of dirty connections to their sockets, in slices of time.

A connection is dirty when frames wait in its outbox and its socket is not full. A visit writes at most 64
frames and 64 KiB of one connection in one system call: `send` for one piece, `sendmsg` for several. Frames
that were queued since the last visit are written together, so writes coalesce when publications come faster.

There are two lists of dirty connections: urgent (replies, control frames, publications to few subscribers)
and bulk. A slice takes at most 2 ms. The urgent list is written first, but the bulk list gets at least a
quarter of the time. A connection is on one list only, so its frames keep their order.

EPOLLOUT is requested only after a socket was full, and switched off at its first report.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from wsgate.reactor.channels cimport channel_name
from wsgate.reactor.closing cimport all_written, fail, queue_close, release, unblocked
from wsgate.reactor.deadlines cimport deadlines_arm, deadlines_resume, ping_stamp
from wsgate.reactor.fanout cimport walks_step
from wsgate.reactor.frames cimport frame_message
from wsgate.reactor.outbox cimport (
    outbox_consume, outbox_head_first, outbox_open, outbox_over_half, outbox_replace_gap,
)
from wsgate.reactor.pacing cimport pacing_fall_behind, pacing_moving_end, pacing_weigh
from wsgate.reactor.pongs cimport PUSHED, PUSH_NO_MEMORY, PUSH_OVERFLOW, pongs_add, pongs_drop_oldest
from wsgate.reactor.clocks cimport clock_ns
from wsgate.reactor.socket_io cimport (
    SOCKET_AGAIN, SOCKET_GONE, iovec, socket_interest, socket_queued, socket_send, socket_send_vector,
)
from wsgate.reactor.structs cimport (
    BLOCKED, CLASS_GAP, CLOSE_QUEUED, Connection, Core, Entry, Frame, GAPS, Gap, INTERNAL, NONE,
    OUT_OF_MEMORY, Outbox, PAUSED_APP, PAUSED_OUTBOX, PEER_RESET, PING_SENT, SENT_SINCE, SLICE_NS,
    STATE_FAILING, STATE_GONE, STATE_OPEN, VISIT_BYTES, VISIT_FRAMES, WALK_AHEAD, WALK_STEP, WANT_IN,
)
from wsgate.reactor.table cimport at, attention_push, dirty_push, dirty_remove, failed_pop, kernel_holds
from wsgate.reactor.wheel cimport wheel_arm

cdef enum:
    PING_BYTES = 2               # size of a ping: such a write leaves nothing in the kernel that matters
    ASK_BYTES = 2048             # after a write of this size the kernel is queried within ASK_AFTER_MS
    ASK_AFTER_MS = 1000          # by then a peer that reads has taken the data

cdef enum Visit:
    VISIT_DONE                   # nothing waits, or the socket is full or closed
    VISIT_MORE                   # more waits, beyond the limits of one visit


cdef Frame *encode_gap(Core *core, Connection *c, uint32_t channel, Gap *gap) noexcept with gil:
    """Encode a gap as a message with the caller's gap encoder; NULL if there is none or it failed.

    This is the only Python call of the write path. It is needed only for slow connections that read again. An
    exception is reported as unraisable. After it, and without memory for the frame, the connection is closed
    with the reason INTERNAL: it would never learn of the loss. OUT_OF_MEMORY would release the outbox, whose
    frames the caller is about to write.
    """
    cdef bytes name, payload
    cdef Frame *frame
    if core.gap_encoder == NULL:
        return NULL
    core.gap_failed += 1                      # undone below if nothing fails
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
    if frame != NULL:
        core.gap_failed -= 1
    return frame


cdef int gather(Core *core, Connection *c, iovec *parts) noexcept nogil:
    """Collect the pieces of one visit in the order of writing, at most VISIT_FRAMES + 1; return how many."""
    cdef Outbox *outbox = c.outbox
    cdef Entry *entry
    cdef Frame *frame
    cdef uint32_t index = 0
    cdef int count = 0
    cdef uint64_t total = 0, size, rest
    # Pongs are first, except behind the rest of a half-written entry or an HTTP response.
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
                break                         # the first entry does not fit: no pong may come inside it
            parts[count].iov_base = outbox.control.data + outbox.control.written
            parts[count].iov_len = outbox.control.used - outbox.control.written
            count += 1
    return count


cdef void block(Core *core, uint32_t slot) noexcept nogil:
    """Mark a connection as blocked after a full socket: wait for EPOLLOUT, and arm the write deadlines.

    The kernel is queried once for the memory of the socket, which cannot grow before we write again. A fixed
    charge of 96 KB for every full socket was four to eight times too high for small windows.
    """
    cdef Connection *c = at(core, slot)
    cdef int64_t held = socket_queued(c)
    if held < 0:
        held = core.limits.send_buffer_bytes
    kernel_holds(core, c, held)
    c.flags |= BLOCKED
    core.blocked += 1
    pacing_fall_behind(core, c)
    socket_interest(core, slot, (c.flags & WANT_IN) != 0, True)
    if c.state == STATE_OPEN:
        wheel_arm(core, slot, core.clock_ms + core.limits.write_timeout_ms)
        if core.limits.outbox_age_ms < core.limits.write_timeout_ms:
            wheel_arm(core, slot, core.clock_ms + core.limits.outbox_age_ms)
        if core.limits.blocked_grace_ms:
            wheel_arm(core, slot, core.clock_ms + core.limits.blocked_grace_ms)
            wheel_arm(core, slot, pacing_moving_end(core, c))


cdef void unblock(Core *core, uint32_t slot) noexcept nogil:
    """End the blocked state after EPOLLOUT, and queue the connection for writing if frames wait."""
    cdef Connection *c = at(core, slot)
    if c.flags & BLOCKED:
        unblocked(core, c)
    socket_interest(core, slot, (c.flags & WANT_IN) != 0, False)
    if c.flags & PING_SENT:
        c.heartbeat_ms = ping_stamp(core)     # the ping may be sent only now
        deadlines_arm(core, slot)
    if c.outbox != NULL:
        dirty_push(core, slot, False)


cdef void after_progress(Core *core, uint32_t slot) noexcept nogil:
    """Resume reading if the outbox is at most half full, and continue a close whose last frame is written."""
    cdef Connection *c = at(core, slot)
    if c.flags & PAUSED_OUTBOX and not outbox_over_half(core, c):
        c.flags &= ~PAUSED_OUTBOX
        pacing_weigh(core, c)
        if not c.flags & PAUSED_APP:
            socket_interest(core, slot, True, (c.flags & BLOCKED) != 0)
            deadlines_resume(core, slot)
            attention_push(core, slot)
    if c.outbox == NULL and c.flags & CLOSE_QUEUED:
        all_written(core, slot)


cdef int visit(Core *core, uint32_t slot) noexcept nogil:
    """Write once to one connection, with one system call; return a `Visit` value."""
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
        # Only gaps waited, and none of them made a message.
        outbox_consume(core, c, 0)
        after_progress(core, slot)
        return VISIT_DONE
    if count == 1:
        offered = parts[0].iov_len
        written = socket_send(core, c, <const uint8_t *>parts[0].iov_base, offered)
    else:
        for index in range(count):
            offered += parts[index].iov_len
        written = socket_send_vector(core, c, parts, count)
    if written == SOCKET_AGAIN:
        block(core, slot)
        return VISIT_DONE
    if written == SOCKET_GONE:
        release(core, slot, PEER_RESET, False)
        return VISIT_DONE
    c.outbox.blocked_ms = core.clock_ms
    if written >= ASK_BYTES:
        # Also if the timer is armed later because of a small write before. A timer that is earlier stays.
        wheel_arm(core, slot, core.clock_ms + ASK_AFTER_MS)
    if written > PING_BYTES:
        c.units |= SENT_SINCE
    outbox_consume(core, c, written)
    if <uint64_t>written < offered:
        block(core, slot)                     # the next send would fail with EAGAIN: save the call
    after_progress(core, slot)
    return VISIT_MORE if c.outbox != NULL and not c.flags & BLOCKED else VISIT_DONE


cdef void walk(Core *core, bint urgent, int64_t until_ns) noexcept nogil:
    """Visit the connections of one dirty list, urgent or bulk, until it is empty or `until_ns` has passed."""
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
    """Queue the Closes of failed connections, then write for at most 2 ms; return whether more waits."""
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
    """Queue the pong for a ping, in order. Older pongs are dropped only while the socket is full."""
    cdef Connection *c = at(core, slot)
    cdef Outbox *outbox = outbox_open(core, c)
    cdef int outcome
    if outbox == NULL:
        fail(core, slot, OUT_OF_MEMORY, 0)
        return
    outcome = pongs_add(core, outbox, payload, size)
    if outcome == PUSH_OVERFLOW and not c.flags & BLOCKED:
        # Write first to make room. This can end the connection or fill its socket.
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
