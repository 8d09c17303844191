"""A notice board in shared memory: one writer posts bytes, others look whether there is something new.

Made before a fork, so that children share it. Whoever looks pays one comparison while nothing changes.
A writer that dies in the middle of a post leaves the version odd; readers keep what they had, and the
next post puts it right.
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
    """One board; pages that were never written cost nothing.

    Args:
        size_bytes: The longest post.
    """

    def __init__(self, size_bytes: int) -> None:
        self._memory = mmap.mmap(-1, _HEADER_BYTES + size_bytes)
        self._header = memoryview(self._memory)[:_HEADER_BYTES].cast("Q")
        self._size_bytes = size_bytes

    @property
    def version(self) -> int:
        """Changes with every post; 0 before the first."""
        return self._header[0]

    def post(self, data: bytes) -> None:
        """Replace what is there; by one process at a time.

        Raises:
            InternalError: It is too long; what was there stays.
        """
        if len(data) > self._size_bytes:
            raise InternalError(f"a notice of {len(data)} bytes is longer than {self._size_bytes}")
        version = self._header[0] | 1
        self._header[0] = version
        fence()  # nobody sees a byte of the new data beside an even version
        self._header[1] = len(data)
        self._memory[_HEADER_BYTES : _HEADER_BYTES + len(data)] = data
        fence()  # nobody sees the next version beside a byte of the old data
        # Never 0, which says that nothing was posted, also where the version has been overwritten.
        self._header[0] = (version + 1 & _MOST) or 2

    def read(self) -> tuple[int, bytes] | None:
        """The version and what was posted; None while a post is under way, or before the first."""
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
