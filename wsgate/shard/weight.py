"""Measure the proportional set size of a shard's process, in the process itself.

No other process but one of root can read the number, because the memory of a shard may not be dumped. The
kernel walks through all pages for the answer, which takes up to tens of milliseconds in a large shard. So a
thread reads it, and the event loop continues meanwhile.
"""

import contextlib
import os
import threading
from typing import Final

from wsgate.statistics import Region

__all__ = ["Weight", "proportional_set_bytes"]

EVERY_LOOKS: Final = 60
"""Seconds between two readings: the walk takes milliseconds of a core, and the number changes slowly."""
FIRST_LOOK: Final = 4
"""Seconds before the first reading, because a shard that has just started has newcomers to serve."""
_ROLLUP: Final = "/proc/self/smaps_rollup"
_MARK: Final = b"\nPss:"
_ANSWER_BYTES: Final = 4096
_STACK_BYTES: Final = 256 * 1024


class Weight:
    """Writes the proportional set size of one shard into the gauge `proportional_set_bytes`.

    Args:
        region: The region of the shard in the statistics block.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._looks = 0
        # Opened once: the number is needed most when no descriptor is left.
        try:
            self._fd = os.open(_ROLLUP, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without this file: the gauge stays 0
            self._fd = -1
        # Made here, and only small objects in the thread, so that the thread needs no heap of its own.
        self._answer = bytearray(_ANSWER_BYTES)
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begin a reading at the fifth call and at every 60th call after it; call this once a second."""
        if (
            self._fd >= 0
            and self._looks % EVERY_LOOKS == FIRST_LOOK
            and not (self._thread and self._thread.is_alive())
        ):
            before = threading.stack_size(_STACK_BYTES)
            try:
                self._thread = threading.Thread(target=self._read, daemon=True)
                self._thread.start()
            except RuntimeError:  # the system allows no more threads: try at the next time
                self._thread = None
            finally:
                threading.stack_size(before)
        self._looks += 1

    def _read(self) -> None:
        """Read `smaps_rollup` and write the proportional set size into the gauge; runs in the thread."""
        with contextlib.suppress(OSError):
            length = os.preadv(self._fd, [self._answer], 0)
            if found := proportional_set_bytes(self._answer, length):
                self._region["proportional_set_bytes"] = found


def proportional_set_bytes(rollup: bytearray, length: int) -> int:
    """Parse the proportional set size in the first `length` bytes of a `smaps_rollup`; 0 if it has none."""
    place = rollup.find(_MARK, 0, length)
    words = rollup[place + len(_MARK) : min(place + 64, length)].split(None, 1)
    return int(words[0]) * 1024 if place >= 0 and words and words[0].isdigit() else 0
