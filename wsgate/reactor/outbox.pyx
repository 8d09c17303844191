"""What waits to be written to one connection.

An outbox exists only while something waits. It holds references to shared frames, so that a publication
waiting in 15,000 outboxes costs its bytes once and 16 bytes per outbox.

Only a connection that is behind is judged by the limits of bytes, frames and age. It is behind from a
write that the socket took only in part, or not at all, until the socket has taken everything that waited
at that time (`Outbox.owed`). A peer that reads 1 KB a second is always behind; a peer that reads is not,
however many publications arrive at once. Memory is bounded all the same, because the caller paces itself:
it queues no publication while `outbox_paces` says that a connection which is not judged is over half its
limits.

A connection that falls behind has a grace first (`Limits.blocked_grace_ms`, 0: none), because a socket is also full
for a moment when the peer's process waits for a processor. The limits of bytes and age know no grace. Within it
the outbox may hold more frames than its limit, as long as they and their entries are at most `outbox_bytes`. It
earns another grace by taking 64 KiB within one.

Publications wait for connections in their grace that are over half their limits in two cases. An outbox may then
hold one message more than its limit of bytes, the one that made the publications wait.

- For a connection that is moving: its socket took bytes in the last `Limits.blocked_moving_ms`. So a few readers that are
  slower than a burst receive it all. A peer that takes nothing delays the others once, for `moving_ms`.
- For every connection in its grace while there is a crowd: from when more than half of all connections are
  behind until less than an eighth is, and as long as one of them takes bytes at least once a second. Then the
  node is too fast for its clients and not they for it, mostly because one process reads for many. Frames are not
  counted, a grace is three times as long, and whoever takes anything within it earns another.

Both have an allowance, so that peers which are slow on purpose do not delay the others for ever. For those that
are moving it is 1 s of waiting at once, and afterwards a twentieth of the time in which nothing waits for them.
For a crowd it is 10 s and a quarter of the time, and each byte that a connection which is behind takes gives 1 us
back: a crowd that reads 1 MB a second together is waited for as long as it takes. When the allowance is used up,
the limits judge who is behind: a peer that reads 1 KB a second as one that reads nothing.

The rules of overflow of a connection that is judged, in order:

1. A CONTROL entry is always taken: pings, `bye` and Close come from a reserve beyond the limits.
2. While the new entry would put the outbox over its bytes or frames, the oldest droppable entry gives
   way. Droppable is a publication of a channel with policy DROP_OLDEST, or of one with LATEST_ONLY
   when a newer one of its channel waits or arrives; never an entry whose first byte is written.
3. If nothing is droppable and the new entry is itself a publication of a DROP_OLDEST channel, it is
   the oldest droppable one and gives way.
4. Otherwise the push fails with PUSH_OVERFLOW and the caller closes the connection (4010).
5. What gave way leaves a gap in its place. Later drops of that channel merge into the same gap. A gap
   is charged one frame and what the first of them was charged, at most 64 bytes, so that giving way
   never makes the outbox larger; it is turned into a message when its turn to be written comes.

Age obeys the same rules: an entry older than the limit is dropped if droppable (LATEST_ONLY: if a
newer one waits), else the connection is closed. Only replies and publications have an age.

Pongs wait apart, in the control slot (pongs.pyx).

The order of the wire: the rest of a half-written entry or an HTTP answer, the control slot, then
entries in order.

Push and consume are O(1) while nothing overflows; a drop is O(entries).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from wsgate.reactor.channels cimport channel_release
from wsgate.reactor.frames cimport frame_release
from wsgate.reactor.memory cimport memory_capacity, memory_give, memory_take
from wsgate.reactor.pongs cimport (
    PUSHED, PUSH_NO_MEMORY, PUSH_OVERFLOW, pongs_close, pongs_consume, pongs_drop_oldest,
)
from wsgate.reactor.structs cimport (
    CLASS_CONTROL, CLASS_GAP, CLASS_PUBLICATION, CLASS_REPLY, CLASS_RESPONSE, Connection, Core,
    CROWD_END, CROWD_GRACES, CROWD_MS, CROWD_PART, CROWD_REST, CROWD_STILL_MS, DROPPED_CLOSING, DROPPED_POLICY, Entry,
    FRAMES_OUT, Frame, GAP_BYTES, Gap, KEEPS_UP_UNITS, KIND_OUTBOX, MOVING_MS, MOVING_REST, Outbox, PACE_BEHIND, PACE_MOVING, PACE_NONE,
    PACE_READER, PAUSED_OUTBOX, POLICY_DROP_OLDEST, POLICY_LATEST_ONLY, PONGS_DROPPED, STATE_OPEN,
)

cdef enum:
    INLINE_ENTRIES = 4
    AGE_SHIFT = 6                # entry ages count 64 ms steps: 16 bits last 70 minutes
    SUPERSEDED = 1               # Entry.spare: a newer publication of its LATEST_ONLY channel exists
    NOTICE = 2                   # Entry.spare of a CONTROL entry: a notice of loss about all channels


# --- making, growing, giving back -------------------------------------------------------------------

cdef Outbox *outbox_open(Core *core, Connection *c) noexcept nogil:
    """The connection's outbox, made if there is none; NULL without memory."""
    cdef Outbox *outbox = c.outbox
    if outbox != NULL:
        return outbox
    outbox = <Outbox *>memory_take(core, sizeof(Outbox), KIND_OUTBOX)
    if outbox == NULL:
        return NULL
    outbox.entries = outbox.inline_entries
    outbox.head = outbox.count = outbox.head_written = 0
    outbox.capacity = INLINE_ENTRIES
    outbox.bytes = 0
    outbox.blocked_ms = core.clock_ms
    outbox.control = NULL
    outbox.owed = 0
    outbox.grace_ms = outbox.taken = outbox.pace = outbox.is_counted = 0
    c.outbox = outbox
    return outbox


