"""The control slot: the pongs that wait to be written to one connection, in order.

A slot has room for 16 pongs and 968 bytes. The caller decides what happens when it is full: writer.pyx writes
first, and drops the oldest pong only when the socket is full too. A pong whose first byte is written is never
dropped. The slot is one block of 1 KiB, allocated while a pong waits.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from wsgate.reactor.codec cimport OP_PONG
from wsgate.reactor.memory cimport memory_give, memory_take
from wsgate.reactor.structs cimport (
    ControlSlot, Core, KIND_OUTBOX, Outbox, PONGS_DROPPED, PONGS_MAX, PONGS_OUT, PONG_BYTES,
)


cdef int pongs_add(Core *core, Outbox *outbox, const uint8_t *payload, uint32_t size) noexcept nogil:
    """Add a pong with a payload of `size` bytes, at most 125, to the slot; return a `Push` value."""
    cdef ControlSlot *slot = outbox.control
    if slot == NULL:
        slot = <ControlSlot *>memory_take(core, sizeof(ControlSlot), KIND_OUTBOX)
        if slot == NULL:
            return PUSH_NO_MEMORY
        slot.used = slot.written = 0
        slot.count = 0
        outbox.control = slot
    if slot.count == PONGS_MAX or slot.used + size + 2 > PONG_BYTES:
        return PUSH_OVERFLOW
    slot.data[slot.used] = 0x80 | OP_PONG
    slot.data[slot.used + 1] = <uint8_t>size
    memcpy(slot.data + slot.used + 2, payload, size)
    slot.used += <uint16_t>(size + 2)
    slot.lengths[slot.count] = <uint8_t>(size + 2)
    slot.count += 1
    return PUSHED


cdef int pongs_drop_oldest(Core *core, Outbox *outbox) noexcept nogil:
    """Drop the oldest pong of which no byte is written; return 1, or 0 if there is none."""
    cdef ControlSlot *slot = outbox.control
    cdef uint32_t first, start, length
    if slot == NULL:
        return 0
    first = 1 if slot.written else 0          # a half-written pong must stay
    if first >= slot.count:
        if slot.count == 0:
            pongs_close(core, outbox)
        return 0
    start = slot.lengths[0] if first else 0
    length = slot.lengths[first]
    memmove(slot.data + start, slot.data + start + length, slot.used - start - length)
    memmove(slot.lengths + first, slot.lengths + first + 1, slot.count - first - 1)
    slot.used -= <uint16_t>length
    slot.count -= 1
    core.counters[<int>PONGS_DROPPED] += 1
    if slot.count == 0:
        pongs_close(core, outbox)
    return 1


cdef void pongs_close(Core *core, Outbox *outbox) noexcept nogil:
    """Release the memory of the control slot with all its pongs."""
    memory_give(core, outbox.control, sizeof(ControlSlot), KIND_OUTBOX)
    outbox.control = NULL


cdef uint64_t pongs_consume(Core *core, Outbox *outbox, uint64_t written) noexcept nogil:
    """Remove up to `written` written bytes from the front of the slot; return how many are left over."""
    cdef ControlSlot *slot = outbox.control
    cdef uint32_t start = 0, pongs = 0
    written += slot.written
    while pongs < slot.count and written >= slot.lengths[pongs]:
        written -= slot.lengths[pongs]
        start += slot.lengths[pongs]
        pongs += 1
    core.counters[<int>PONGS_OUT] += pongs
    if pongs == slot.count:
        pongs_close(core, outbox)
        return written
    memmove(slot.data, slot.data + start, slot.used - start)
    memmove(slot.lengths, slot.lengths + pongs, slot.count - pongs)
    slot.used -= <uint16_t>start
    slot.count -= <uint8_t>pongs
    slot.written = <uint16_t>written
    return 0
