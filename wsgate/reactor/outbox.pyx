"""The outbox: the frames that wait to be written to one connection, and the limits for them.

An outbox exists only while something waits. It contains references to shared frames, so a publication that
waits in 15,000 outboxes costs its bytes once and 16 bytes per outbox.

The limits for bytes, frames and age are applied only to a connection that is behind: see pacing.pyx, which
also says when publications wait for connections. During its grace the outbox of such a connection may hold
more frames than its limit, as long as their bytes and their entries are together at most `outbox_bytes`; in a
crowd the limit for frames does not apply at all. While publications wait for a connection, its outbox may
hold one message more than its limit for bytes: the message that made the publications wait. Memory is bounded
all the same, because the caller queues no publication while `pacing_must_wait` is true.

The rules for the overflow of a connection that is behind, in order:

1. A CONTROL entry is always accepted: pings, `bye` and Close have a reserve beyond the limits.
2. While the new entry would exceed the limit for bytes or frames, the oldest droppable entry is dropped.
   Droppable is a publication of a channel with the policy DROP_OLDEST, and a publication of a LATEST_ONLY
   channel when a newer one of that channel waits or arrives. A half-written entry is never droppable.
3. If no entry is droppable and the new entry is a publication of a DROP_OLDEST channel, the new entry is
   dropped.
4. Otherwise the push fails with PUSH_OVERFLOW, and the caller closes the connection (4010).
5. A dropped publication leaves a gap in its place. Later drops of the same channel are merged into that gap.
   A gap counts as one frame and as many bytes as the first publication it replaces, at most 64, so that a
   drop never makes the outbox larger. The gap becomes a message when it is its turn to be written.

Age obeys the same rules: an entry older than the limit is dropped if it is droppable (LATEST_ONLY: if a newer
one waits), else the connection is closed. Only replies and publications have an age.

Pongs wait separately, in the control slot (pongs.pyx).

The order of writing: the rest of a half-written entry or an HTTP response, the control slot, then the entries
in order.

Push and consume are O(1) while nothing overflows; dropping what does not fit is O(entries), once.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from wsgate.reactor.channels cimport channel_release
from wsgate.reactor.frames cimport frame_release
from wsgate.reactor.memory cimport memory_capacity, memory_give, memory_take
from wsgate.reactor.pacing cimport pacing_forget, pacing_is_crowd_forgiven, pacing_is_moving, pacing_take
from wsgate.reactor.pongs cimport (
    PUSHED, PUSH_NO_MEMORY, PUSH_OVERFLOW, pongs_close, pongs_consume, pongs_drop_oldest,
)
from wsgate.reactor.structs cimport (
    CLASS_CONTROL, CLASS_GAP, CLASS_PUBLICATION, CLASS_REPLY, CLASS_RESPONSE, Connection, Core, DROPPED_CLOSING,
    DROPPED_POLICY, Entry, FRAMES_OUT, Frame, GAP_BYTES, Gap, KIND_OUTBOX, Outbox, POLICY_DROP_OLDEST,
    POLICY_LATEST_ONLY, PONGS_DROPPED,
)

cdef enum:
    INLINE_ENTRIES = 4
    AGE_SHIFT = 6                # entry ages count 64 ms steps: 16 bits last 70 minutes
    SUPERSEDED = 1               # Entry.spare: a newer publication of its LATEST_ONLY channel exists
    KNOWN_GAPS = 8
    NOTICE = 2                   # Entry.spare of a CONTROL entry: a loss notice for all channels


# --- create, grow and release -----------------------------------------------------------------------

cdef Outbox *outbox_open(Core *core, Connection *c) noexcept nogil:
    """Return the outbox of a connection, created if there is none; NULL without memory."""
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
    """Return the bytes of an array of `count` entries."""
    return <uint64_t>count * sizeof(Entry)


cdef int make_room(Core *core, Outbox *outbox) noexcept nogil:
    """Make room in the entry array for one more entry; return 0, or -1 without memory."""
    cdef Entry *fresh
    cdef uint32_t capacity
    if outbox.head + outbox.count < outbox.capacity:
        return 0
    if outbox.head * 2 >= outbox.capacity:
        # At least half of the array is free in front: move the entries there instead of growing.
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
    """Release the gap of an entry, and its hold on the channel."""
    memory_give(core, entry.item, sizeof(Gap), KIND_OUTBOX)
    core.channels.channels[entry.channel].frames -= 1
    channel_release(core, entry.channel)


cdef inline void release_item(Core *core, Entry *entry) noexcept nogil:
    """Release the gap, or the reference to the frame, of an entry."""
    if entry.klass == CLASS_GAP:
        free_gap(core, entry)
    else:
        frame_release(core, <Frame *>entry.item)


cdef inline uint32_t size_of(Entry *entry) noexcept nogil:
    """Return the bytes that an entry counts for in `Outbox.bytes`, if no byte of it is written."""
    return (<Gap *>entry.item).charge if entry.klass == CLASS_GAP else (<Frame *>entry.item).length


cdef void outbox_close(Core *core, Connection *c) noexcept nogil:
    """Release the outbox with all entries and pongs, which are not sent any more."""
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
    pacing_forget(core, outbox)
    memory_give(core, outbox, sizeof(Outbox), KIND_OUTBOX)
    c.outbox = NULL


cdef void outbox_close_empty(Core *core, Connection *c) noexcept nogil:
    """Release the outbox if it has no entry and no pong."""
    if c.outbox != NULL and c.outbox.count == 0 and c.outbox.control == NULL:
        outbox_close(core, c)


cdef void outbox_discard(Core *core, Connection *c) noexcept nogil:
    """Drop all entries and pongs except one whose first byte is written; an empty outbox is released."""
    cdef Outbox *outbox = c.outbox
    cdef uint32_t kept, index
    if outbox == NULL:
        return
    kept = 1 if outbox.head_written else 0    # the peer needs the rest of a half-written frame
    for index in range(outbox.head + kept, outbox.head + outbox.count):
        outbox.bytes -= size_of(&outbox.entries[index])
        release_item(core, &outbox.entries[index])
    core.counters[<int>DROPPED_CLOSING] += outbox.count - kept
    outbox.count = kept
    if outbox.control != NULL:
        while pongs_drop_oldest(core, outbox):
            pass
    outbox_close_empty(core, c)


# --- overflow ---------------------------------------------------------------------------------------

cdef inline bint are_frames_forgiven(Core *core, Outbox *outbox, uint64_t size) noexcept nogil:
    """Return whether the grace allows one more frame of `size` bytes beyond the limit for frames."""
    return outbox.grace_ms != 0 and (
        outbox.bytes + size + entries_bytes(outbox.count + 1) <= core.limits.outbox_bytes
        or pacing_is_crowd_forgiven(core)     # the caller publishes nothing while it waits for the crowd
    )


cdef inline bint is_message_forgiven(Core *core, Outbox *outbox) noexcept nogil:
    """Return whether one message may exceed the limit for bytes, because publications wait after it."""
    return outbox.grace_ms != 0 and outbox.bytes * 2 <= core.limits.outbox_bytes and (
        pacing_is_crowd_forgiven(core) or (core.moving_us > 0 and pacing_is_moving(core, outbox))
    )


cdef inline bint over(Core *core, Outbox *outbox, uint64_t size) noexcept nogil:
    """Return whether one more entry of `size` bytes exceeds the limits of a connection that is behind."""
    if outbox.bytes + size > core.limits.outbox_bytes:
        return not is_message_forgiven(core, outbox)
    return outbox.count + 1 > core.limits.outbox_frames and not are_frames_forgiven(core, outbox, size)


cdef bint outbox_over_half(Core *core, Connection *c) noexcept nogil:
    """Return whether the outbox is over half its limits, so that no more commands are read from the peer."""
    return c.outbox != NULL and (
        c.outbox.bytes * 2 > core.limits.outbox_bytes
        or c.outbox.count * 2 > core.limits.outbox_frames
    )


cdef inline bint droppable(Core *core, Entry *entry) noexcept nogil:
    """Return whether an entry is a publication that the policy of its channel allows to drop."""
    cdef int policy
    if entry.klass != CLASS_PUBLICATION:
        return False
    policy = core.channels.channels[entry.channel].policy
    return policy == POLICY_DROP_OLDEST or (policy == POLICY_LATEST_ONLY and entry.spare == SUPERSEDED)


cdef void remove_at(Outbox *outbox, uint32_t index) noexcept nogil:
    """Close the hole of a released entry in the array; `index` counts from the first entry. O(count)."""
    cdef Entry *entry = outbox.entries + outbox.head + index
    memmove(entry, entry + 1, (outbox.count - index - 1) * sizeof(Entry))
    outbox.count -= 1


cdef Gap *gap_before(Outbox *outbox, uint32_t end, uint32_t channel) noexcept nogil:
    """Return the pending gap of a channel among the first `end` entries, or NULL. O(end)."""
    cdef Entry *entry
    cdef uint32_t index = end
    while index > 0:
        index -= 1
        entry = outbox.entries + outbox.head + index
        if entry.klass == CLASS_GAP and entry.channel == channel:
            return <Gap *>entry.item
    return NULL


cdef Gap *new_gap(Core *core, Frame *frame, uint32_t channel) noexcept nogil:
    """Create the gap for one dropped publication; NULL without memory.

    Like a queued frame, the gap keeps the channel with its name from being released.
    """
    cdef Gap *gap = <Gap *>memory_take(core, sizeof(Gap), KIND_OUTBOX)
    if gap != NULL:
        gap.first = gap.last = frame.position
        gap.count = 1
        gap.charge = min(frame.length, <uint32_t>GAP_BYTES)
        core.channels.channels[channel].frames += 1
    return gap


cdef inline void widen(Gap *gap, Frame *frame) noexcept nogil:
    """Add one more dropped publication to a gap."""
    if gap.first == 0:
        gap.first = frame.position
    if frame.position:
        gap.last = frame.position
    gap.count += 1


cdef int drop(Core *core, Outbox *outbox, uint64_t size, bint by_age) noexcept nogil:
    """Replace droppable publications by gaps, oldest first, in one walk over the entries. O(count).

    An outbox can be far over its limits when a grace ends. With 21,000 entries in each of four outboxes, one
    memmove for each drop took 52 ms of CPU; this walk takes 0.13 ms.

    Args:
        core: The reactor.
        outbox: The outbox of the connection.
        size: Without `by_age`: drop until one more entry of this size fits, or nothing droppable is left.
        by_age: Drop the entries that are older than `outbox_age_ms`.

    Returns:
        PUSHED; PUSH_OVERFLOW if an entry that is too old cannot be dropped; PUSH_NO_MEMORY without memory for
        a gap.
    """
    cdef Gap *known[KNOWN_GAPS]               # gaps that were used lately, by channel: saves searching them
    cdef uint32_t known_channel[KNOWN_GAPS]
    cdef Entry *entry
    cdef Frame *frame
    cdef Gap *gap
    cdef uint32_t total = outbox.count, place = 0, kept = 0, row
    cdef int outcome = PUSHED
    cdef bint is_dropped
    memset(known, 0, sizeof(known))
    while place < total:
        entry = outbox.entries + outbox.head + place
        # The peer needs the rest of a half-written frame.
        is_dropped = (place != 0 or outbox.head_written == 0) and droppable(core, entry)
        if not by_age:
            if not over(core, outbox, size):
                break
        elif not ages(entry):
            is_dropped = False
        elif age_ms(core, entry) < core.limits.outbox_age_ms:
            break                             # entries are in the order of their age
        elif not is_dropped:
            outcome = PUSH_OVERFLOW
            break
        if is_dropped:
            frame = <Frame *>entry.item
            row = entry.channel % KNOWN_GAPS
            if known[row] == NULL or known_channel[row] != entry.channel:
                known[row] = gap_before(outbox, kept, entry.channel)
                known_channel[row] = entry.channel
            gap = known[row]
            if gap != NULL:
                widen(gap, frame)
                outbox.count -= 1
            else:
                gap = known[row] = new_gap(core, frame, entry.channel)
                if gap == NULL:
                    outcome = PUSH_NO_MEMORY
                    break
                outbox.bytes += gap.charge
                entry.item = gap
                entry.klass = CLASS_GAP
                is_dropped = False            # the entry stays, as a gap
            outbox.bytes -= frame.length
            frame_release(core, frame)
            core.counters[<int>DROPPED_POLICY] += 1
        if not is_dropped:
            if kept != place:
                outbox.entries[outbox.head + kept] = entry[0]
            kept += 1
        place += 1
    if kept != place:
        entry = outbox.entries + outbox.head
        memmove(entry + kept, entry + place, (total - place) * sizeof(Entry))
    return outcome


cdef void supersede(Core *core, Outbox *outbox, uint32_t channel) noexcept nogil:
    """Mark the last queued publication of a LATEST_ONLY channel as droppable, because a newer one arrives."""
    cdef Entry *entry
    cdef uint32_t index = outbox.count
    while index > 0:
        index -= 1
        entry = outbox.entries + outbox.head + index
        if entry.klass == CLASS_PUBLICATION and entry.channel == channel:
            entry.spare = SUPERSEDED
            return


cdef int drop_newcomer(Core *core, Outbox *outbox, Frame *frame, uint32_t channel) noexcept nogil:
    """Drop the publication that arrives (rule 3) and record it in a gap; return a `Push` value."""
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
    """Add an entry behind the last one of the outbox; `make_room` must have made room for it."""
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
    """Queue a frame by the rules of overflow, with a reference of its own; return a `Push` value."""
    cdef Outbox *outbox = outbox_open(core, c)
    cdef int policy
    if outbox == NULL:
        return PUSH_NO_MEMORY
    if klass != CLASS_CONTROL and klass != CLASS_RESPONSE:
        if (
            klass == CLASS_PUBLICATION and outbox.count
            and core.channels.channels[channel].policy == POLICY_LATEST_ONLY
        ):
            supersede(core, outbox, channel)
        # Fan-out pays for this one test: the limits do not apply to a connection that is not behind.
        if outbox.owed and over(core, outbox, frame.length):
            # Rules 2 to 4, in this order.
            if drop(core, outbox, frame.length, False) == PUSH_NO_MEMORY:
                return PUSH_NO_MEMORY
            if over(core, outbox, frame.length):
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
    """Mark the entry that was queued last as a loss notice."""
    c.outbox.entries[c.outbox.head + c.outbox.count - 1].spare = NOTICE


cdef bint outbox_has_notice(Connection *c) noexcept nogil:
    """Return whether a loss notice waits of which no byte is written: it also covers new losses."""
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
    """Return whether the age limit applies to an entry: to replies and publications only."""
    return entry.klass == CLASS_REPLY or entry.klass == CLASS_PUBLICATION


cdef inline int64_t age_ms(Core *core, Entry *entry) noexcept nogil:
    """Return the time since an entry was queued, in milliseconds, with an error below 64 ms."""
    return <int64_t><uint16_t>(<uint16_t>(core.clock_ms >> AGE_SHIFT) - entry.age) << AGE_SHIFT


cdef int64_t outbox_oldest_ms(Core *core, Connection *c) noexcept nogil:
    """Return when the oldest reply or publication was queued, in clock time; the far future if none is."""
    cdef Entry *entry
    cdef uint32_t index
    if c.outbox != NULL:
        for index in range(c.outbox.count):
            entry = c.outbox.entries + c.outbox.head + index
            if ages(entry):
                return core.clock_ms - age_ms(core, entry)
    return <int64_t>1 << 62


cdef int outbox_drop_aged(Core *core, Connection *c) noexcept nogil:
    """Drop the entries that are older than `outbox_age_ms`.

    Returns:
        PUSHED; PUSH_OVERFLOW if an entry that is too old cannot be dropped; PUSH_NO_MEMORY without memory for
        a gap.
    """
    return PUSHED if c.outbox == NULL else drop(core, c.outbox, 0, True)


# --- writing ----------------------------------------------------------------------------------------

cdef void outbox_replace_gap(Core *core, Connection *c, uint32_t index, Frame *frame) noexcept nogil:
    """Replace a gap by its encoded message, whose reference is taken over; remove it if `frame` is NULL."""
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
    """Return whether the first entry is written before the pongs: it is half-written or an HTTP response."""
    return outbox.head_written != 0 or (
        outbox.count != 0 and outbox.entries[outbox.head].klass == CLASS_RESPONSE
    )


cdef uint32_t outbox_consume(Core *core, Connection *c, uint64_t written) noexcept nogil:
    """Remove `written` bytes from the outbox in the order of writing; return how many entries are complete.

    Releases the outbox when nothing is left: `c.outbox` is then NULL.
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
        pacing_take(core, c, taken)
    if outbox.count == 0:
        outbox.head = 0
        if outbox.control == NULL:
            outbox_close(core, c)
    return done
