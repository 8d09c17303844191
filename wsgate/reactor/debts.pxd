"""Debts: who has cost more of the loop than its share lately, and waits for its turn."""

from libc.stdint cimport int64_t, uint32_t

from wsgate.reactor.structs cimport Core, DEBT_LEAST_NS, MESSAGE_NS

cdef int64_t debts_of(Core *core, uint32_t slot) noexcept nogil
cdef bint debts_is_dear(Core *core, uint32_t slot) noexcept nogil
cdef uint32_t debts_message_ns(Core *core, uint32_t slot) noexcept nogil
cdef void debts_charge(Core *core, uint32_t slot, int64_t cost_ns, uint32_t messages) noexcept nogil
cdef int64_t debts_measured(Core *core, int64_t wall_ns) noexcept nogil
cdef void debts_begin(Core *core) noexcept nogil
cdef void debts_raise(Core *core, int64_t least_ns) noexcept nogil
cdef void debts_forget_slot(Core *core, uint32_t slot) noexcept nogil
cdef void debts_destroy(Core *core) noexcept nogil

cdef inline void debts_forget(Core *core, uint32_t slot) noexcept nogil:
    """The connection is gone; its slot owes nothing."""
    if core.debts != NULL:
        debts_forget_slot(core, slot)

cdef inline void debts_charge_turn(Core *core, uint32_t slot, int64_t wall_ns, uint32_t messages) noexcept nogil:
    """Charge a turn with what it took, and with what its messages usually take the caller."""
    if core.meter_ns >= 0:
        wall_ns = core.meter_ns
    if wall_ns + <int64_t>messages * MESSAGE_NS >= DEBT_LEAST_NS:
        debts_charge(core, slot, debts_measured(core, wall_ns) + <int64_t>messages * MESSAGE_NS, messages)
