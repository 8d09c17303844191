"""The histogram of durations; see histogram.pyx."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    HIST_BUCKETS = 33_792

ctypedef struct hist_t:
    uint64_t* counts
    uint64_t total
    uint64_t sum
    uint64_t min
    uint64_t max
    uint64_t clamped

cdef int hist_init(hist_t* hist) noexcept nogil
cdef void hist_free(hist_t* hist) noexcept nogil
cdef void hist_reset(hist_t* hist) noexcept nogil
cdef void hist_record(hist_t* hist, int64_t value, uint64_t count) noexcept nogil
cdef dict hist_to_dict(hist_t* hist, bint with_counts)

cdef class Histogram:
    cdef hist_t hist
