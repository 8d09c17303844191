"""See fence.pyx."""

__all__ = ["fence"]

def fence() -> None:
    """Order all memory accesses of this thread before it before all that follow."""
