"""Loss notices: a message to each connection whose channels may have lost publications."""

from libc.stdint cimport uint32_t, uint64_t

from wsgate.reactor.structs cimport Core, Frame

cdef enum:
    NOTICE_FORMS_MAX = 32        # the most different messages that one step queues, each in every variant

cdef uint32_t notices_step(
    Core *core, uint32_t start, uint32_t most, Frame **frames, uint32_t forms, uint32_t round,
    uint32_t channel, uint64_t *notified,
) noexcept nogil
