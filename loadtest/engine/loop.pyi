"""The poll loop: C functions for the other modules of the engine; Python calls none of them."""

__pyx_capi__: dict[str, object]  # what the other modules link to
