"""Declarations of the channels: their names, their subscribers and the subscriptions of connections."""

from libc.stdint cimport uint8_t, uint32_t

from wsgate.reactor.structs cimport Channel, Connection, Core

cdef void channels_start(Core *core, const uint8_t *key) noexcept nogil
cdef void channels_destroy(Core *core) noexcept nogil
cdef uint32_t channel_find(Core *core, const uint8_t *name, uint32_t size) noexcept nogil
cdef uint32_t channel_open(Core *core, const uint8_t *name, uint32_t size, int policy) noexcept nogil
cdef void channel_release(Core *core, uint32_t channel) noexcept nogil
cdef int channel_subscribe(Core *core, uint32_t slot, uint32_t channel) noexcept nogil
cdef int channel_unsubscribe(Core *core, uint32_t slot, uint32_t channel) noexcept nogil
cdef void channel_unsubscribe_all(Core *core, uint32_t slot) noexcept nogil
cdef uint32_t channel_take_vacated(Core *core) noexcept nogil
cdef const uint8_t *channel_name(const Channel *channel) noexcept nogil
cdef uint32_t *channel_slots(Channel *channel) noexcept nogil
cdef bint is_subscribed(Core *core, Connection *c, uint32_t channel) noexcept nogil
