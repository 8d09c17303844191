"""Conversion of counters to Python values; see report.pyx."""

from loadtest.engine.core cimport core_t

cdef dict connect_result(core_t* core)
cdef dict echo_result(core_t* core)
cdef dict close_result(core_t* core)
cdef dict stats(core_t* core, bint with_counts)
cdef void reset_counters(core_t* core) noexcept nogil
