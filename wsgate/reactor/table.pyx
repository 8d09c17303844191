"""The connection table: allocates slots and handles, and links slots into queues.

This module owns the slabs of `Connection` structs. A slab never moves, so pointers to connections stay valid.
The slot that was freed last is reused first. Each time a slot is freed its generation increases, so that the
handle of the former connection is refused from then on (until the slot has been reused 2^32 times).

The queues are linked through fields of the connections, so queueing a connection allocates nothing. One flag
for each queue prevents that a connection is queued twice. All operations are O(1).
"""

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset

from wsgate.reactor.debts cimport debts_forget
from wsgate.reactor.structs cimport (
    CHUNK_BITS, CHUNK_SLOTS, Connection, Core, HEAD_GROUPS, HeadGroup, IN_ATTENTION, IN_BULK, IN_FAILED,
    IN_URGENT, KIND_TABLE, List, NONE, STATE_FREE, STATE_HEAD, UserLink,
)

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **block, size_t alignment, size_t size)

cdef enum:
    SLAB_BYTES = CHUNK_SLOTS * (sizeof(Connection) + sizeof(UserLink))    # see users.pxd


cdef int add_slab(Core *core) noexcept nogil:
    """Allocate one more slab of free slots; return 0, or -1 if the directory is full or without memory."""
    cdef Connection *slab = NULL
    cdef uint32_t first, index
    if core.chunk_count >= core.chunk_limit:
        return -1
    # Aligned to the cache line, so that a connection fills exactly two lines.
    if posix_memalign(<void **>&slab, 64, SLAB_BYTES) != 0:
        return -1
    memset(slab, 0, SLAB_BYTES)
    core.held[<int>KIND_TABLE] += SLAB_BYTES
    first = core.chunk_count << CHUNK_BITS
    for index in range(<uint32_t>CHUNK_SLOTS):
        slab[index].fd = -1
        slab[index].generation = 1
        slab[index].attention_next = first + index + 1 if index + 1 < CHUNK_SLOTS else core.free_slot
    core.free_slot = first
    core.chunks[core.chunk_count] = slab
    core.chunk_count += 1
    return 0


cdef Connection *table_open(Core *core, int32_t fd, uint32_t *slot) noexcept nogil:
    """Take a free slot for a new connection in state HEAD; NULL without memory or at `max_connections`."""
    cdef Connection *c
    cdef uint32_t generation, index
    if core.connections >= core.limits.max_connections or (core.free_slot == NONE and add_slab(core) < 0):
        return NULL
    index = core.free_slot
    c = at(core, index)
    core.free_slot = c.attention_next
    generation = c.generation                 # the only field that outlives a connection
    memset(c, 0, sizeof(Connection))
    c.generation = generation
    c.fd = fd
    c.state = STATE_HEAD
    c.wheel_next = c.wheel_previous = c.wheel_tick = NONE
    c.dirty_next = c.dirty_previous = c.attention_next = NONE
    core.states[<int>STATE_HEAD] += 1
    core.connections += 1
    slot[0] = index
    return c


cdef void table_free(Core *core, uint32_t slot) noexcept nogil:
    """Free the slot of a connection that owns nothing any more, and invalidate its handle."""
    cdef Connection *c = at(core, slot)
    debts_forget(core, slot)
    core.states[c.state] -= 1
    c.state = STATE_FREE
    c.generation += 1
    if c.generation == 0:                     # a handle is never 0
        c.generation = 1
    c.attention_next = core.free_slot
    core.free_slot = slot
    core.connections -= 1


cdef void table_destroy(Core *core) noexcept nogil:
    """Free the memory of all slabs; every slot must be free already."""
    cdef uint32_t index
    for index in range(core.chunk_count):
        free(core.chunks[index])
    core.held[<int>KIND_TABLE] -= <unsigned long long>core.chunk_count * SLAB_BYTES
    core.chunk_count = 0


cdef inline void append(Core *core, List *queue, uint32_t slot) noexcept nogil:
    """Append a slot to a queue that is linked through `attention_next`."""
    at(core, slot).attention_next = NONE
    if queue.tail == NONE:
        queue.head = slot
    else:
        at(core, queue.tail).attention_next = slot
    queue.tail = slot
    queue.count += 1


cdef inline uint32_t take(Core *core, List *queue) noexcept nogil:
    """Remove and return the first slot of a queue that is linked through `attention_next`, or NONE."""
    cdef uint32_t slot = queue.head
    if slot == NONE:
        return NONE
    queue.head = at(core, slot).attention_next
    if queue.head == NONE:
        queue.tail = NONE
    queue.count -= 1
    return slot


cdef void attention_push(Core *core, uint32_t slot) noexcept nogil:
    """Queue a connection for a turn in the next poll, unless it waits already, also on the failed list."""
    cdef Connection *c = at(core, slot)
    if c.flags & (IN_ATTENTION | IN_FAILED):
        return
    c.flags |= IN_ATTENTION
    append(core, &core.attention, slot)


cdef void attention_push_newcomer(Core *core, uint32_t slot) noexcept nogil:
    """Queue a connection that was just accepted ahead of all older ones, but behind earlier newcomers.

    Behind 7,000 busy connections its request would wait 80 ms for one round of their turns. In each pass the
    others wait for at most PASS_OPENS newcomers (`attention_pop_older`).
    """
    cdef Connection *c = at(core, slot)
    if core.newcomers == 0 and core.attention.count == 0:
        attention_push(core, slot)
    else:
        c.flags |= IN_ATTENTION
        if core.newcomers:
            c.attention_next = at(core, core.newcomer_last).attention_next
            at(core, core.newcomer_last).attention_next = slot
        else:
            c.attention_next = core.attention.head
            core.attention.head = slot
        if core.newcomers and core.attention.tail == core.newcomer_last:
            core.attention.tail = slot
        core.attention.count += 1
    core.newcomer_last = slot
    core.newcomers += 1


