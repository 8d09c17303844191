"""Channel fan-out: one publication into the outboxes of all its subscribers.

The frame is encoded once per variant before this; here a subscriber costs a reference and 16 bytes.

A large channel is walked in steps, between writes: so nobody waits while half a million outboxes are
filled (38 ms at once), and no more of them exist than are about to be written. Rules:
- What is published to a channel reaches each subscriber in order: while one walk is under way the next
  publication to that channel waits behind it. Other channels do not wait.
- Who subscribes after a publication does not get it; who is subscribed until it comes by gets it once.
- At most WALKS_MAX wait; then the oldest is walked to its end at once, and full outboxes say the rest.
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


cdef int64_t fan_out(Core *core, uint32_t index, Frame **frames, uint64_t exclude) noexcept nogil:
    """Serve all subscribers, at once or on the way; how many were, or will be."""
    cdef Channel *channel = &core.channels.channels[index]
    cdef Walk *walk
    cdef int variant
    if channel.walks == 0 and channel.count <= core.limits.walk_at_once:
        return serve(core, index, frames, exclude, 0, channel.count)
    if core.walk_count >= WALKS_MAX:
        walks_step(core, core.walks.left)
    walk = <Walk *>memory_take(core, sizeof(Walk), KIND_OUTBOX)
    if walk == NULL:
        while channel.walks:
            walks_step(core, core.walks.left)
        return serve(core, index, frames, exclude, 0, channel.count)
    walk.next = NULL
    walk.channel = index
    walk.left = channel.count
    walk.exclude = exclude
    for variant in range(VARIANTS_MAX):
        walk.frames[variant] = frames[variant]
        if frames[variant] != NULL:
            frames[variant].references += 1
    channel.walks += 1
    if core.walks == NULL:
        core.walks = walk
    else:
        core.last_walk.next = walk
    core.last_walk = walk
    core.walk_count += 1
    return channel.count


cdef void walks_step(Core *core, uint32_t most) noexcept nogil:
    """Serve the next of the oldest walk, from the end of its front; end it when there is none left."""
    cdef Walk *walk = core.walks
    cdef uint32_t end = walk.left
    cdef int variant
    walk.left = end - min(most, end)
    serve(core, walk.channel, walk.frames, walk.exclude, walk.left, end)
    if walk.left:
        return
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
        core.walks.left = 0
        walks_step(core, 0)


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
