"""A board in shared memory: one process posts bytes with a version, and other processes read them.

A board is created before a fork, so that children share it. A reader compares the version with the last one
that it knows, and reads only if it differs. A writer that is killed during a post leaves the version odd;
readers then keep the last post, and the next post makes the version even.
"""

import mmap
from typing import Final

from wsgate.errors import InternalError
from wsgate.statistics.fence import fence

__all__ = ["Board"]

_HEADER_BYTES: Final = 16  # version, length
_READ_TRIES: Final = 100
_MOST: Final = (1 << 64) - 1


class Board:
    """A versioned block of bytes in shared memory; pages that are never written use no memory.

    Args:
        size_bytes: The largest size of a post.
    """

    def __init__(self, size_bytes: int) -> None:
        self._memory = mmap.mmap(-1, _HEADER_BYTES + size_bytes)
        self._header = memoryview(self._memory)[:_HEADER_BYTES].cast("Q")
        self._size_bytes = size_bytes

    @property
    def version(self) -> int:
        """Return the version, which changes with every post; 0 before the first post."""
        return self._header[0]

    def post(self, data: bytes) -> None:
        """Replace the posted bytes by `data`. Only one process at a time may post.

        Raises:
            InternalError: `data` is longer than `size_bytes`; the former post stays.
        """
        if len(data) > self._size_bytes:
            raise InternalError(f"a post of {len(data)} bytes is longer than {self._size_bytes}")
        version = self._header[0] | 1
        self._header[0] = version
        fence()  # no process sees a byte of the new data together with an even version
        self._header[1] = len(data)
        self._memory[_HEADER_BYTES : _HEADER_BYTES + len(data)] = data
        fence()  # no process sees the next version together with a byte of the old data
        # Never 0, which means that nothing was posted, even if another process has overwritten the version.
        self._header[0] = (version + 1 & _MOST) or 2

    def read(self) -> tuple[int, bytes] | None:
        """Return the version and the posted bytes; None before the first post or during a post."""
        for _ in range(_READ_TRIES):
            version = self._header[0]
            if version == 0:
                return None
            fence()
            data = self._memory[_HEADER_BYTES : _HEADER_BYTES + min(self._header[1], self._size_bytes)]
            fence()
            if version % 2 == 0 and version == self._header[0]:
                return version, data
        return None
