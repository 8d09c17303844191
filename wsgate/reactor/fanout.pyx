"""The fan-out queues one publication in the outboxes of all subscribers of a channel.

The frame was encoded before, once for each variant. A subscriber costs a reference and an entry of 16 bytes.

A large channel is walked in steps, between writes. So no other connection waits while half a million outboxes
are filled (38 ms at once), and only as many outboxes exist as are about to be written. Rules:

- Publications to one channel reach each subscriber in order: while one walk is under way, the next
  publication to that channel waits behind it. Other channels do not wait.
- A connection that subscribes after a publication does not receive it. A connection that stays subscribed
  until the walk reaches it receives it once.
- Publications to one channel that wait behind one another are walked together, so that an outbox receives all
  of them before it is written.
- At most WALKS_MAX walks wait; one more has the oldest walk finished at once. The caller avoids that by
  reading `Reactor.is_full`.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from wsgate.reactor.channels cimport channel_release, channel_slots
from wsgate.reactor.delivery cimport deliver
from wsgate.reactor.frames cimport frame_release
from wsgate.reactor.memory cimport memory_give, memory_take
from wsgate.reactor.structs cimport (
    CLASS_PUBLICATION, Channel, Connection, Core, DELIVERIES, Frame, KIND_OUTBOX, STATE_OPEN,
    URGENT_SUBSCRIBERS, VARIANTS_MAX, WALKS_MAX, Walk,
)
from wsgate.reactor.table cimport at, handle_of

cdef extern from *:
    """
    #define wsgate_prefetch(address) __builtin_prefetch((address), 1)
    """
    void prefetch "wsgate_prefetch"(void *address) noexcept nogil


cdef int64_t serve(
    Core *core, uint32_t index, Frame **frames, uint64_t exclude, uint32_t start, uint32_t end
) noexcept nogil:
    """Queue a publication for the subscribers from `start` to `end` of a channel's array.

    Returns for how many. The connection eight places ahead is prefetched, because the loop is limited by
    cache misses and not by computation.
    """
    cdef Channel *channel = &core.channels.channels[index]
    cdef uint32_t place, slot
    cdef uint32_t *slots = channel_slots(channel)
    cdef bint urgent = channel.count <= URGENT_SUBSCRIBERS
    cdef Connection *c
    cdef int64_t reached = 0
    for place in range(start, end):
        if place + 8 < end:
            prefetch(at(core, slots[place + 8]))
        slot = slots[place]
        c = at(core, slot)
        if c.state != STATE_OPEN or frames[c.variant] == NULL:
            continue
        if exclude and handle_of(c, slot) == exclude:
            continue
        reached += deliver(core, slot, frames[c.variant], CLASS_PUBLICATION, index, urgent)
    core.counters[<int>DELIVERIES] += reached
    return reached


cdef void serve_walk(Core *core, Walk *walk, uint32_t start) noexcept nogil:
    """Continue one walk: serve the subscribers from `start` to the end of those that it has not served."""
    cdef uint32_t end = walk.left
    walk.left = start
    serve(core, walk.channel, walk.frames, walk.exclude, start, end)


cdef Walk *new_walk(Core *core, uint32_t index) noexcept nogil:
    """Make a walk over all subscribers of a channel, behind all other walks; NULL without memory.

    Without memory the earlier walks of this channel are finished at once, so that the caller may serve all
    subscribers itself and keep the order.
    """
    cdef Walk *walk
    if core.walk_count >= WALKS_MAX:
        walk_to_end(core)
    walk = <Walk *>memory_take(core, sizeof(Walk), KIND_OUTBOX)
    if walk == NULL:
        while core.channels.channels[index].walks:
            walk_to_end(core)
        return NULL
    memset(walk, 0, sizeof(Walk))
    walk.channel = index
    walk.left = core.channels.channels[index].count
    core.channels.channels[index].walks += 1
    if core.walks == NULL:
        core.walks = walk
    else:
        core.last_walk.next = walk
    core.last_walk = walk
    core.walk_count += 1
    return walk


cdef int64_t fan_out(Core *core, uint32_t index, Frame **frames, uint64_t exclude) noexcept nogil:
    """Queue a publication for all subscribers of a channel, now or in a walk; returns for how many.

    `frames` has one frame for each variant, or NULL. `exclude` is the handle of a connection that is left
    out, or 0.
    """
    cdef Channel *channel = &core.channels.channels[index]
    cdef Walk *walk
    cdef int variant
    if channel.walks == 0 and channel.count <= core.limits.walk_at_once:
        return serve(core, index, frames, exclude, 0, channel.count)
    walk = new_walk(core, index)
    if walk == NULL:
        return serve(core, index, frames, exclude, 0, channel.count)
    walk.exclude = exclude
    for variant in range(VARIANTS_MAX):
        walk.frames[variant] = frames[variant]
        if frames[variant] != NULL:
            frames[variant].references += 1
    return channel.count


cdef void walks_step(Core *core, uint32_t most) noexcept nogil:
    """Continue the oldest walk, together with those behind it that are as far in the same channel.

    `most` limits the entries that are queued, so that a step costs the same however many walks it serves.
    """
    cdef Walk *walk = core.walks
    cdef Walk *other = walk
    cdef uint32_t end = walk.left, start, together = 0
    while other != NULL and other.channel == walk.channel and other.left == end:
        together += 1
        other = other.next
    start = end - min(max(most // together, <uint32_t>1), end)
    other = walk
    while together:
        together -= 1
        serve_walk(core, other, start)
        other = other.next
    while core.walks != NULL and core.walks.left == 0:
        end_walk(core)


cdef void walk_to_end(Core *core) noexcept nogil:
    """Finish the oldest walk at once, without those behind it."""
    serve_walk(core, core.walks, 0)
    end_walk(core)


cdef void end_walk(Core *core) noexcept nogil:
    """Remove the oldest walk and release its frames."""
    cdef Walk *walk = core.walks
    cdef int variant
    core.walks = walk.next
    core.walk_count -= 1
    core.channels.channels[walk.channel].walks -= 1
    channel_release(core, walk.channel)       # a walk without frames may be the last that kept the channel
    for variant in range(VARIANTS_MAX):
        if walk.frames[variant] != NULL:
            frame_release(core, walk.frames[variant])
    memory_give(core, walk, sizeof(Walk), KIND_OUTBOX)


cdef void walks_drop(Core *core) noexcept nogil:
    """Remove all walks without serving the subscribers that are left."""
    while core.walks != NULL:
        end_walk(core)
