"""Debts: who has cost more of the loop than its share lately, and waits for its turn."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport Core, DEBT_LEAST_NS, Debt, FRAME_NS, MESSAGE_NS

cdef int64_t debts_of(Core *core, uint32_t slot) noexcept nogil
cdef Debt *debts_row(Core *core, uint32_t slot) noexcept nogil
cdef bint debts_is_costly(Core *core, const Debt *row) noexcept nogil
cdef void debts_charge(Core *core, uint32_t slot, int64_t cost_ns, uint32_t messages) noexcept nogil
cdef void debts_decay(Debt *row) noexcept nogil
cdef int64_t debts_measured(Core *core, int64_t wall_ns) noexcept nogil
cdef void debts_begin(Core *core) noexcept nogil
cdef void debts_raise(Core *core, int64_t least_ns) noexcept nogil
cdef void debts_forget_slot(Core *core, uint32_t slot) noexcept nogil
cdef void debts_destroy(Core *core) noexcept nogil

cdef inline void debts_forget(Core *core, uint32_t slot) noexcept nogil:
    """The connection is gone; its slot owes nothing."""
    if core.debts != NULL:
        debts_forget_slot(core, slot)

cdef inline void debts_charge_turn(
    Core *core, uint32_t slot, uint64_t frames, uint32_t messages, int64_t inflate_ns
) noexcept nogil:
    """Charge a turn with what it took, and with what its messages usually take the caller."""
    cdef int64_t cost_ns = <int64_t>frames * FRAME_NS + <int64_t>messages * MESSAGE_NS + inflate_ns
    if cost_ns >= DEBT_LEAST_NS:
        debts_charge(core, slot, cost_ns, messages)
