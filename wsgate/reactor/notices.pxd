"""Notices of loss: which channels lost publications, and one frame for each connection that is concerned."""

from libc.stdint cimport uint32_t, uint64_t

from wsgate.reactor.structs cimport Core, Frame

cdef enum:
    NOTICE_FORMS_MAX = 32        # frames of one step that differ, for each variant

cdef uint32_t notices_step(
    Core *core, uint32_t start, uint32_t most, Frame **frames, uint32_t forms, uint32_t round, uint32_t channel,
    uint64_t *notified,
) noexcept nogil
