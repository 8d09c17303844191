"""Sheds connections while the accounts exceed the memory budget, and ends the refusal of newcomers."""

from wsgate.reactor.structs cimport Core

cdef void shedding_tick(Core *core) noexcept nogil