cdef uint32_t attention_pop(Core *core) noexcept nogil:
    """Take the first connection off the attention queue, newcomers first; NONE if the queue is empty."""
    cdef uint32_t slot = take(core, &core.attention)
    if slot != NONE:
        at(core, slot).flags &= ~IN_ATTENTION
        core.newcomers -= core.newcomers != 0
    return slot


cdef uint32_t attention_pop_older(Core *core) noexcept nogil:
    """Take the first connection behind the newcomers off the attention queue; NONE if there is none."""
    cdef Connection *last
    cdef uint32_t slot
    if core.newcomers == 0:
        return attention_pop(core)
    last = at(core, core.newcomer_last)
    slot = last.attention_next
    if slot != NONE:
        last.attention_next = at(core, slot).attention_next
        if core.attention.tail == slot:
            core.attention.tail = core.newcomer_last
        core.attention.count -= 1
        at(core, slot).flags &= ~IN_ATTENTION
    return slot


cdef void indebted_push(Core *core, uint32_t slot) noexcept nogil:
    """Queue a costly connection that was just popped behind the others on the indebted queue."""
    at(core, slot).flags |= IN_ATTENTION
    append(core, &core.indebted, slot)


cdef uint32_t indebted_pop(Core *core) noexcept nogil:
    """Take the first connection off the indebted queue; NONE if the queue is empty."""
    cdef uint32_t slot = take(core, &core.indebted)
    if slot != NONE:
        at(core, slot).flags &= ~IN_ATTENTION
    return slot


cdef void failed_push(Core *core, uint32_t slot) noexcept nogil:
    """Put a connection on the list whose Close the next flush queues, unless it is queued for a turn."""
    cdef Connection *c = at(core, slot)
    if c.flags & (IN_ATTENTION | IN_FAILED):
        return
    c.flags |= IN_FAILED
    append(core, &core.failed, slot)


cdef uint32_t failed_pop(Core *core) noexcept nogil:
    """Take the first connection off the list of failed connections; NONE if the list is empty."""
    cdef uint32_t slot = take(core, &core.failed)
    if slot != NONE:
        at(core, slot).flags &= ~IN_FAILED
    return slot


cdef void dirty_push(Core *core, uint32_t slot, bint urgent) noexcept nogil:
    """Queue a connection for writing on the urgent or bulk list; an urgent call moves it from bulk."""
    cdef Connection *c = at(core, slot)
    cdef List *queue
    if c.flags & IN_URGENT or (c.flags & IN_BULK and not urgent):
        return
    if c.flags & IN_BULK:
        dirty_remove(core, slot)
    queue = &core.urgent if urgent else &core.bulk
    c.flags |= IN_URGENT if urgent else IN_BULK
    c.dirty_next = NONE
    c.dirty_previous = queue.tail
    if queue.tail == NONE:
        queue.head = slot
    else:
        at(core, queue.tail).dirty_next = slot
    queue.tail = slot
    queue.count += 1


cdef void heads_push(Core *core, uint32_t slot, uint32_t group) noexcept nogil:
    """Append a connection in HEAD to the list of the group of its address."""
    cdef Connection *c = at(core, slot)
    cdef List *queue = &core.heads[group].list
    c.close_code = <uint16_t>group
    c.dirty_next = NONE
    c.dirty_previous = queue.tail
    if queue.tail == NONE:
        queue.head = slot
        core.heads[group].since_ms = c.message_ms
    else:
        at(core, queue.tail).dirty_next = slot
    queue.tail = slot
    queue.count += 1


cdef void heads_remove(Core *core, uint32_t slot) noexcept nogil:
    """Remove a connection from the list of its address group, while its state is still HEAD."""
    cdef Connection *c = at(core, slot)
    cdef HeadGroup *group = &core.heads[c.close_code]
    unlink(core, &group.list, c)
    if group.list.head != NONE:
        group.since_ms = at(core, group.list.head).message_ms
    c.close_code = 0


cdef uint32_t heads_largest(Core *core) noexcept nogil:
    """Return the address group with the most connections in HEAD; of several, the one with the oldest.

    Compares all groups, 4 KiB in one piece, in a quarter of a microsecond. It is only needed when the limit
    of handshakes in progress is reached.
    """
    cdef uint32_t index, largest = 0
    cdef HeadGroup *group
    for index in range(1, <uint32_t>HEAD_GROUPS):
        group = &core.heads[index]
        if group.list.count > core.heads[largest].list.count or (
            group.list.count == core.heads[largest].list.count
            and <int32_t>(group.since_ms - core.heads[largest].since_ms) < 0
        ):
            largest = index
    return largest


cdef inline void unlink(Core *core, List *queue, Connection *c) noexcept nogil:
    """Remove a connection from a list that is linked through the dirty links."""
    if c.dirty_previous == NONE:
        queue.head = c.dirty_next
    else:
        at(core, c.dirty_previous).dirty_next = c.dirty_next
    if c.dirty_next == NONE:
        queue.tail = c.dirty_previous
    else:
        at(core, c.dirty_next).dirty_previous = c.dirty_previous
    queue.count -= 1


cdef void dirty_remove(Core *core, uint32_t slot) noexcept nogil:
    """Remove a connection from the urgent or bulk list, if it is on one."""
    cdef Connection *c = at(core, slot)
    cdef List *queue
    if not c.flags & (IN_URGENT | IN_BULK):
        return
    queue = &core.urgent if c.flags & IN_URGENT else &core.bulk
    unlink(core, queue, c)
    c.flags &= ~(IN_URGENT | IN_BULK)
