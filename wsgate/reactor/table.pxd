"""The connection table: allocates slots and handles, and links slots into queues."""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport (
    CHUNK_BITS, CHUNK_SLOTS, KERNEL_UNIT, STATE_FREE, STATE_GONE, Connection, Core,
)

cdef inline Connection *at(Core *core, uint32_t slot) noexcept nogil:
    """Return the connection in `slot`, which must be within the allocated slabs."""
    return core.chunks[slot >> CHUNK_BITS] + (slot & (CHUNK_SLOTS - 1))

cdef inline Connection *find(Core *core, uint64_t handle, uint32_t *slot) noexcept nogil:
    """Return the connection of a handle and set its slot; NULL if the handle is stale or invalid."""
    cdef uint32_t index = <uint32_t>handle
    cdef Connection *c
    if (index >> CHUNK_BITS) >= core.chunk_count:
        return NULL
    c = at(core, index)
    if c.generation != <uint32_t>(handle >> 32) or c.state == STATE_FREE or c.state == STATE_GONE:
        return NULL
    slot[0] = index
    return c

cdef inline uint64_t handle_of(Connection *c, uint32_t slot) noexcept nogil:
    """Return the handle of a connection: its generation and its slot."""
    return (<uint64_t>c.generation << 32) | slot

cdef inline uint64_t kernel_bytes(Connection *c) noexcept nogil:
    """Return the kernel memory that was last recorded for this connection, in bytes."""
    return <uint64_t>(c.units >> 1) * KERNEL_UNIT

cdef inline void enter(Core *core, Connection *c, int state) noexcept nogil:
    """Change the state of a connection, and the counts of connections and kernel memory by state."""
    core.states[c.state] -= 1
    core.states[state] += 1
    core.queued_in[c.state] -= kernel_bytes(c)
    core.queued_in[state] += kernel_bytes(c)
    c.state = state

cdef inline void kernel_holds(Core *core, Connection *c, int64_t held) noexcept nogil:
    """Record `held` bytes of kernel memory for a connection, at most 1 MiB, and update the accounts."""
    cdef uint64_t before = kernel_bytes(c)
    c.units = <uint16_t>(min((held + KERNEL_UNIT - 1) // KERNEL_UNIT, <int64_t>0x7FFF) << 1)
    core.queued_bytes += kernel_bytes(c) - before
    core.queued_in[c.state] += kernel_bytes(c) - before

cdef inline void note_pause(Core *core, Connection *c) noexcept nogil:
    """Store when reading was paused, so that deadlines_resume can extend the deadline of the message."""
    if c.input != NULL:
        c.input.paused_ms = core.clock_ms

cdef Connection *table_open(Core *core, int32_t fd, uint32_t *slot) noexcept nogil
cdef void table_free(Core *core, uint32_t slot) noexcept nogil
cdef void table_destroy(Core *core) noexcept nogil
cdef void heads_push(Core *core, uint32_t slot, uint32_t group) noexcept nogil
cdef uint32_t heads_largest(Core *core) noexcept nogil
cdef void heads_remove(Core *core, uint32_t slot) noexcept nogil
cdef void attention_push(Core *core, uint32_t slot) noexcept nogil
cdef uint32_t attention_pop_older(Core *core) noexcept nogil
cdef void attention_push_newcomer(Core *core, uint32_t slot) noexcept nogil
cdef uint32_t attention_pop(Core *core) noexcept nogil
cdef void indebted_push(Core *core, uint32_t slot) noexcept nogil
cdef uint32_t indebted_pop(Core *core) noexcept nogil
cdef void failed_push(Core *core, uint32_t slot) noexcept nogil
cdef uint32_t failed_pop(Core *core) noexcept nogil
cdef void dirty_push(Core *core, uint32_t slot, bint urgent) noexcept nogil
cdef void dirty_remove(Core *core, uint32_t slot) noexcept nogil
