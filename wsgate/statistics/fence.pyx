"""A memory fence: what is written before it is seen by other processes before what is written after it.

A board and the block say "this is whole" by a version that is odd while a write is under way. That holds only
if version and data become visible in the order in which they were written. x86-64 keeps that order by itself:
stores are seen in order, and loads are made in order (Intel SDM volume 3, 8.2.2). ARM64 and others do not;
there a reader could take half of a post for a whole one. CPython itself puts no fence between two writes.
"""

__all__ = ["fence"]

cdef extern from * nogil:
    """
    static inline void fence_all(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    void fence_all()


def fence():
    """Order all memory accesses of this thread before it before all that follow."""
    fence_all()
