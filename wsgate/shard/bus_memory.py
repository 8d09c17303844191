"""What the node's own bus holds: read from the bus, counted by the shards, and the account judged by both.

The bus is asked once a second, and four times where names came since. Between two answers each shard adds
what it has counted itself, so that nobody outruns the account. The names of the other shards stand in their
regions.
"""

from collections.abc import Sequence
from typing import Final

from wsgate.admission import BusLedger, BusReading, names_bytes
from wsgate.bus import Appender, BusPublisher, pack
from wsgate.log import Log
from wsgate.reactor import Reactor
from wsgate.statistics import StatisticsBlock

__all__ = ["BusMemory"]

LOOK_S: Final = 1.0
GROWN_BYTES: Final = 256 * 1024
"""The bus is asked sooner when the names have grown by so much."""
_INFO: Final = pack("INFO", "memory")


class BusMemory:
    """The account of the node's own bus in one shard; of another bus there is none.

    Args:
        ledger: Judges.
        reactor: Whose channels are names on the bus.
        publisher: The way to the bus.
        block: Where every shard publishes what its names take.
        number: Which shard this is.
        prefix: What channel names start with on the bus.
        log: Where a change is said.
    """

    def __init__(
        self,
        ledger: BusLedger,
        reactor: Reactor,
        publisher: BusPublisher,
        block: StatisticsBlock,
        number: int,
        prefix: bytes,
        log: Log,
    ) -> None:
        self._ledger = ledger
        self._reactor = reactor
        self._publisher = publisher
        self._block = block
        self._number = number
        self._region = block.shard(number)
        self._prefix_bytes = len(prefix)
        self._log = log
        self._others_bytes = 0  # names of the other shards, at the last tick
        self._looked_s = 0.0
        self._looked_at_bytes = 0
        self._is_asking = False
        self.is_full = False  # newcomers are refused
        self.appenders: Sequence[Appender] = ()  # who makes room in the streams

    @property
    def is_there(self) -> bool:
        """Whether the node has a bus of its own."""
        return self._ledger.shares.total_bytes > 0

    def _own_bytes(self) -> int:
        count, size = self._reactor.channel_names()
        return names_bytes(count, size + count * self._prefix_bytes)

    @property
    def _counted(self) -> int:
        return self._own_bytes() + self._others_bytes

    def takes_name(self) -> bool:
        """Whether a client may add a channel name."""
        return not self.is_there or self._ledger.takes_name(self._counted)

    def takes_message(self) -> bool:
        """Whether a client may have the bus keep one more message.

        Not while the bus is nearly full and nothing can be removed from its streams, because backends have
        not read it yet.
        """
        return not self._ledger.is_nearly_full or any(each.last_trimmed for each in self.appenders)

    def tick(self, now_s: float) -> None:
        """Judge, publish what this shard's names take, and ask the bus when it is time.

        Args:
            now_s: A monotonic clock.
        """
        if not self.is_there:
            return
        block = self._block
        own_bytes = self._own_bytes()
        self._region["bus_names_bytes"] = own_bytes
        self._others_bytes = sum(
            block.shard(number)["bus_names_bytes"] for number in range(block.shards) if number != self._number
        )
        counted = own_bytes + self._others_bytes
        is_full = self._ledger.judge(counted)
        if is_full != self.is_full:
            self.is_full = is_full
            say = self._log.warning if is_full else self._log.info
            say("bus_memory", is_full=is_full, names_bytes=self._ledger.names(counted), used_bytes=self._used)
        is_grown = abs(counted - self._looked_at_bytes) >= GROWN_BYTES
        if not self._is_asking and (is_grown or now_s - self._looked_s >= LOOK_S):
            self._is_asking, self._looked_s, self._looked_at_bytes = True, now_s, counted
            self._publisher.call(b"", _INFO, self._on_info)

    @property
    def _used(self) -> int:
        return self._ledger.reading.used

    def _on_info(self, outcome: str, text: bytes) -> None:
        """The bus has answered, or has not: then the last answer and the shards' own counts stand."""
        self._is_asking = False
        if outcome:
            return
        try:
            reading = BusReading.from_bytes(text)
        except ValueError:
            return
        self._ledger.read(reading, self._looked_at_bytes)
        if self._ledger.is_nearly_full:
            for appender in set(self.appenders):
                appender.make_room()
        self._region["bus_used_bytes"] = reading.used
        self._region["bus_buffers_bytes"] = reading.buffers
