"""The keeper's duties that may fail: each runs here, so that no failure of one ends the node.

Forking, reaping and signals keep the node alive. Everything else that the keeper does (reading kernel
counters, steering, reloading settings, folding statistics, notifying systemd, looking after the runtime
directory) is a duty: an exception is caught, counted by the duty's name and logged at most once a second.
"""

from collections.abc import Callable
from typing import Final

from wsgate.errors import WsgateError
from wsgate.log import Log
from wsgate.shard.statistics_layout import DUTIES
from wsgate.statistics import Region

__all__ = ["Duties"]

_KNOWN: Final = frozenset(DUTIES)


class Duties:
    """Run the duties of one keeper, and contain their failures.

    Args:
        region: The keeper's region of the statistics block, where failures are counted.
        log: The keeper's log.
    """

    def __init__(self, region: Region, log: Log) -> None:
        self._region = region
        self._log = log

    def run(self, name: str, duty: Callable[[], object]) -> bool:
        """Run one duty; catch, count and log its exception.

        Args:
            name: One of `wsgate.shard.statistics_layout.DUTIES`; the label of the metric.
            duty: The function to call; its result is ignored.

        Returns:
            Whether the duty ended without an exception.
        """
        assert name in _KNOWN, name
        try:
            duty()
        except Exception as fault:
            self._region.add(f"duty_failed_{name}")
            # The log limits lines by event: with the name in the event, a duty that always fails hides no
            # other.
            if isinstance(fault, OSError | WsgateError):
                self._log.warning(f"duty_failed_{name}", why=_why(fault))
            else:
                self._log.exception(f"duty_failed_{name}", fault)
            return False
        return True


def _why(fault: Exception) -> str:
    """Return the text of an expected error: of the operating system, with its file name, or of wsgate."""
    if isinstance(fault, OSError):
        named = f" ({fault.filename})" if fault.filename else ""
        return (fault.strerror or type(fault).__name__) + named
    return str(fault)
