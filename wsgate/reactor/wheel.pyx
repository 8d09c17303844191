"""The timer wheel: one timer per connection.

A hashed wheel of 512 steps of 250 ms. A connection has many deadlines and one timer, for the
nearest. The timer is lazy: a deadline that moves away (a byte came, so the next ping is later) does
not touch the wheel; when the timer comes due the deadlines are computed anew and it is armed for
the nearest. Only a deadline that comes closer moves the timer. So the cost of life on a connection
is nothing, and of silence one look per heartbeat.

    arm, disarm   O(1)
    turn          O(steps passed), at most 512; each lists what came due without looking at it
    pop           O(1)

A deadline beyond the wheel (128 s) sits on its last step and is looked at once a turn. What came due
is taken in slices by the caller, so that 100,000 timers on one step do not stop the loop.

Source: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (scheme 6), here with lazy timers.
"""

from libc.stdint cimport int64_t, uint32_t

from wsgate.reactor.structs cimport Connection, Core, NONE, TICK_MS, WHEEL_SLOTS
from wsgate.reactor.table cimport at

cdef enum:
    DUE = 0xFFFFFFFE             # wheel_tick of a connection on the due list


cdef void wheel_start(Core *core) noexcept nogil:
    """Empty the wheel and set it to the reactor's clock."""
    cdef int index
    for index in range(WHEEL_SLOTS):
        core.wheel.heads[index] = NONE
    core.wheel.due = NONE
    core.wheel.base_ms = core.clock_ms
    core.wheel.tick = 0


cdef inline uint32_t *head_of(Core *core, uint32_t tick) noexcept nogil:
    return &core.wheel.due if tick == DUE else &core.wheel.heads[tick % WHEEL_SLOTS]


cdef inline void link(Core *core, uint32_t slot, uint32_t tick) noexcept nogil:
    cdef Connection *c = at(core, slot)
    cdef uint32_t *head = head_of(core, tick)
    c.wheel_tick = tick
    c.wheel_previous = NONE
    c.wheel_next = head[0]
    if head[0] != NONE:
        at(core, head[0]).wheel_previous = slot
    head[0] = slot


cdef void wheel_disarm(Core *core, uint32_t slot) noexcept nogil:
    """Take the timer off the wheel or the due list."""
    cdef Connection *c = at(core, slot)
    if c.wheel_tick == NONE:
        return
    if c.wheel_previous == NONE:
        head_of(core, c.wheel_tick)[0] = c.wheel_next
    else:
        at(core, c.wheel_previous).wheel_next = c.wheel_next
    if c.wheel_next != NONE:
        at(core, c.wheel_next).wheel_previous = c.wheel_previous
    c.wheel_tick = NONE


cdef void wheel_arm(Core *core, uint32_t slot, int64_t at_ms) noexcept nogil:
    """See to it that the timer comes due no later than one step after `at_ms`."""
    cdef Connection *c = at(core, slot)
    cdef int64_t tick = (at_ms - core.wheel.base_ms + TICK_MS - 1) // TICK_MS
    if tick <= core.wheel.tick:
        tick = core.wheel.tick + 1
    elif tick >= core.wheel.tick + WHEEL_SLOTS:
        tick = core.wheel.tick + WHEEL_SLOTS - 1
    if c.wheel_tick != NONE:
        if c.wheel_tick == DUE or c.wheel_tick <= tick:
            return
        wheel_disarm(core, slot)
    link(core, slot, <uint32_t>tick)


cdef void wheel_turn(Core *core) noexcept nogil:
    """Move every timer whose step has passed to the due list. O(steps + timers due)."""
    cdef int64_t now = (core.clock_ms - core.wheel.base_ms) // TICK_MS
    cdef int64_t last = now if now - core.wheel.tick < WHEEL_SLOTS else core.wheel.tick + WHEEL_SLOTS
    cdef uint32_t slot
    while core.wheel.tick < last:
        core.wheel.tick += 1
        while True:
            slot = core.wheel.heads[core.wheel.tick % WHEEL_SLOTS]
            if slot == NONE:
                break
            wheel_disarm(core, slot)
            link(core, slot, DUE)
    core.wheel.tick = now


cdef uint32_t wheel_pop(Core *core) noexcept nogil:
    """A connection whose timer came due, disarmed; NONE when there is none."""
    cdef uint32_t slot = core.wheel.due
    if slot != NONE:
        wheel_disarm(core, slot)
    return slot
