"""Account the memory of the node's own bus, and refuse channels and messages before it is full.

Each shard requests INFO from the bus once a second, and up to four times if its channels have grown since.
Between two answers a shard adds the channel names that it has counted itself, so that no client adds channels
faster than they are accounted. The other shards write the bytes of their names into the statistics block.
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
"""INFO is requested at once when the channel names of the node have grown or shrunk by so much."""
_INFO: Final = pack("INFO", "memory")


class BusMemory:
    """Keeps one shard's account of the private bus; without a private bus it accepts everything.

    Args:
        ledger: Decides from the account whether the bus has memory left.
        reactor: Holds the channels of this shard, which are names on the bus.
        publisher: Sends INFO to the bus.
        block: The statistics, where every shard writes how many bytes its names take.
        number: The number of this shard.
        prefix: The prefix of channel names on the bus.
        log: Records when the bus becomes full, and when it no longer is.
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
        self.is_full = False
        """Whether the bus has no memory for more connections, so that newcomers are refused."""
        self.appenders: Sequence[Appender] = ()
        """The appenders that trim the streams when the bus is nearly full."""

    @property
    def is_there(self) -> bool:
        """Whether the node has a private bus, which is accounted."""
        return self._ledger.shares.total_bytes > 0

    def _own_bytes(self) -> int:
        """Return the memory that this shard's channel names take on the bus, in bytes."""
        count, size = self._reactor.channel_names()
        return names_bytes(count, size + count * self._prefix_bytes)

    @property
    def _counted(self) -> int:
        return self._own_bytes() + self._others_bytes

    def takes_name(self) -> bool:
        """Return whether the bus has memory for one more channel of a client."""
        return not self.is_there or self._ledger.takes_name(self._counted)

    def takes_message(self) -> bool:
        """Return whether the bus has memory for one more message of a client in its streams.

        It has none while it is nearly full and the last trim of every appender removed nothing, because
        backends have not read the entries yet.
        """
        return not self._ledger.is_nearly_full or any(each.last_trimmed for each in self.appenders)

    def tick(self, now_s: float) -> None:
        """Write this shard's share, decide whether the bus is full, and request INFO if it is time.

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
        """Read the answer to INFO, and trim the streams if the bus is nearly full.

        If the bus did not answer, the last answer and the counts of the shards stay in use.
        """
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
