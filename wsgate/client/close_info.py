"""How a connection ended, and whether a client comes back. Pure.

Owns the ranges of Close codes, HTTP statuses and error codes. Knows no sockets and no clock.

Source: protocols/client/v1/spec.md, "Closing" and "Opening"; protocols/codes/passing.json, row by row.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from wsgate.client.quantities import bounded

__all__ = [
    "ABNORMAL",
    "NORMAL",
    "TOO_BIG",
    "Ending",
    "after_close",
    "after_refusal",
    "is_passing_error",
    "with_fixed_token",
    "without_token",
]

NORMAL: Final = 1000
ABNORMAL: Final = 1006
"""RFC 6455 section 7.4.1: the connection ended without a Close."""
TOO_BIG: Final = 1009
TOKEN_EXPIRED: Final = 4001
AUTH_TIMEOUT: Final = 4002

_FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
_FINAL_RANGE: Final = range(4500, 5000)

_UNAUTHORIZED: Final = frozenset({401, 403})
"""Another token may help, so only a client with a provider tries again, and a bounded number of times."""
_PASSING: Final = frozenset({408, 425, 429}) | _UNAUTHORIZED
"""What another attempt may not meet; the other 4xx blame the request, which stays the same."""

_TOKEN_STAYS_GOOD: Final = ("key_awaited", "not_yet_valid")
"""Ends of the reasons of a 4001 after which the same token is accepted later."""

NOT_IMPLEMENTED: Final = 501


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection ended, or why none came about.

    Attributes:
        code: The Close code, or the HTTP status of a refused handshake, or 0 when it did not get that far.
        reason: Its name, as the gateway gives it where it does.
        may_return: Whether a client may come back.
        retry_s: How long to wait at least, as the gateway asked.
        detail: The address and the cause in words, for people. Two endings may differ in it and be equal.
    """

    code: int
    reason: str
    may_return: bool = True
    retry_s: float = 0.0
    detail: str = field(default="", compare=False)

    @property
    def is_unauthorized(self) -> bool:
        """Whether the handshake was refused for its token, or for the user behind it."""
        return self.code in _UNAUTHORIZED

    def __str__(self) -> str:
        name = f"{self.code} {self.reason}" if self.code else self.reason
        return f"{name}: {self.detail}" if self.detail else name


def after_close(code: int, reason: str, *, retry_s: float = 0.0) -> Ending:
    """What a Close means: 4000-4499 come back, 4500-4999 do not; of the standard codes most do."""
    is_final = code in _FINAL_CODES or code in _FINAL_RANGE
    return Ending(code, reason or "closed", not is_final, 0.0 if is_final else bounded(retry_s))


def after_refusal(status: int, retry_after: str | None = None) -> Ending:
    """What a handshake that was answered with another status than 101 means.

    Args:
        status: The HTTP status.
        retry_after: That header. A date is not looked at: the wall clock of a client proves nothing.
    """
    may_return = status in _PASSING or (status >= 500 and status != NOT_IMPLEMENTED)
    text = (retry_after or "").strip()
    retry_s = float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
    return Ending(status, "refused", may_return, bounded(retry_s) if may_return else 0.0)


def is_passing_error(code: int, *, has_retry: bool = False) -> bool:
    """Whether the same command may succeed later.

    Args:
        code: Of the `err`.
        has_retry: Whether the gateway said when to try again.
    """
    return has_retry or code == 429 or (code >= 500 and code != NOT_IMPLEMENTED)


def with_fixed_token(ending: Ending) -> Ending:
    """Judge an ending for a client that can show the same token only: an expired one stays expired."""
    if ending.code == TOKEN_EXPIRED and not ending.reason.endswith(_TOKEN_STAYS_GOOD):
        return replace(ending, may_return=False, retry_s=0.0, detail="the token of this client cannot change")
    return ending


def without_token(ending: Ending) -> Ending:
    """Judge an ending for a client that has no token and no way to get one."""
    if ending.code == AUTH_TIMEOUT:
        return replace(
            ending, may_return=False, retry_s=0.0, detail="the gateway wants a token and this client has none"
        )
    return ending
