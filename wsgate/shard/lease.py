"""The lease of the node's name on the bus: renewed by every shard, so that it lives while one of them does.

The name was claimed before the node started (wsgate.node.identity). A lease that another node holds all the
same, after an outage of the bus, is an error that an operator must hear of; clients are served on.
"""

from collections.abc import Callable
from typing import Final

from wsgate.bus import NODE_CLAIM, NODE_LEASE_MS, NODE_RELEASE, BusPublisher
from wsgate.log import Log

__all__ = ["NodeLease"]

RENEW_S: Final = 5.0


class NodeLease:
    """The lease as one shard renews it.

    Args:
        publisher: Sends the scripts.
        key: The name of the lease on the bus.
        holder: What this node writes into it; empty: the bus is the node's own, and there is no lease.
        log: The log of the shard.
    """

    def __init__(self, publisher: BusPublisher, key: bytes, holder: str, log: Log) -> None:
        self._publisher = publisher
        self._key = key
        self._holder = holder.encode()
        self._log = log
        self._renewed_s = 0.0
        self._is_released = False

    def tick(self, now_s: float) -> None:
        """Renew the lease when its time has come.

        Args:
            now_s: A monotonic clock.
        """
        if self._holder and not self._is_released and now_s - self._renewed_s >= RENEW_S:
            self._renewed_s = now_s
            arguments = (self._holder, b"%d" % NODE_LEASE_MS, b"")
            NODE_CLAIM.run(self._publisher, self._key, arguments, self._on_claimed)

    def _on_claimed(self, outcome: str, text: bytes) -> None:
        if not outcome and text:
            self._log.error(
                "node_name_taken", setting="server.node", by=text.partition(b" ")[2].decode("latin-1")
            )

    def release(self, done: Callable[[], None]) -> None:
        """Give the lease up, because the node ends; `done` is called when the bus has answered."""
        if not self._holder or self._is_released:
            done()
            return
        self._is_released = True
        NODE_RELEASE.run(self._publisher, self._key, (self._holder,), lambda *_: done())
