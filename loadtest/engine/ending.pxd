"""The close job and the sweep; see ending.pyx."""

from libc.stdint cimport uint64_t

from loadtest.engine.core cimport core_t

cdef enum close_mode_t:
    MODE_CLOSE
    MODE_RESET
    MODE_FIN

cdef uint64_t tick_close(core_t* core, uint64_t now) noexcept nogil
cdef uint64_t sweep(core_t* core, uint64_t now) noexcept nogil
