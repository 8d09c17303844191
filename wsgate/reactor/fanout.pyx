"""Channel fan-out: one publication into the outboxes of all its subscribers.

The frame is encoded once per variant before this; here a subscriber costs a reference and 16 bytes.

A large channel is walked in steps, between writes: so nobody waits while half a million outboxes are
filled (38 ms at once), and no more of them exist than are about to be written. Rules:
- What is published to a channel reaches each subscriber in order: while one walk is under way the next
  publication to that channel waits behind it. Other channels do not wait.
- Who subscribes after a publication does not get it; who is subscribed until it comes by gets it once.
- Publications to one channel that wait behind one another are walked together, so that they leave
  together: each subscriber is given all of them at once.
- At most WALKS_MAX wait; then the oldest is walked to its end at once. The caller does not let it come to
  that (`Reactor.is_full`).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from wsgate.reactor.channels cimport channel_release, channel_slots
from wsgate.reactor.closing cimport deliver
from wsgate.reactor.frames cimport frame_release
from wsgate.reactor.memory cimport memory_give, memory_take
from wsgate.reactor.structs cimport (
    Bye, CLASS_PUBLICATION, Channel, Connection, Core, DELIVERIES, Frame, KIND_OUTBOX, STATE_OPEN,
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
    """Put one reference into the outboxes of a part of the subscribers. No Python per subscriber.

    The connection eight places ahead is fetched while this one is served: the walk is bound by cache
    misses, not by work.
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
    """Serve one walk down to a place, from the end of its front."""
    cdef uint32_t end = walk.left
    walk.left = start
    serve(core, walk.channel, walk.frames, walk.exclude, start, end)


cdef Walk *new_walk(Core *core, uint32_t index) noexcept nogil:
    """A walk behind all others, which has nothing to serve yet but subscribers; NULL without memory."""
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
    """Serve all subscribers, at once or on the way; how many were, or will be."""
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
    """Serve the next subscribers of the oldest walk, and of those behind it that are as far in its channel.

    `most` bounds the entries that are queued, so that a step costs the same however many walks it serves.
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
    """Serve all that is left of the oldest walk, alone."""
    serve_walk(core, core.walks, 0)
    end_walk(core)


cdef void end_walk(Core *core) noexcept nogil:
    """Forget the oldest walk."""
    cdef Walk *walk = core.walks
    cdef int variant
    core.walks = walk.next
    core.walk_count -= 1
    core.channels.channels[walk.channel].walks -= 1
    channel_release(core, walk.channel)       # a walk without frames may be the last that kept it
    for variant in range(VARIANTS_MAX):
        if walk.frames[variant] != NULL:
            frame_release(core, walk.frames[variant])
    memory_give(core, walk, sizeof(Walk), KIND_OUTBOX)


cdef void walks_drop(Core *core) noexcept nogil:
    """End all walks, nobody served."""
    while core.walks != NULL:
        end_walk(core)


cdef Bye *bye_for(Core *core, uint16_t close_code, int reason, int rank) noexcept nogil:
    """The bye of a code, a reason and a rank, made if there is none."""
    cdef uint32_t index
    cdef Bye *grown
    for index in range(core.bye_count):
        if (
            core.byes[index].close_code == close_code and core.byes[index].reason == reason
            and core.byes[index].rank == rank
        ):
            return &core.byes[index]
    grown = <Bye *>malloc((core.bye_count + 1) * sizeof(Bye))
    if grown == NULL:
        return NULL
    if core.bye_count:
        memcpy(grown, core.byes, core.bye_count * sizeof(Bye))
    free(core.byes)
    core.byes = grown
    memset(&grown[core.bye_count], 0, sizeof(Bye))
    grown[core.bye_count].close_code = close_code
    grown[core.bye_count].reason = <uint8_t>reason
    grown[core.bye_count].rank = <uint8_t>rank
    core.bye_count += 1
    return &grown[core.bye_count - 1]
