"""The exceptions of a client, all derived from `wsgate.errors.BackendError`.

This module depends only on how connections end (`close_info`).
"""

from wsgate.client.close_info import Ending, is_passing_error
from wsgate.errors import BackendError

__all__ = [
    "BadMessage",
    "ClosedError",
    "CommandError",
    "CommandTimeout",
    "Disconnected",
    "NotConnected",
    "TokenError",
    "UnauthorizedError",
]


class CommandError(BackendError):
    """The gateway refused a command; the error holds its code, its name and a retry time.

    Attributes:
        code: The number, with the meaning of an HTTP status.
        error: The name for comparisons, such as `permission_denied`.
        retry_s: How many seconds to wait at least before another try; None if the gateway sent no time.
        temporary: Whether another try may succeed. After a `pub` that was refused with 503 it is unknown
            whether the data was published.

    Source: protocols/codes.json, "errors"; protocols/codes/passing.json for which errors are temporary.
    """

    def __init__(self, code: int, error: str, message: str = "", *, retry_s: float | None = None) -> None:
        """Create the error from the fields of the gateway's `err`. `message` is a text for people."""
        super().__init__(
            f"{code} {error}" + (f": {message}" if message else ""),
            temporary=is_passing_error(code, has_retry=retry_s is not None),
        )
        self.code = code
        self.error = error
        self.retry_s = retry_s


class CommandTimeout(BackendError):
    """The reply to a command did not arrive in time: whether it was carried out is unknown."""

    def __init__(self) -> None:
        super().__init__("no reply in time", temporary=True)


class Disconnected(BackendError):
    """The connection has ended, or could not be opened.

    A command that waits for its reply raises this; whether the command was carried out is unknown.

    Attributes:
        ending: How the connection ended.
    """

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"disconnected: {ending}", temporary=ending.may_return)
        self.ending = ending


class ClosedError(BackendError):
    """The client has ended and does not connect again.

    Attributes:
        ending: The reason for the end.
    """

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"the client is closed: {ending}", temporary=False)
        self.ending = ending


class NotConnected(BackendError):
    """The client was never started, or `disconnect` was called, so that waiting would never succeed."""

    def __init__(
        self, detail: str = "the client is not started: call connect() or start(), or use `async with`"
    ) -> None:
        """Create the error of a client without a connection, with the way to start it."""
        super().__init__(detail, temporary=True)


class TokenError(BackendError):
    """The token provider failed, took too long, or returned a value that is not a token."""

    def __init__(self, detail: str, *, temporary: bool = True) -> None:
        """Create the error of a failed token provider, with a reason for people."""
        super().__init__(detail, temporary=temporary)


class UnauthorizedError(TokenError):
    """A token provider raises this when there will be no token: the user has logged out, for example.

    The client then ends and does not call the provider again. From the provider of a channel token it ends
    only that subscription.
    """

    def __init__(self, detail: str = "the token provider has no token for this user any more") -> None:
        """Create the error of a missing token, with a reason for people."""
        super().__init__(detail, temporary=False)


class BadMessage(BackendError):
    """The gateway sent a frame that is not a valid message of wsgate.v1."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, temporary=True)
