"""Channel fan-out: one publication into the outboxes of all its subscribers.

The frame is encoded once per variant before this; here a subscriber costs a reference and 16 bytes.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from wsgate.reactor.channels cimport channel_slots
from wsgate.reactor.closing cimport deliver
from wsgate.reactor.structs cimport (
    Bye, CLASS_PUBLICATION, Channel, Connection, Core, DELIVERIES, Frame, STATE_OPEN, URGENT_SUBSCRIBERS,
)
from wsgate.reactor.table cimport at, handle_of

cdef extern from *:
    """
    #define wsgate_prefetch(address) __builtin_prefetch((address), 1)
    """
    void prefetch "wsgate_prefetch"(void *address) noexcept nogil


cdef int64_t walk_subscribers(Core *core, uint32_t index, Frame **frames, uint64_t exclude) noexcept nogil:
    """Put one reference into each subscriber's outbox. No Python per subscriber.

    The connection eight places ahead is fetched while this one is served: the walk is bound by cache
    misses, not by work.
    """
    cdef Channel *channel = &core.channels.channels[index]
    cdef uint32_t place, slot, count = channel.count
    cdef uint32_t *slots = channel_slots(channel)
    cdef bint urgent = count <= URGENT_SUBSCRIBERS
    cdef Connection *c
    cdef int64_t reached = 0
    for place in range(count):
        if place + 8 < count:
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


cdef Bye *bye_for(Core *core, uint16_t close_code, int reason) noexcept nogil:
    """The bye of a code and a reason, made if there is none."""
    cdef uint32_t index
    cdef Bye *grown
    for index in range(core.bye_count):
        if core.byes[index].close_code == close_code and core.byes[index].reason == reason:
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
    core.bye_count += 1
    return &grown[core.bye_count - 1]
