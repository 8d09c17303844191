"""The `Input` of a connection: its unfinished head, frame or message, and bytes not yet parsed.

A connection without unfinished input has no `Input`: its frames are parsed in the one receive buffer of the
reactor. An `Input` is allocated when a head, a frame or a message is not complete, or when received bytes
have to wait for their turn, and is released afterwards.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from wsgate.reactor.memory cimport buffer_append, buffer_give, memory_give, memory_take, partial_fits
from wsgate.reactor.structs cimport Connection, Core, Input, KIND_PARTIAL


cdef Input *partial_open(Core *core, Connection *c) noexcept nogil:
    """Return the `Input` of a connection, created if needed; NULL without memory or over a memory limit."""
    if c.input != NULL:
        return c.input
    if not partial_fits(core, 0, sizeof(Input)):
        return NULL                           # over the limit for unfinished input or the memory budget
    c.input = <Input *>memory_take(core, sizeof(Input), KIND_PARTIAL)
    if c.input != NULL:
        memset(c.input, 0, sizeof(Input))
    return c.input


cdef void partial_close(Core *core, Connection *c) noexcept nogil:
    """Release the `Input` of a connection with its two buffers."""
    if c.input == NULL:
        return
    buffer_give(core, &c.input.message, KIND_PARTIAL)
    buffer_give(core, &c.input.backlog, KIND_PARTIAL)
    memory_give(core, c.input, sizeof(Input), KIND_PARTIAL)
    c.input = NULL


cdef int partial_stash(Core *core, Connection *c, const uint8_t *data, uint32_t size) noexcept nogil:
    """Store received bytes that are not parsed yet in the backlog; return 0, or -1 without memory.

    -1 is also returned when a memory limit does not allow it. The backlog never has more than one receive,
    because nothing is received from a connection while its backlog waits.
    """
    if size == 0:
        return 0
    if partial_open(core, c) == NULL:
        return -1
    return buffer_append(core, &c.input.backlog, data, size, size, KIND_PARTIAL)
