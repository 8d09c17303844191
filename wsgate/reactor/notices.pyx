"""Notices of loss: one frame for each connection that may have missed publications.

A channel remembers the round in which it lost publications last; the caller numbers the rounds. A walk over the
table of connections then queues one frame for each connection that is subscribed to a channel of the round.
The walk is made in steps, between writes, so that a shard with a million connections never pauses for it.

Rules:
- A connection receives one notice in a round, whatever number of its channels lost something. A connection
  without subscriptions receives none.
- A channel that loses something during a walk is marked with the next round. A connection that the walk has
  not reached yet is notified in the next round only, which comes later than the loss.
- The frames of one step differ, for example in the time after which a client reloads. Neighbours in the table
  receive different ones.
- A notice that still waits unsent in an outbox also covers what is lost meanwhile: no second one is queued
  behind it. So a socket that is full holds one notice at most, however often there is something to notify.
- While many connections wait to be written the walk pauses, so that no more outboxes exist than are written
  soon.
"""

from libc.stdint cimport uint32_t, uint64_t

from wsgate.reactor.channels cimport is_subscribed
from wsgate.reactor.closing cimport deliver
from wsgate.reactor.outbox cimport outbox_has_notice, outbox_mark_notice
from wsgate.reactor.structs cimport (
    CHUNK_SLOTS, CLASS_CONTROL, CLASS_PUBLICATION, Connection, Core, Frame, NONE, STATE_OPEN, VARIANTS_MAX,
    WALK_AHEAD,
)
from wsgate.reactor.table cimport at


cdef bint has_lost(Core *core, Connection *c, uint32_t round) noexcept nogil:
    """Whether one of the connection's channels lost something in this round. O(cells of its table)."""
    cdef uint32_t cell, channel
    for cell in range(<uint32_t>1 << c.subscription_bits):
        channel = c.subscriptions[cell].channel
        if channel != NONE and core.channels.channels[channel].lost_round == round:
            return True
    return False


cdef uint64_t notify(Core *core, uint32_t slot, Frame *frame, uint32_t channel) noexcept nogil:
    """Queue one notice; 1 when the connection has it or will have it."""
    cdef Connection *c = at(core, slot)
    if channel != NONE:
        # As a publication of its channel: bounded as those are, and its loss leaves a gap of its own.
        return deliver(core, slot, frame, CLASS_PUBLICATION, channel, False)
    if outbox_has_notice(c):
        return 1
    if not deliver(core, slot, frame, CLASS_CONTROL, NONE, False):
        return 0
    outbox_mark_notice(c)
    return 1


cdef uint32_t notices_step(
    Core *core, uint32_t start, uint32_t most, Frame **frames, uint32_t forms, uint32_t round, uint32_t channel,
    uint64_t *notified,
) noexcept nogil:
    """Look at the next slots; the slot to go on with, NONE at the end of the table.

    Args:
        start: The first slot.
        most: How many slots are looked at.
        frames: `forms` times a frame for each variant.
        round: Which loss it is about, when `channel` is NONE.
        channel: The one channel that lost something, or NONE.
        notified: The number of connections with a notice is added to it.
    """
    cdef uint32_t slots = core.chunk_count * CHUNK_SLOTS, slot = start, end
    cdef Connection *c
    cdef Frame *frame
    if start >= slots:
        return <uint32_t>NONE
    if core.bulk.count >= WALK_AHEAD:
        return start
    end = start + min(most, slots - start)
    while slot < end:
        c = at(core, slot)
        if c.state == STATE_OPEN and c.subscription_count:
            frame = frames[(slot % forms) * VARIANTS_MAX + c.variant]
            if frame != NULL and (
                has_lost(core, c, round) if channel == NONE else is_subscribed(core, c, channel)
            ):
                notified[0] += notify(core, slot, frame, channel)
        slot += 1
    return slot if slot < slots else <uint32_t>NONE
