"""A memory fence between writes that other processes read; see fence.pyx."""

__all__ = ["fence"]

def fence() -> None:
    """Complete all memory accesses of this thread before the call ahead of all accesses after it."""