cdef inline uint64_t entries_bytes(uint32_t count) noexcept nogil:
    return <uint64_t>count * sizeof(Entry)


cdef int make_room(Core *core, Outbox *outbox) noexcept nogil:
    """Room for one more entry behind the last."""
    cdef Entry *fresh
    cdef uint32_t capacity
    if outbox.head + outbox.count < outbox.capacity:
        return 0
    if outbox.head * 2 >= outbox.capacity:
        memmove(outbox.entries, outbox.entries + outbox.head, outbox.count * sizeof(Entry))
        outbox.head = 0
        return 0
    capacity = <uint32_t>(memory_capacity(entries_bytes(outbox.capacity * 2)) // sizeof(Entry))
    fresh = <Entry *>memory_take(core, entries_bytes(capacity), KIND_OUTBOX)
    if fresh == NULL:
        return -1
    memcpy(fresh, outbox.entries + outbox.head, outbox.count * sizeof(Entry))
    if outbox.entries != outbox.inline_entries:
        memory_give(core, outbox.entries, entries_bytes(outbox.capacity), KIND_OUTBOX)
    outbox.entries = fresh
    outbox.head = 0
    outbox.capacity = capacity
    return 0


cdef inline void free_gap(Core *core, Entry *entry) noexcept nogil:
    memory_give(core, entry.item, sizeof(Gap), KIND_OUTBOX)
    core.channels.channels[entry.channel].frames -= 1
    channel_release(core, entry.channel)


cdef inline void release_item(Core *core, Entry *entry) noexcept nogil:
    if entry.klass == CLASS_GAP:
        free_gap(core, entry)
    else:
        frame_release(core, <Frame *>entry.item)


cdef inline uint32_t size_of(Entry *entry) noexcept nogil:
    return (<Gap *>entry.item).charge if entry.klass == CLASS_GAP else (<Frame *>entry.item).length


cdef void outbox_close(Core *core, Connection *c) noexcept nogil:
    """Give the outbox and all it holds back. Whatever still waited is not sent."""
    cdef Outbox *outbox = c.outbox
    cdef uint32_t index
    if outbox == NULL:
        return
    core.counters[<int>DROPPED_CLOSING] += outbox.count
    for index in range(outbox.head, outbox.head + outbox.count):
        release_item(core, &outbox.entries[index])
    if outbox.control != NULL:
        core.counters[<int>PONGS_DROPPED] += outbox.control.count
        pongs_close(core, outbox)
    if outbox.entries != outbox.inline_entries:
        memory_give(core, outbox.entries, entries_bytes(outbox.capacity), KIND_OUTBOX)
    set_pace(core, outbox, PACE_NONE)
    count_behind(core, outbox, False)
    memory_give(core, outbox, sizeof(Outbox), KIND_OUTBOX)
    c.outbox = NULL


cdef void outbox_close_empty(Core *core, Connection *c) noexcept nogil:
    """Give the outbox back if nothing waits in it."""
    if c.outbox != NULL and c.outbox.count == 0 and c.outbox.control == NULL:
        outbox_close(core, c)


cdef void outbox_discard(Core *core, Connection *c) noexcept nogil:
    """Drop every entry and pong whose first byte is not written."""
    cdef Outbox *outbox = c.outbox
    cdef uint32_t kept, index
    if outbox == NULL:
        return
    kept = 1 if outbox.head_written else 0
    for index in range(outbox.head + kept, outbox.head + outbox.count):
        outbox.bytes -= size_of(&outbox.entries[index])
        release_item(core, &outbox.entries[index])
    core.counters[<int>DROPPED_CLOSING] += outbox.count - kept
    outbox.count = kept
    if outbox.control != NULL:
        while pongs_drop_oldest(core, outbox):
            pass
    outbox_close_empty(core, c)


# --- who is behind, and for whom publications wait ----------------------------------------------------

cdef inline void set_pace(Core *core, Outbox *outbox, int pace) noexcept nogil:
    if pace != outbox.pace:
        core.paced[outbox.pace] -= outbox.pace != PACE_NONE
        core.paced[pace] += pace != PACE_NONE
        outbox.pace = <uint8_t>pace


cdef inline void count_behind(Core *core, Outbox *outbox, bint is_counted) noexcept nogil:
    """Count a connection among those that are behind, or no more; a crowd may begin or end with it."""
    cdef uint32_t all_open = core.states[<int>STATE_OPEN]
    if is_counted == outbox.is_counted:
        return
    outbox.is_counted = is_counted
    core.behind += 1 if is_counted else -1
    if core.is_crowd:
        core.is_crowd = core.behind != 0 and core.behind * CROWD_END >= all_open
    else:
        # One alone is a crowd only where nobody else is.
        core.is_crowd = core.behind * CROWD_PART > all_open and (core.behind > 1 or all_open == 1)


cdef void outbox_weigh(Core *core, Connection *c) noexcept nogil:
    """Count the connection anew: it went over half its limits or below, fell behind, caught up, or closes."""
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
        set_pace(core, outbox, PACE_MOVING if is_moving(core, outbox) else PACE_BEHIND)


cdef inline bint is_moving(Core *core, Outbox *outbox) noexcept nogil:
    """Whether the socket took bytes lately; only of a connection that is behind."""
    return core.clock_ms < outbox.blocked_ms + core.limits.blocked_moving_ms


cdef int64_t outbox_moving_end(Core *core, Connection *c) noexcept nogil:
    """Until when a connection counts as moving if its socket takes nothing; the far future if it does not count."""
    if c.outbox == NULL or c.outbox.pace != PACE_MOVING:
        return <int64_t>1 << 62
    return c.outbox.blocked_ms + core.limits.blocked_moving_ms


cdef bint outbox_paces(Core *core) noexcept nogil:
    """Whether publications have to wait for connections that are not judged. O(1)."""
    return core.paced[<int>PACE_READER] != 0 or is_crowd_waited_for(core) or (
        core.paced[<int>PACE_MOVING] != 0 and core.moving_us > 0
    )


cdef inline bint is_crowd_forgiven(Core *core) noexcept nogil:
    """Whether there is a crowd, and one of it reads; the rest may read when their turn comes."""
    return core.is_crowd and core.crowd_us > 0 and core.clock_ms < core.moved_ms + CROWD_STILL_MS


cdef inline bint is_crowd_waited_for(Core *core) noexcept nogil:
    return is_crowd_forgiven(core) and core.paced[<int>PACE_BEHIND] + core.paced[<int>PACE_MOVING] != 0


cdef void outbox_pass_time(Core *core, int64_t ms) noexcept nogil:
    """Charge the time that passed to the allowances, or refill them."""
    if is_crowd_waited_for(core):
        core.crowd_us = max(core.crowd_us - 1000 * ms, <int64_t>0)
        return
    core.crowd_us = min(core.crowd_us + 1000 * ms // CROWD_REST, <int64_t>1000 * CROWD_MS)
    if core.paced[<int>PACE_MOVING]:
        core.moving_us = max(core.moving_us - 1000 * ms, <int64_t>0)
    else:
        core.moving_us = min(core.moving_us + 1000 * ms // MOVING_REST, <int64_t>1000 * MOVING_MS)


cdef void begin_grace(Core *core, Outbox *outbox) noexcept nogil:
    cdef uint32_t length_ms = core.limits.blocked_grace_ms * <uint32_t>(CROWD_GRACES if core.is_crowd else 1)
    outbox.grace_ms = <uint32_t>(core.clock_ms + length_ms) | 1 if length_ms else 0
    outbox.taken = 0


cdef void outbox_fall_behind(Core *core, Connection *c) noexcept nogil:
    """The last write was short: everything that waits now is owed."""
    cdef Outbox *outbox = c.outbox
    if outbox == NULL:
        return
    core.moved_ms = core.clock_ms
    if outbox.owed == 0:
        outbox.owed = 1
        outbox_weigh(core, c)                 # a crowd may begin with it
        begin_grace(core, outbox)
    outbox.owed = outbox.bytes + control_bytes(outbox)
    outbox_weigh(core, c)


cdef int64_t outbox_grace_end(Core *core, Connection *c) noexcept nogil:
    """When the grace of a connection that is behind ends; the far future when it has none."""
    if c.outbox == NULL or c.outbox.owed == 0 or c.outbox.grace_ms == 0:
        return <int64_t>1 << 62
    return core.clock_ms + <int32_t>(c.outbox.grace_ms - <uint32_t>core.clock_ms)


cdef void outbox_end_grace(Core *core, Connection *c) noexcept nogil:
    """The grace is over: another one if the peer reads, else the limits hold from now on.

    Of a crowd, whoever took anything reads: its process serves many in turn.
    """
    cdef uint32_t least = 1 if is_crowd_forgiven(core) else KEEPS_UP_UNITS
    if c.outbox.taken >= least:
        begin_grace(core, c.outbox)
    else:
        c.outbox.grace_ms = 0
    outbox_weigh(core, c)


cdef inline uint64_t control_bytes(Outbox *outbox) noexcept nogil:
    return 0 if outbox.control == NULL else outbox.control.used - outbox.control.written


# --- overflow ---------------------------------------------------------------------------------------

cdef inline bint are_frames_forgiven(Core *core, Outbox *outbox, uint64_t size) noexcept nogil:
    """Whether a grace lets an outbox hold one frame more than the limit; its entries count as bytes."""
    return outbox.grace_ms != 0 and (
        outbox.bytes + size + entries_bytes(outbox.count + 1) <= core.limits.outbox_bytes
        or is_crowd_forgiven(core)            # nothing more is published while the caller waits for them
    )


cdef inline bint is_message_forgiven(Core *core, Outbox *outbox) noexcept nogil:
    """Whether one message may exceed the limit of bytes: it is the one that makes publications wait."""
    return outbox.grace_ms != 0 and outbox.bytes * 2 <= core.limits.outbox_bytes and (
        is_crowd_forgiven(core) or (core.moving_us > 0 and is_moving(core, outbox))
    )


cdef inline bint over(Core *core, Outbox *outbox, uint64_t size) noexcept nogil:
    """Whether one more entry of this size is too much; only of a connection that is behind."""
    if outbox.bytes + size > core.limits.outbox_bytes:
        return not is_message_forgiven(core, outbox)
    return outbox.count + 1 > core.limits.outbox_frames and not are_frames_forgiven(core, outbox, size)


cdef bint outbox_over_half(Core *core, Connection *c) noexcept nogil:
    """Whether reading should pause: whoever does not take answers may not ask more."""
    return c.outbox != NULL and (
        c.outbox.bytes * 2 > core.limits.outbox_bytes
        or c.outbox.count * 2 > core.limits.outbox_frames
    )


cdef inline bint droppable(Core *core, Entry *entry) noexcept nogil:
    cdef int policy
    if entry.klass != CLASS_PUBLICATION:
        return False
    policy = core.channels.channels[entry.channel].policy
    return policy == POLICY_DROP_OLDEST or (policy == POLICY_LATEST_ONLY and entry.spare == SUPERSEDED)


cdef void remove_at(Outbox *outbox, uint32_t index) noexcept nogil:
    """Close the hole of an entry that is already released; `index` counts from the first."""
    cdef Entry *entry = outbox.entries + outbox.head + index
    memmove(entry, entry + 1, (outbox.count - index - 1) * sizeof(Entry))
    outbox.count -= 1


cdef Gap *gap_before(Outbox *outbox, uint32_t end, uint32_t channel) noexcept nogil:
    """The pending gap of a channel among the first `end` entries, or NULL."""
    cdef Entry *entry
    cdef uint32_t index = end
    while index > 0:
        index -= 1
        entry = outbox.entries + outbox.head + index
        if entry.klass == CLASS_GAP and entry.channel == channel:
            return <Gap *>entry.item
    return NULL


cdef Gap *new_gap(Core *core, Frame *frame, uint32_t channel) noexcept nogil:
    """A gap of one publication.

    Keeps the channel, and so its name, alive as a queued frame does.
    """
    cdef Gap *gap = <Gap *>memory_take(core, sizeof(Gap), KIND_OUTBOX)
    if gap != NULL:
        gap.first = gap.last = frame.position
        gap.count = 1
        gap.charge = min(frame.length, <uint32_t>GAP_BYTES)
        core.channels.channels[channel].frames += 1
    return gap


cdef inline void widen(Gap *gap, Frame *frame) noexcept nogil:
    if gap.first == 0:
        gap.first = frame.position
    if frame.position:
        gap.last = frame.position
    gap.count += 1


cdef int drop_at(Core *core, Outbox *outbox, uint32_t index) noexcept nogil:
    """Let one publication give way to its channel's gap; -1 without memory for a new gap."""
    cdef Entry *entry = outbox.entries + outbox.head + index
    cdef Frame *frame = <Frame *>entry.item
    cdef Gap *gap = gap_before(outbox, index, entry.channel)
    if gap != NULL:
        widen(gap, frame)
        outbox.bytes -= frame.length
        frame_release(core, frame)
        remove_at(outbox, index)
    else:
        gap = new_gap(core, frame, entry.channel)
        if gap == NULL:
            return -1
        outbox.bytes += gap.charge
        outbox.bytes -= frame.length
        entry.item = gap
        entry.klass = CLASS_GAP
        frame_release(core, frame)
    core.counters[<int>DROPPED_POLICY] += 1
    return 0


cdef uint32_t first_droppable(Core *core, Outbox *outbox) noexcept nogil:
    """Index of the oldest entry that may give way; `count` when there is none."""
    cdef uint32_t index
    for index in range(1 if outbox.head_written else 0, outbox.count):
        if droppable(core, outbox.entries + outbox.head + index):
            return index
    return outbox.count


cdef void supersede(Core *core, Outbox *outbox, uint32_t channel) noexcept nogil:
    """A newer publication of a LATEST_ONLY channel came: the one before it may now give way."""
    cdef Entry *entry
    cdef uint32_t index = outbox.count
    while index > 0:
        index -= 1
        entry = outbox.entries + outbox.head + index
        if entry.klass == CLASS_PUBLICATION and entry.channel == channel:
            entry.spare = SUPERSEDED
            return


cdef int drop_newcomer(Core *core, Outbox *outbox, Frame *frame, uint32_t channel) noexcept nogil:
    """Rule 3: the publication that arrives is the one that gives way."""
    cdef Gap *gap = gap_before(outbox, outbox.count, channel)
    if gap != NULL:
        widen(gap, frame)
    else:
        if over(core, outbox, min(frame.length, <uint32_t>GAP_BYTES)):
            return PUSH_OVERFLOW
        if make_room(core, outbox) < 0:
            return PUSH_NO_MEMORY
        gap = new_gap(core, frame, channel)
        if gap == NULL:
            return PUSH_NO_MEMORY
        append(core, outbox, gap, CLASS_GAP, channel)
        outbox.bytes += gap.charge
    core.counters[<int>DROPPED_POLICY] += 1
    return PUSHED


cdef inline void append(
    Core *core, Outbox *outbox, void *item, int klass, uint32_t channel
) noexcept nogil:
    cdef Entry *entry = outbox.entries + outbox.head + outbox.count
    entry.item = item
    entry.channel = channel
    entry.age = <uint16_t>(core.clock_ms >> AGE_SHIFT)
    entry.klass = <uint8_t>klass
    entry.spare = 0
    outbox.count += 1


cdef int outbox_push(
    Core *core, Connection *c, Frame *frame, int klass, uint32_t channel
) noexcept nogil:
    """Queue a frame; takes a reference of its own. A `Push`."""
    cdef Outbox *outbox = outbox_open(core, c)
    cdef uint32_t index
    cdef int policy
    if outbox == NULL:
        return PUSH_NO_MEMORY
    if klass != CLASS_CONTROL and klass != CLASS_RESPONSE:
        if (
            klass == CLASS_PUBLICATION and outbox.count
            and core.channels.channels[channel].policy == POLICY_LATEST_ONLY
        ):
            supersede(core, outbox, channel)
        # The one test that fan-out pays: whoever is not behind is not judged.
        while outbox.owed and over(core, outbox, frame.length):
            index = first_droppable(core, outbox)
            if index < outbox.count:
                if drop_at(core, outbox, index) < 0:
                    return PUSH_NO_MEMORY
                continue
            policy = core.channels.channels[channel].policy if klass == CLASS_PUBLICATION else -1
            if policy == POLICY_DROP_OLDEST:
                return drop_newcomer(core, outbox, frame, channel)
            return PUSH_OVERFLOW
    if make_room(core, outbox) < 0:
        return PUSH_NO_MEMORY
    append(core, outbox, frame, klass, channel)
    outbox.bytes += frame.length
    frame.references += 1
    return PUSHED


cdef void outbox_mark_notice(Connection *c) noexcept nogil:
    """The entry that was queued last is a notice of loss."""
    c.outbox.entries[c.outbox.head + c.outbox.count - 1].spare = NOTICE


cdef bint outbox_has_notice(Connection *c) noexcept nogil:
    """Whether such a notice waits and none of its bytes is written: the peer reads it later than now."""
    cdef Outbox *outbox = c.outbox
    cdef uint32_t index
    if outbox == NULL:
        return False
    for index in range(1 if outbox.head_written else 0, outbox.count):
        if outbox.entries[outbox.head + index].spare == NOTICE:
            return True
    return False


# --- age --------------------------------------------------------------------------------------------

cdef inline bint ages(Entry *entry) noexcept nogil:
    return entry.klass == CLASS_REPLY or entry.klass == CLASS_PUBLICATION


cdef inline int64_t age_ms(Core *core, Entry *entry) noexcept nogil:
    return <int64_t><uint16_t>(<uint16_t>(core.clock_ms >> AGE_SHIFT) - entry.age) << AGE_SHIFT


cdef int64_t outbox_oldest_ms(Core *core, Connection *c) noexcept nogil:
    """When the oldest entry that has an age was queued; the far future when there is none."""
    cdef Entry *entry
    cdef uint32_t index
    if c.outbox != NULL:
        for index in range(c.outbox.count):
            entry = c.outbox.entries + c.outbox.head + index
            if ages(entry):
                return core.clock_ms - age_ms(core, entry)
    return <int64_t>1 << 62


cdef int outbox_drop_aged(Core *core, Connection *c) noexcept nogil:
    """Drop what is older than the limit and droppable; PUSH_OVERFLOW if an older one must stay."""
    cdef Outbox *outbox = c.outbox
    cdef Entry *entry
    cdef uint32_t index = 0
    if outbox == NULL:
        return PUSHED
    while index < outbox.count:
        entry = outbox.entries + outbox.head + index
        if not ages(entry):
            index += 1
            continue
        if age_ms(core, entry) < core.limits.outbox_age_ms:
            return PUSHED                     # entries are in the order of their age
        if (index == 0 and outbox.head_written) or not droppable(core, entry):
            return PUSH_OVERFLOW
        if drop_at(core, outbox, index) < 0:
            return PUSH_NO_MEMORY
    return PUSHED


# --- writing ----------------------------------------------------------------------------------------

cdef void outbox_replace_gap(Core *core, Connection *c, uint32_t index, Frame *frame) noexcept nogil:
    """Put the encoded message in a gap's place (its turn has come), or nothing if `frame` is NULL."""
    cdef Outbox *outbox = c.outbox
    cdef Entry *entry = outbox.entries + outbox.head + index
    outbox.bytes -= size_of(entry)
    free_gap(core, entry)
    if frame == NULL:
        remove_at(outbox, index)
        return
    entry.item = frame
    entry.klass = CLASS_CONTROL
    outbox.bytes += frame.length


cdef bint outbox_head_first(Outbox *outbox) noexcept nogil:
    """Whether the first entry goes before the pongs: it is half out, or it opens the stream."""
    return outbox.head_written != 0 or (
        outbox.count != 0 and outbox.entries[outbox.head].klass == CLASS_RESPONSE
    )


cdef uint32_t outbox_consume(Core *core, Connection *c, uint64_t written) noexcept nogil:
    """Take off what was written, in the order of the wire; returns the entries that are done.

    The outbox is given back when nothing is left: `c.outbox` is then NULL.
    """
    cdef Outbox *outbox = c.outbox
    cdef Frame *frame
    cdef uint64_t rest
    cdef uint32_t done = 0
    cdef bint head_first = outbox_head_first(outbox)
    cdef uint64_t taken = written
    while written:
        if outbox.control != NULL and not head_first:
            written = pongs_consume(core, outbox, written)
            continue
        if outbox.count == 0:
            break
        frame = <Frame *>outbox.entries[outbox.head].item
        rest = frame.length - outbox.head_written
        if written < rest:
            outbox.head_written += <uint32_t>written
            outbox.bytes -= written
            break
        written -= rest
        outbox.bytes -= rest
        outbox.head_written = 0
        head_first = False
        outbox.head += 1
        outbox.count -= 1
        frame_release(core, frame)
        done += 1
    core.counters[<int>FRAMES_OUT] += done
    if outbox.owed:
        # What was dropped meanwhile is owed no more.
        outbox.owed = min(outbox.owed - min(outbox.owed, taken), outbox.bytes + control_bytes(outbox))
        core.moved_ms = core.clock_ms
        core.crowd_us = min(core.crowd_us + <int64_t>taken, <int64_t>1000 * CROWD_MS)
        outbox.taken = <uint16_t>min(<uint64_t>outbox.taken + (taken >> 6), <uint64_t>0xFFFF)
        if outbox.owed == 0:
            outbox.grace_ms = 0
        outbox_weigh(core, c)
    if outbox.count == 0:
        outbox.head = 0
        if outbox.control == NULL:
            outbox_close(core, c)
    return done
