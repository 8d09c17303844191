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
"""Advised to clients that may come back; their own jitter comes on top."""
EXPIRY_RANKS: Final = 30
"""Tokens that expire in one second bring their clients back in this many seconds, a thousand in each."""


def comes_back(close_code: int) -> bool:
    """Whether a client should reconnect after this code. Source: protocols/codes.json."""
    if close_code >= 4000:
        return close_code < 4500
    return close_code in (1000, 1001, 1006, 1011, 1012, 1013)


def bye(dialect: Dialect, reason: Reason, retry_ms: int = RETRY_MS) -> bytes:
    """Encode the `bye` of a reason.

    Args:
        dialect: The dialect of the connection.
        reason: Why the connection is closed.
        retry_ms: How long the client should wait; not sent when the client should not come back.
    """
    code = REASONS[reason].close_code
    returns = comes_back(code)
    return dialect.bye(code, reason.name.lower(), reconnect=returns, retry_ms=retry_ms if returns else None)


def _all() -> Iterator[tuple[Reason, int, int]]:
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
    """Yield the reason, the rank for `Reactor.set_bye` and the message in each dialect."""
    return iter(_COMMON)
