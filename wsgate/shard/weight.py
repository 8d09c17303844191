"""How much memory a shard's process weighs: its proportional set size, read by the process itself.

No other process can read it: a process whose memory may not be dumped shows its maps to nobody else but
root. The kernel walks through all pages for the answer, up to tens of milliseconds for a large shard, so a
thread of its own reads it: the loop goes on meanwhile.
"""

import contextlib
import os
import threading
from typing import Final

from wsgate.statistics import Region

__all__ = ["Weight", "proportional_set_bytes"]

EVERY_LOOKS: Final = 60
"""The walk costs milliseconds of a core, and this number changes slowly."""
FIRST_LOOK: Final = 4
"""A shard that has just begun has newcomers to serve first."""
_ROLLUP: Final = "/proc/self/smaps_rollup"
_MARK: Final = b"\nPss:"
_ANSWER_BYTES: Final = 4096
_STACK_BYTES: Final = 256 * 1024


class Weight:
    """The weight of one shard, in the gauge `proportional_set_bytes`.

    Args:
        region: The region of the shard.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._looks = 0
        # Once for all readings: with no descriptor left the number is needed most.
        try:
            self._fd = os.open(_ROLLUP, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without this file: the gauge stays 0
            self._fd = -1
        # Made here, and only small objects in the thread, so that it asks for no heap of its own.
        self._answer = bytearray(_ANSWER_BYTES)
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begin a reading with the fifth call and with every 60th after it; call once a second."""
        if (
            self._fd >= 0
            and self._looks % EVERY_LOOKS == FIRST_LOOK
            and not (self._thread and self._thread.is_alive())
        ):
            before = threading.stack_size(_STACK_BYTES)
            try:
                self._thread = threading.Thread(target=self._read, daemon=True)
                self._thread.start()
            except RuntimeError:  # no thread is left: next time
                self._thread = None
            finally:
                threading.stack_size(before)
        self._looks += 1

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            length = os.preadv(self._fd, [self._answer], 0)
            if found := proportional_set_bytes(self._answer, length):
                self._region["proportional_set_bytes"] = found


def proportional_set_bytes(rollup: bytearray, length: int) -> int:
    """The proportional set size in the first `length` bytes of a `smaps_rollup`; 0 where it has none."""
    place = rollup.find(_MARK, 0, length)
    words = rollup[place + len(_MARK) : min(place + 64, length)].split(None, 1)
    return int(words[0]) * 1024 if place >= 0 and words and words[0].isdigit() else 0
