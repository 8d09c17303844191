"""The user index: finds all connections of a user, whatever they are subscribed to."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport CHUNK_BITS, CHUNK_SLOTS, Core, UserLink

cdef inline UserLink *link_of(Core *core, uint32_t slot) noexcept nogil:
    """Return the `UserLink` of a slot, which is stored behind the connections of the same slab."""
    return <UserLink *>(core.chunks[slot >> CHUNK_BITS] + CHUNK_SLOTS) + (slot & (CHUNK_SLOTS - 1))

cdef uint32_t user_hash(Core *core, const uint8_t *user, uint64_t size) noexcept nogil
cdef int user_enter(Core *core, uint32_t slot, uint32_t hash) noexcept nogil
cdef void user_leave(Core *core, uint32_t slot) noexcept nogil
cdef uint32_t user_first(Core *core, uint32_t hash) noexcept nogil
cdef void users_destroy(Core *core) noexcept nogil
