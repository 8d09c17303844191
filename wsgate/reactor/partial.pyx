"""What a connection holds while something is unfinished.

A connection with nothing unfinished has no `Input`: its frames are read in the reactor's one receive
buffer. An `Input` is borrowed from the pool when a head, a frame or a message is not complete, or
when received bytes must wait for their turn, and goes back when that is over.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from wsgate.reactor.memory cimport buffer_append, buffer_give, memory_give, memory_take, partial_fits
from wsgate.reactor.structs cimport Connection, Core, Input, KIND_PARTIAL


cdef Input *partial_open(Core *core, Connection *c) noexcept nogil:
    """The connection's input, made if there is none; NULL without memory or over the gate's limit."""
    if c.input != NULL:
        return c.input
    if not partial_fits(core, 0, sizeof(Input)):
        return NULL
    c.input = <Input *>memory_take(core, sizeof(Input), KIND_PARTIAL)
    if c.input != NULL:
        memset(c.input, 0, sizeof(Input))
    return c.input


cdef void partial_close(Core *core, Connection *c) noexcept nogil:
    """Give back the input and all it holds."""
    if c.input == NULL:
        return
    buffer_give(core, &c.input.message, KIND_PARTIAL)
    buffer_give(core, &c.input.backlog, KIND_PARTIAL)
    memory_give(core, c.input, sizeof(Input), KIND_PARTIAL)
    c.input = NULL


cdef int partial_stash(Core *core, Connection *c, const uint8_t *data, uint32_t size) noexcept nogil:
    """Keep received bytes whose turn has not come; 0, or -1 without memory or allowance.

    Never more than one receive: nothing is received while a backlog waits.
    """
    if size == 0:
        return 0
    if partial_open(core, c) == NULL:
        return -1
    return buffer_append(core, &c.input.backlog, data, size, size, KIND_PARTIAL)
