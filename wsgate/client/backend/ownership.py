"""Keeps the accepted entries of a consumer its own, and checks before a late start that it still owns them.

The server counts the idle time of an entry from its delivery, and another consumer claims the entry when that
time is too long. An entry may wait for its turn for longer, so its idle time is reset while it is in hand.
"""

import asyncio
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from wsgate.client.backend.bus import Bus, Reader
from wsgate.client.backend.partition import Turn

__all__ = ["RENEWALS", "Owner", "find_owner", "is_in_doubt", "renew"]

RENEWALS: Final = 3
"""How often an entry is renewed in the time after which another consumer may claim it."""
_FRESH: Final = 1 / 6
"""The part of the takeover time in which an entry is not renewed again. It is also the time that may pass
between the question who owns an entry and its renewal, without taking back what another has just claimed."""
_DOUBT: Final = 1 / 2
"""The part of the takeover time after which a renewal is overdue. The renewals come every third of it."""


class Owner(Enum):
    """Names the consumer that has to handle an entry."""

    THIS = auto()
    """This consumer owns the entry, or the entry was trimmed and nobody else can read it."""
    ANOTHER = auto()
    """Another consumer has claimed the entry and has not acknowledged it."""
    NOBODY = auto()
    """Another consumer has acknowledged the entry, or its group was created again and delivers it again."""


def is_in_doubt(turn: Turn, idle_s: float) -> bool:
    """Return whether another consumer may have claimed the entry, because its renewal is overdue."""
    return asyncio.get_running_loop().time() - turn.owned_at_s > idle_s * _DOUBT


async def renew(bus: Bus, reader: Reader, turns: Iterable[Turn], idle_s: float) -> None:
    """Reset the idle time of those entries that this consumer owns; two Redis commands.

    Args:
        bus: The bus.
        reader: The consumer and the stream.
        turns: The accepted entries. Those that are owned are marked with the time.
        idle_s: Seconds after which another consumer may claim an entry.

    Raises:
        BusError: Redis did not reply, or refused.
    """
    asked_at_s = asyncio.get_running_loop().time()
    found = sorted(turns, key=lambda turn: _position(turn.entry.id))
    if not found:
        return
    owned = await bus.deliveries(reader, [turn.entry for turn in found])
    if owned:
        await bus.renew(reader, list(owned), fresh_s=idle_s * _FRESH)
    for turn in found:
        if turn.entry.id in owned:
            turn.owned_at_s = asked_at_s


async def find_owner(bus: Bus, reader: Reader, turn: Turn, idle_s: float) -> Owner:
    """Renew one entry whose renewal is overdue, and return who has to handle it.

    Raises:
        BusError: Redis did not reply, or refused.
    """
    before_s = turn.owned_at_s
    await renew(bus, reader, [turn], idle_s)
    if turn.owned_at_s != before_s:
        return Owner.THIS
    if await bus.is_pending(reader, turn.entry):
        return Owner.ANOTHER
    return Owner.NOBODY if await bus.is_stored(turn.entry) else Owner.THIS


def _position(entry_id: str) -> tuple[int, int]:
    """Return the place of an entry in its stream: milliseconds and a number."""
    time_ms, _, number = entry_id.partition("-")
    return int(time_ms), int(number or 0)
