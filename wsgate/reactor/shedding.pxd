"""What happens when everything held comes to more than the budget: no newcomers, then the slow go."""

from wsgate.reactor.structs cimport Core

cdef void shedding_tick(Core *core) noexcept nogil
