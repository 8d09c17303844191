"""Declarations of the gate, which accepts sockets and refuses them before their request is read."""

from libc.stdint cimport uint8_t, uint32_t

from wsgate.reactor.structs cimport Core

cdef int gate_accept(Core *core) noexcept nogil
cdef void gate_accept_handover(Core *core, int fd, uint8_t handovers) noexcept nogil
cdef void gate_drain(Core *core, uint32_t index) noexcept nogil
cdef void gate_tick(Core *core) noexcept nogil
cdef void gate_mute(Core *core, bint mute) noexcept nogil
cdef int gate_open(Core *core, int fd, uint32_t *slot, uint32_t group) noexcept nogil
cdef void gate_close_drains(Core *core) noexcept nogil
cdef void gate_answers_free(Core *core) noexcept nogil
