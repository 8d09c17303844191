"""Detects lost, duplicated and reordered messages for each connection and stream, at any distance.

A connection has a chain of trackers, one for each stream that it has received: the lowest sequence, the next
expected one, and the *holes*, which are runs of skipped sequences. A sequence that arrives late is searched
in the holes: if a hole contains it, it was reordered; if none does, it is a duplicate. A stream without
faults costs 40 bytes and one comparison per message. A hole costs 32 bytes.

Trackers and holes are taken from free lists of the ledger, which also owns the counters. `gaps` and `missing`
describe the holes that are open now. A hole stores the era in which it was opened, so that a hole that is
filled after a reset does not reduce counters that never included it.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

__all__ = ["SequenceLedger"]

cdef enum:
    # A stream with more holes than this cannot be measured any more: the oldest hole is forgotten. Its
    # messages stay counted as lost, and a late arrival in it is counted as a duplicate. This also bounds the
    # search below.
    _HOLES_PER_TRACKER = 1_024


cdef tracker_t* find_tracker(tracker_t* chain, uint32_t stream) noexcept nogil:
    """Return the tracker of a stream, or NULL. O(streams of the connection)."""
    while chain != NULL and chain.stream != stream:
        chain = chain.next
    return chain


cdef tracker_t* add_tracker(
    ledger_t* ledger, tracker_t** chain, uint32_t stream, uint64_t first
) noexcept nogil:
    """Start to track a stream from the sequence `first`; return NULL without memory."""
    cdef tracker_t* made = ledger.free_trackers
    if made != NULL:
        ledger.free_trackers = made.next
    else:
        made = <tracker_t*>malloc(sizeof(tracker_t))
        if made == NULL:
            return NULL
    made.next = chain[0]
    made.holes = NULL
    made.hole_count = 0
    made.stream = stream
    made.base = first
    made.expected = first
    chain[0] = made
    ledger.trackers += 1
    return made


cdef void _free_hole(ledger_t* ledger, hole_t* hole) noexcept nogil:
    hole.next = ledger.free_holes
    ledger.free_holes = hole
    ledger.holes -= 1


cdef hole_t* _new_hole(ledger_t* ledger, uint64_t first, uint64_t end, uint32_t era) noexcept nogil:
    cdef hole_t* made = ledger.free_holes
    if made != NULL:
        ledger.free_holes = made.next
    else:
        made = <hole_t*>malloc(sizeof(hole_t))
        if made == NULL:
            return NULL
    made.first = first
    made.end = end
    made.era = era
    ledger.holes += 1
    return made


cdef void _forget_oldest(ledger_t* ledger, tracker_t* tracker) noexcept nogil:
    cdef hole_t** at = &tracker.holes
    while at[0].next != NULL:
        at = &at[0].next
    _free_hole(ledger, at[0])
    at[0] = NULL
    tracker.hole_count -= 1
    ledger.gaps_forgotten += 1


cdef verdict_t _open_hole(ledger_t* ledger, tracker_t* tracker, uint64_t first, uint64_t end) noexcept nogil:
    """Record that [first, end) was skipped.

    The newest hole is first, because late arrivals mostly belong to it.
    """
    cdef hole_t* hole
    cdef hole_t** at = &tracker.holes
    if tracker.hole_count == _HOLES_PER_TRACKER:
        _forget_oldest(ledger, tracker)
    hole = _new_hole(ledger, first, end, ledger.era)
    ledger.gaps += 1
    ledger.missing += end - first
    if hole == NULL:
        ledger.gaps_forgotten += 1
        return NO_MEMORY
    while at[0] != NULL and at[0].first > first:
        at = &at[0].next
    hole.next = at[0]
    at[0] = hole
    tracker.hole_count += 1
    return JUMPED


cdef verdict_t _fill(ledger_t* ledger, tracker_t* tracker, uint64_t sequence) noexcept nogil:
    """Process a sequence below the expected one: remove it from its hole, or count a duplicate."""
    cdef hole_t** at = &tracker.holes
    cdef hole_t* hole
    cdef hole_t* upper
    cdef bint is_counted
    while at[0] != NULL and at[0].first > sequence:
        at = &at[0].next
    hole = at[0]
    if hole == NULL or sequence >= hole.end:
        ledger.duplicates += 1
        return DUPLICATE
    ledger.reordered += 1
    is_counted = hole.era == ledger.era
    if is_counted:
        ledger.missing -= 1
    if hole.end - hole.first == 1:
        at[0] = hole.next
        _free_hole(ledger, hole)
        tracker.hole_count -= 1
        ledger.gaps -= is_counted
    elif sequence == hole.first:
        hole.first += 1
    elif sequence == hole.end - 1:
        hole.end -= 1
    else:
        upper = _new_hole(ledger, sequence + 1, hole.end, hole.era)
        hole.end = sequence
        ledger.gaps += is_counted
        if upper == NULL:
            ledger.gaps_forgotten += 1
            return NO_MEMORY
        upper.next = hole
        at[0] = upper
        tracker.hole_count += 1
    return LATE


cdef verdict_t judge(ledger_t* ledger, tracker_t** chain, uint32_t stream, uint64_t sequence) noexcept nogil:
    """Record the arrival of one sequence. O(1) in order; O(holes newer than it) if it is late."""
    cdef tracker_t* tracker = find_tracker(chain[0], stream)
    cdef verdict_t verdict
    cdef uint64_t first
    if tracker == NULL:
        first = ledger.first_sequence if ledger.is_first_known else sequence
        tracker = add_tracker(ledger, chain, stream, first)
        if tracker == NULL:
            return NO_MEMORY
    if sequence == tracker.expected:
        tracker.expected += 1
        return NEXT
    if sequence > tracker.expected:
        verdict = _open_hole(ledger, tracker, tracker.expected, sequence)
        tracker.expected = sequence + 1
        return verdict
    if sequence >= tracker.base:
        return _fill(ledger, tracker, sequence)
    # Earlier than all others: the stream began before, and everything in between is missing until now.
    ledger.reordered += 1
    verdict = LATE
    if sequence + 1 < tracker.base:
        verdict = _open_hole(ledger, tracker, sequence + 1, tracker.base)
    tracker.base = sequence
    return LATE if verdict == JUMPED else verdict


cdef uint64_t missing_between(tracker_t* tracker, uint64_t first, uint64_t last) noexcept nogil:
    """Return how many of first..last (inclusive) have not arrived. O(holes)."""
    cdef uint64_t end = last + 1
    cdef uint64_t missing = 0
    cdef uint64_t low, high
    cdef hole_t* hole = tracker.holes
    if tracker.base > first:
        missing += min(tracker.base, end) - first
    if tracker.expected < end:
        missing += end - max(tracker.expected, first)
    while hole != NULL:
        low = max(hole.first, first)
        high = min(hole.end, end)
        if low < high:
            missing += high - low
        hole = hole.next
    return min(missing, end - first)


cdef void drop_trackers(ledger_t* ledger, tracker_t** chain) noexcept nogil:
    """Return a chain to the free lists when its connection ends; its missing messages stay counted."""
    cdef tracker_t* tracker
    cdef hole_t* hole
    while chain[0] != NULL:
        tracker = chain[0]
        chain[0] = tracker.next
        while tracker.holes != NULL:
            hole = tracker.holes
            tracker.holes = hole.next
            _free_hole(ledger, hole)
        tracker.next = ledger.free_trackers
        ledger.free_trackers = tracker
        ledger.trackers -= 1


cdef void reset_ledger(ledger_t* ledger) noexcept nogil:
    """Set the counters to zero; positions and holes stay."""
    ledger.era += 1
    ledger.gaps = 0
    ledger.missing = 0
    ledger.duplicates = 0
    ledger.reordered = 0
    ledger.gaps_forgotten = 0


cdef void free_ledger(ledger_t* ledger) noexcept nogil:
    """Free the free lists; every chain must have been dropped before."""
    cdef tracker_t* tracker
    cdef hole_t* hole
    while ledger.free_trackers != NULL:
        tracker = ledger.free_trackers
        ledger.free_trackers = tracker.next
        free(tracker)
    while ledger.free_holes != NULL:
        hole = ledger.free_holes
        ledger.free_holes = hole.next
        free(hole)


cdef class SequenceLedger:
    """The tracking of one connection, for tests: the same C functions, called for one arrival at a time."""

    def __cinit__(self, first_sequence=None):
        """Create an empty ledger without trackers."""
        memset(&self.ledger, 0, sizeof(ledger_t))
        self.chain = NULL
        if first_sequence is not None:
            self.ledger.first_sequence = first_sequence
            self.ledger.is_first_known = True

    def __dealloc__(self):
        """Free the trackers and the free lists."""
        drop_trackers(&self.ledger, &self.chain)
        free_ledger(&self.ledger)

    def receive(self, stream, sequence):
        """Record the arrival of one sequence number."""
        judge(&self.ledger, &self.chain, stream, sequence)

    def reset(self):
        """Set the counters to zero."""
        reset_ledger(&self.ledger)

    def missing_between(self, stream, first, last):
        """Return how many of first..last have not arrived."""
        cdef tracker_t* tracker = find_tracker(self.chain, stream)
        return last - first + 1 if tracker == NULL else missing_between(tracker, first, last)

    def counts(self):
        """Return the counters, and the number of holes in memory."""
        return {
            "gaps": self.ledger.gaps,
            "missing": self.ledger.missing,
            "duplicates": self.ledger.duplicates,
            "reordered": self.ledger.reordered,
            "gaps_forgotten": self.ledger.gaps_forgotten,
            "holes": self.ledger.holes,
        }
