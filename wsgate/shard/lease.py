"""Renew the lease on the node's name; every shard does, so that it lasts as long as one shard runs.

The name was claimed before the node started (wsgate.node.identity). If another node has the lease all the
same, after an outage of the bus, an error is logged for the operator; clients are still served.
"""

from collections.abc import Callable
from typing import Final

from wsgate.bus import NODE_CLAIM, NODE_LEASE_MS, NODE_RELEASE, BusPublisher
from wsgate.log import Log

__all__ = ["NodeLease"]

RENEW_S: Final = 5.0


class NodeLease:
    """Renews and releases the lease on the node's name for one shard.

    Args:
        publisher: Sends the scripts to the bus.
        key: The key of the lease on the bus.
        holder: The value that this node writes; empty: the bus is the node's own, and there is no lease.
        log: Records that another node has the name.
    """

    def __init__(self, publisher: BusPublisher, key: bytes, holder: str, log: Log) -> None:
        self._publisher = publisher
        self._key = key
        self._holder = holder.encode()
        self._log = log
        self._renewed_s = 0.0
        self._is_released = False

    def tick(self, now_s: float) -> None:
        """Renew the lease every `RENEW_S` seconds until it is released.

        Args:
            now_s: A monotonic clock.
        """
        if self._holder and not self._is_released and now_s - self._renewed_s >= RENEW_S:
            self._renewed_s = now_s
            arguments = (self._holder, b"%d" % NODE_LEASE_MS, b"")
            NODE_CLAIM.run(self._publisher, self._key, arguments, self._on_claimed)

    def _on_claimed(self, outcome: str, text: bytes) -> None:
        """Log an error if the answer names another holder of the lease."""
        if not outcome and text:
            self._log.error(
                "node_name_taken", setting="server.node", by=text.partition(b" ")[2].decode("latin-1")
            )

    def release(self, done: Callable[[], None]) -> None:
        """Release the lease because the node ends; `done` is called when the bus has answered."""
        if not self._holder or self._is_released:
            done()
            return
        self._is_released = True
        NODE_RELEASE.run(self._publisher, self._key, (self._holder,), lambda *_: done())
