"""A memory fence: other processes see writes before the fence earlier than writes after it.

A board and the statistics block have a version that is odd while a write is under way. This works only if
version and data become visible in the order in which they were written. x86-64 keeps this order by itself:
stores become visible in order, and loads are made in order (Intel SDM volume 3, 8.2.2). ARM64 and others do
not, so a reader could take half of a post for a complete one. CPython puts no fence between two writes.
"""

__all__ = ["fence"]

cdef extern from * nogil:
    """
    static inline void fence_all(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    void fence_all()


def fence():
    """Complete all memory accesses of this thread before the call ahead of all accesses after it."""
    fence_all()
