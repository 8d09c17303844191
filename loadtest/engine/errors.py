"""The errors of the engine itself; faults of the measured server are counted and not raised."""

__all__ = ["EngineBusyError", "EngineError", "EngineLimitError"]


class EngineError(Exception):
    """The base class of all errors of the engine."""


class EngineLimitError(EngineError):
    """A plan needs more connections than this process may have (descriptors or table slots)."""


class EngineBusyError(EngineError):
    """A job of this kind still runs: one connect, one echo and one close may run at a time."""
