"""Counters as Python values: C functions for the engine's other modules; nothing for Python to call."""

__pyx_capi__: dict[str, object]  # what the other modules link to
