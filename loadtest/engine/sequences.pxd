"""Detection of lost, duplicated and reordered messages; see sequences.pyx."""

from libc.stdint cimport uint32_t, uint64_t

ctypedef struct hole_t:
    hole_t* next
    uint64_t first
    uint64_t end
    uint32_t era

ctypedef struct tracker_t:
    tracker_t* next
    hole_t* holes
    uint64_t base
    uint64_t expected
    uint32_t stream
    uint32_t hole_count

ctypedef struct ledger_t:
    tracker_t* free_trackers
    hole_t* free_holes
    uint64_t trackers
    uint64_t holes
    uint64_t first_sequence
    bint is_first_known
    uint32_t era
    uint64_t gaps
    uint64_t missing
    uint64_t duplicates
    uint64_t reordered
    uint64_t gaps_forgotten

cdef enum verdict_t:
    NEXT
    JUMPED
    LATE
    DUPLICATE
    NO_MEMORY

cdef tracker_t* find_tracker(tracker_t* chain, uint32_t stream) noexcept nogil
cdef tracker_t* add_tracker(
    ledger_t* ledger, tracker_t** chain, uint32_t stream, uint64_t first
) noexcept nogil
cdef verdict_t judge(ledger_t* ledger, tracker_t** chain, uint32_t stream, uint64_t sequence) noexcept nogil
cdef uint64_t missing_between(tracker_t* tracker, uint64_t first, uint64_t last) noexcept nogil
cdef void drop_trackers(ledger_t* ledger, tracker_t** chain) noexcept nogil
cdef void reset_ledger(ledger_t* ledger) noexcept nogil
cdef void free_ledger(ledger_t* ledger) noexcept nogil

cdef class SequenceLedger:
    cdef ledger_t ledger
    cdef tracker_t* chain
