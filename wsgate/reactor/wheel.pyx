"""The timer wheel: one timer per connection.

A hashed wheel of 512 steps of 250 ms. A connection has many deadlines and one timer, for the
nearest. The timer is lazy: a deadline that moves away (a byte came, so the next ping is later) does
not touch the wheel; when the timer comes due the deadlines are computed anew and it is armed for
the nearest. Only a deadline that comes closer moves the timer. So the cost of life on a connection
is nothing, and of silence one look per heartbeat.

    arm, disarm   O(1)
    turn          O(1)
    pop           O(1), and once for every step that has passed

A deadline beyond the wheel (128 s) sits on its last step and is looked at once a turn. What came due
stays on its steps, between `done` and `tick`, and is taken in slices by the caller, so that 100,000
timers on one step do not stop the loop. Moving what is due to a list of its own cost half a
microsecond for each of 500,000 connections (`make crowd`): every link of a list is another's cache line.

Source: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (scheme 6), here with lazy timers.
"""

from libc.stdint cimport int64_t, uint32_t

from wsgate.reactor.structs cimport Connection, Core, NONE, TICK_MS, WHEEL_SLOTS
from wsgate.reactor.table cimport at

cdef extern from *:
    """
    #define wsgate_prefetch_lines(c) \\
        (__builtin_prefetch((c), 1), __builtin_prefetch((const char *)(c) + 64, 1))
    """
    void prefetch_lines "wsgate_prefetch_lines"(void *connection) noexcept nogil


cdef void wheel_start(Core *core) noexcept nogil:
    """Empty the wheel and set it to the reactor's clock."""
    cdef int index
    for index in range(WHEEL_SLOTS):
        core.wheel.heads[index] = NONE
    core.wheel.base_ms = core.clock_ms
    core.wheel.tick = core.wheel.done = 0


cdef inline uint32_t *head_of(Core *core, uint32_t tick) noexcept nogil:
    return &core.wheel.heads[tick % WHEEL_SLOTS]


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
    """Take the timer off the wheel."""
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
    tick = max(tick, core.wheel.tick + 1)
    # Never the step that is being taken, even if a whole turn is due: then it is only looked at early.
    tick = min(tick, core.wheel.done + WHEEL_SLOTS - 1)
    if c.wheel_tick != NONE:
        if c.wheel_tick <= tick:
            return
        wheel_disarm(core, slot)
    link(core, slot, <uint32_t>tick)


cdef void wheel_turn(Core *core) noexcept nogil:
    """Let every step that has passed be due."""
    core.wheel.tick = (core.clock_ms - core.wheel.base_ms) // TICK_MS


cdef bint wheel_is_due(Core *core) noexcept nogil:
    """Whether a timer may wait to be taken."""
    return core.wheel.done < core.wheel.tick


cdef uint32_t wheel_pop(Core *core) noexcept nogil:
    """A connection whose timer came due, disarmed; NONE when there is none."""
    cdef uint32_t slot
    while core.wheel.done < core.wheel.tick:
        slot = head_of(core, <uint32_t>(core.wheel.done + 1))[0]
        if slot != NONE:
            if at(core, slot).wheel_next != NONE:
                prefetch_lines(at(core, at(core, slot).wheel_next))
            wheel_disarm(core, slot)
            return slot
        core.wheel.done += 1
    return NONE
