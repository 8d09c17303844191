"""The poll loop; see loop.pyx."""

from libc.stdint cimport uint64_t

from loadtest.engine.core cimport core_t

cdef enum:
    RAN_WAKE = 1
    RAN_JOB_OVER = 2

cdef int run_loop(core_t* core, uint64_t until_ns, uint64_t until_messages) noexcept nogil
