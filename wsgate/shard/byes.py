"""The `bye` messages that clients receive before a Close, in every dialect.

Most are the same in every shard. They are encoded when this module is imported, which happens in the keeper
before it forks: the memory is shared, and a shard does not run the encoders at its start (0.5 MB less of
pages that each shard would copy).
"""

from collections.abc import Iterator
from typing import Final

from wsgate.dialects import DIALECTS, Dialect
from wsgate.reasons import REASONS, Reason

__all__ = ["EXPIRY_RANKS", "RETRY_MS", "bye", "comes_back", "common_byes"]

RETRY_MS: Final = 2_000
"""Milliseconds that clients are asked to wait before they retry; they add a random time of their own."""
EXPIRY_RANKS: Final = 30
"""Seconds over which clients return whose tokens expire in the same second, a thousand in each."""


def comes_back(close_code: int) -> bool:
    """Return whether a client should reconnect after this Close code. Source: protocols/codes.json."""
    if close_code >= 4000:
        return close_code < 4500
    return close_code in (1000, 1001, 1006, 1011, 1012, 1013)


def bye(dialect: Dialect, reason: Reason, retry_ms: int = RETRY_MS) -> bytes:
    """Encode the `bye` message for a reason in one dialect.

    Args:
        dialect: The dialect of the connection.
        reason: Why the connection is closed.
        retry_ms: How long the client should wait; not sent if the client should not reconnect.
    """
    code = REASONS[reason].close_code
    returns = comes_back(code)
    return dialect.bye(code, reason.name.lower(), reconnect=returns, retry_ms=retry_ms if returns else None)


def _all() -> Iterator[tuple[Reason, int, int]]:
    """Yield the reason, the rank and the `retry_ms` of every message that is encoded in advance."""
    for row in REASONS.values():
        if row.close_code >= 4000:
            yield row.reason, 0, RETRY_MS
    for rank in range(1, EXPIRY_RANKS):
        yield Reason.TOKEN_EXPIRED, rank, RETRY_MS + rank * 1_000


_COMMON: Final = tuple(
    (reason, rank, {dialect: bye(dialect, reason, retry_ms) for dialect in DIALECTS})
    for reason, rank, retry_ms in _all()
)


def common_byes() -> Iterator[tuple[Reason, int, dict[Dialect, bytes]]]:
    """Yield each encoded `bye`: its reason, its rank for `Reactor.set_bye`, and the message by dialect."""
    return iter(_COMMON)
