"""The timer wheel: one timer for each connection, armed for its nearest deadline.

The wheel is a hashed wheel of 512 steps of 250 ms. A connection has many deadlines and one timer. The timer
is lazy: when a deadline moves away (a byte arrived, so the next ping is later), the wheel is not changed. When
the timer expires, the deadlines are computed again and the timer is armed for the nearest one. Only a
deadline that comes nearer moves the timer. So traffic on a connection costs the wheel nothing, and a silent
connection costs one check per heartbeat.

    arm, disarm   O(1)
    turn          O(1)
    pop           O(1), and once for every step that has passed

The timer of a deadline beyond the wheel (128 s) is on the last step and is checked once per turn. Due timers
stay on their steps, between `done` and `tick`, and the caller takes them in slices, so that 100,000 timers on
one step do not stop the loop. Moving due timers to a separate list cost half a microsecond for each of
500,000 connections (`make crowd`), because each link of a list is in the cache line of another connection.

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
    """Empty the wheel and let its step 0 begin at the reactor's present clock."""
    cdef int index
    for index in range(WHEEL_SLOTS):
        core.wheel.heads[index] = NONE
    core.wheel.base_ms = core.clock_ms
    core.wheel.tick = core.wheel.done = 0


cdef inline uint32_t *head_of(Core *core, uint32_t tick) noexcept nogil:
    """Return the head of the list of timers on the step `tick`."""
    return &core.wheel.heads[tick % WHEEL_SLOTS]


cdef inline void link(Core *core, uint32_t slot, uint32_t tick) noexcept nogil:
    """Insert a timer at the head of the list of the step `tick`."""
    cdef Connection *c = at(core, slot)
    cdef uint32_t *head = head_of(core, tick)
    c.wheel_tick = tick
    c.wheel_previous = NONE
    c.wheel_next = head[0]
    if head[0] != NONE:
        at(core, head[0]).wheel_previous = slot
    head[0] = slot


cdef void wheel_disarm(Core *core, uint32_t slot) noexcept nogil:
    """Remove the timer of a connection from the wheel, if it is armed."""
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
    """Arm the timer of a connection to come due at most one step after `at_ms`; keep it if it is earlier."""
    cdef Connection *c = at(core, slot)
    cdef int64_t tick = (at_ms - core.wheel.base_ms + TICK_MS - 1) // TICK_MS
    tick = max(tick, core.wheel.tick + 1)
    # Not on the step that is being taken, even if a whole turn is due: the timer is then checked too early.
    tick = min(tick, core.wheel.done + WHEEL_SLOTS - 1)
    if c.wheel_tick != NONE:
        if c.wheel_tick <= tick:
            return
        wheel_disarm(core, slot)
    link(core, slot, <uint32_t>tick)


cdef void wheel_turn(Core *core) noexcept nogil:
    """Turn the wheel to the reactor's clock: all steps that have passed become due. O(1)."""
    core.wheel.tick = (core.clock_ms - core.wheel.base_ms) // TICK_MS


cdef bint wheel_is_due(Core *core) noexcept nogil:
    """Return whether a step has passed whose timers are not all taken."""
    return core.wheel.done < core.wheel.tick


cdef uint32_t wheel_pop(Core *core) noexcept nogil:
    """Take the timer of one connection that expired, disarm it, and return its slot; NONE if none is due."""
    cdef uint32_t slot
    while core.wheel.done < core.wheel.tick:
        slot = head_of(core, <uint32_t>(core.wheel.done + 1))[0]
        if slot != NONE:
            # Fetch the next connection of the step into the cache while the caller handles this one.
            if at(core, slot).wheel_next != NONE:
                prefetch_lines(at(core, at(core, slot).wheel_next))
            wheel_disarm(core, slot)
            return slot
        core.wheel.done += 1
    return NONE
