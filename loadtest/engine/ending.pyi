"""The close job and the sweep: C functions for the engine's other modules; nothing for Python to call."""

__pyx_capi__: dict[str, object]  # what the other modules link to
