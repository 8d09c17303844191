"""How a connection ended, and whether a client comes back. Pure.

Owns the ranges of Close codes and HTTP statuses. Knows no sockets and no clock.

Source: protocols/client/v1/spec.md, "Closing" and "Opening".
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["ABNORMAL", "NORMAL", "TOO_BIG", "Ending", "after_close", "after_refusal"]

NORMAL: Final = 1000
ABNORMAL: Final = 1006
"""RFC 6455 section 7.4.1: the connection ended without a Close."""
TOO_BIG: Final = 1009

_FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
_FINAL_RANGE: Final = range(4500, 5000)

_UNAUTHORIZED: Final = frozenset({401, 403})
_PASSING: Final = frozenset({408, 425, 429}) | _UNAUTHORIZED
"""What another attempt may not meet; the other 4xx blame the request, which stays the same."""

RETRY_LIMIT_S: Final = 3600.0
"""Nobody is sent away for longer: a mistyped Retry-After would otherwise be for ever."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection ended, or why none came about.

    Attributes:
        code: The Close code, or the HTTP status of a refused handshake, or 0 when it did not get that far.
        reason: Its name, as the gateway gives it where it does.
        may_return: Whether a client may come back.
        retry_s: How long to wait at least, as the gateway asked.
    """

    code: int
    reason: str
    may_return: bool = True
    retry_s: float = 0.0

    @property
    def is_unauthorized(self) -> bool:
        """Whether the handshake was refused for its token, or for who is behind it."""
        return self.code in _UNAUTHORIZED

    def __str__(self) -> str:
        return f"{self.code} {self.reason}" if self.code else self.reason


def after_close(code: int, reason: str, *, retry_s: float = 0.0) -> Ending:
    """What a Close means: 4000-4499 come back, 4500-4999 do not; of the standard codes most do."""
    is_final = code in _FINAL_CODES or code in _FINAL_RANGE
    return Ending(code, reason or "closed", not is_final, 0.0 if is_final else _bounded(retry_s))


def after_refusal(status: int, retry_after: str | None = None) -> Ending:
    """What a handshake that was answered with another status than 101 means.

    Args:
        status: The HTTP status.
        retry_after: That header. A date is not looked at: the wall clock of a client proves nothing.
    """
    may_return = status >= 500 or status in _PASSING
    text = (retry_after or "").strip()
    retry_s = float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
    return Ending(status, "refused", may_return, _bounded(retry_s) if may_return else 0.0)


def _bounded(retry_s: float) -> float:
    return min(max(retry_s, 0.0), RETRY_LIMIT_S)
