"""Loss notices: a message to each connection whose channels may have lost publications.

Each channel stores the number of the round in which it last lost publications; the caller numbers the rounds.
The caller then goes through the table of connections in steps, between writes, so that a shard with a million
connections never pauses for long. A step queues one frame for each connection that is subscribed to a channel
of the round.

Rules:
- A connection receives one notice in a round, however many of its channels lost publications. A connection
  without subscriptions receives none.
- A channel that loses publications during a round is marked with the number of the next round. A connection
  that the present round has not reached yet is notified in this round, because the mark may have replaced an
  older one, and again in the next round. So a channel that loses in every round leaves nobody out.
- The frames of one step differ, for example in the time after which a client reloads. Connections in
  neighbouring slots receive different frames.
- A notice of a round that waits unsent in an outbox also covers later losses, so no second one is queued
  behind it. A connection with a full socket has at most one such notice, however many losses there are.
- While WALK_AHEAD or more connections wait on the bulk list, a step does nothing, so that no more outboxes
  exist than can soon be written.
"""

from libc.stdint cimport uint32_t, uint64_t

from wsgate.reactor.channels cimport is_subscribed
from wsgate.reactor.delivery cimport deliver
from wsgate.reactor.outbox cimport outbox_has_notice, outbox_mark_notice
from wsgate.reactor.structs cimport (
    CHUNK_SLOTS, CLASS_CONTROL, CLASS_PUBLICATION, Connection, Core, Frame, NONE, STATE_OPEN, VARIANTS_MAX,
    WALK_AHEAD,
)
from wsgate.reactor.table cimport at


cdef bint has_lost(Core *core, Connection *c, uint32_t round) noexcept nogil:
    """Return whether a channel of the connection is marked for `round` or the next. O(cells of its table)."""
    cdef uint32_t cell, channel, mark, next_round = 1 if round == <uint32_t>-1 else round + 1
    for cell in range(<uint32_t>1 << c.subscription_bits):
        channel = c.subscriptions[cell].channel
        mark = 0 if channel == NONE else core.channels.channels[channel].lost_round
        if mark != 0 and (mark == round or mark == next_round):
            return True
    return False


cdef uint64_t notify(Core *core, uint32_t slot, Frame *frame, uint32_t channel) noexcept nogil:
    """Queue one loss notice; return 1 if the connection receives it or one that waits already, else 0."""
    cdef Connection *c = at(core, slot)
    if channel != NONE:
        # Like a publication of the channel: the same limits apply, and a drop leaves a gap.
        return deliver(core, slot, frame, CLASS_PUBLICATION, channel, False)
    if outbox_has_notice(c):
        return 1                              # the waiting notice covers this loss too
    if not deliver(core, slot, frame, CLASS_CONTROL, NONE, False):
        return 0
    outbox_mark_notice(c)
    return 1


cdef uint32_t notices_step(
    Core *core, uint32_t start, uint32_t most, Frame **frames, uint32_t forms, uint32_t round,
    uint32_t channel, uint64_t *notified,
) noexcept nogil:
    """Queue loss notices for the connections in the next slots; return the slot to continue with.

    Args:
        start: The first slot.
        most: How many slots to visit.
        frames: `forms` groups of VARIANTS_MAX frames, one frame or NULL for each variant.
        forms: How many different messages there are.
        round: The number of the round; used when `channel` is NONE.
        channel: The only channel that lost publications, or NONE.
        notified: Is increased by the number of connections with a notice.

    Returns:
        The next slot; `start` while too many connections wait to be written; NONE at the end of the table.
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
