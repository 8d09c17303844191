"""Declarations of the debts of connections that have lately cost more than their share of the loop."""

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
    """Clear the debt of a slot whose connection is being freed, if there is a table of debts."""
    if core.debts != NULL:
        debts_forget_slot(core, slot)

cdef inline void debts_charge_turn(
    Core *core, uint32_t slot, uint64_t frames, uint32_t messages, int64_t inflate_ns
) noexcept nogil:
    """Charge a connection for one turn: its frames, its messages at their usual cost, and inflating."""
    cdef int64_t cost_ns = <int64_t>frames * FRAME_NS + <int64_t>messages * MESSAGE_NS + inflate_ns
    if cost_ns >= DEBT_LEAST_NS:
        debts_charge(core, slot, cost_ns, messages)
