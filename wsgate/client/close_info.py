"""Decides from a Close code, an HTTP status or an error code whether a client may connect again. Pure.

This module owns the ranges of Close codes, HTTP statuses and error codes. It has no access to sockets or
clocks.

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
"""Another token may help, so only a client with a token provider tries again, a bounded number of times."""
_REJECTIONS: Final = range(400, 500)
_PASSING_REJECTIONS: Final = frozenset({408, 425, 429}) | _UNAUTHORIZED
"""The 4xx statuses after which another attempt may succeed. The others reject the request itself, which would
be the same."""

_TOKEN_STAYS_GOOD: Final = ("key_awaited", "not_yet_valid")
"""Last parts of those reasons of a 4001 after which the same token may be accepted later."""

NOT_IMPLEMENTED: Final = 501


@dataclass(frozen=True, slots=True)
class Ending:
    """The reason why a connection ended, or why it could not be opened.

    Attributes:
        code: The Close code, the HTTP status of a refused handshake, or 0 if there was neither.
        reason: The name of the reason; the gateway's name where it sent one.
        may_return: Whether the client may connect again.
        retry_s: The least number of seconds to wait, as the gateway requested.
        detail: The address and the cause in words, for people. Not part of comparisons.
    """

    code: int
    reason: str
    may_return: bool = True
    retry_s: float = 0.0
    detail: str = field(default="", compare=False)

    @property
    def is_unauthorized(self) -> bool:
        """Whether the handshake was refused because of the token or its user (401 or 403)."""
        return self.code in _UNAUTHORIZED

    def __str__(self) -> str:
        name = f"{self.code} {self.reason}" if self.code else self.reason
        return f"{name}: {self.detail}" if self.detail else name


def after_close(code: int, reason: str, *, retry_s: float = 0.0) -> Ending:
    """Return the ending for a Close code: final for 4500 to 4999 and for some standard codes.

    All other codes, among them 4000 to 4499, allow another connection.
    """
    is_final = code in _FINAL_CODES or code in _FINAL_RANGE
    return Ending(code, reason or "closed", not is_final, 0.0 if is_final else bounded(retry_s))


def after_refusal(status: int, retry_after: str | None = None) -> Ending:
    """Return the ending for a handshake that was answered with an HTTP status other than 101.

    Args:
        status: The HTTP status.
        retry_after: The value of the Retry-After header. Only seconds are read; a date is ignored, because
            the clock of a client may be wrong.
    """
    # A gateway never answers 2xx or 3xx: that is the login page of a network, or a page about maintenance.
    is_final = status == NOT_IMPLEMENTED or (status in _REJECTIONS and status not in _PASSING_REJECTIONS)
    may_return = not is_final
    text = (retry_after or "").strip()
    retry_s = float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
    return Ending(status, "refused", may_return, bounded(retry_s) if may_return else 0.0)


def is_passing_error(code: int, *, has_retry: bool = False) -> bool:
    """Whether the same command may succeed later, checked by the code of its `err`.

    Args:
        code: The code of the `err`.
        has_retry: Whether the gateway sent a time to wait.
    """
    return has_retry or code == 429 or (code >= 500 and code != NOT_IMPLEMENTED)


def with_fixed_token(ending: Ending) -> Ending:
    """Adjust an ending for a client whose token cannot change: an expired token makes it final."""
    if ending.code == TOKEN_EXPIRED and not ending.reason.endswith(_TOKEN_STAYS_GOOD):
        return replace(ending, may_return=False, retry_s=0.0, detail="the token of this client cannot change")
    return ending


def without_token(ending: Ending) -> Ending:
    """Adjust an ending for a client without any token: a missing authentication makes it final."""
    if ending.code == AUTH_TIMEOUT:
        return replace(
            ending,
            may_return=False,
            retry_s=0.0,
            detail="the gateway requires a token, and this client has none",
        )
    return ending
