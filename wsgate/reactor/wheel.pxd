"""The timer wheel: one timer for each connection, armed for its nearest deadline."""

from libc.stdint cimport int64_t, uint32_t

from wsgate.reactor.structs cimport Core

cdef void wheel_start(Core *core) noexcept nogil
cdef void wheel_arm(Core *core, uint32_t slot, int64_t at_ms) noexcept nogil
cdef void wheel_disarm(Core *core, uint32_t slot) noexcept nogil
cdef void wheel_turn(Core *core) noexcept nogil
cdef bint wheel_is_due(Core *core) noexcept nogil
cdef uint32_t wheel_pop(Core *core) noexcept nogil
