"""What goes wrong on the measuring side itself; what the server does wrong is counted, never raised."""

__all__ = ["EngineBusyError", "EngineError", "EngineLimitError"]


class EngineError(Exception):
    """Base of every error of the engine."""


class EngineLimitError(EngineError):
    """More connections were asked for than this process may hold (descriptors or table slots)."""


class EngineBusyError(EngineError):
    """A job of this kind is still running; one connect, one echo and one close run at a time."""
