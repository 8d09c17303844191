"""What a client raises, all of it below `wsgate.errors.BackendError`: somebody it depends on failed.

Knows nothing of connections but how they ended.
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
    """The gateway refused a command.

    Attributes:
        code: The number, as in HTTP.
        error: The name to compare, such as `permission_denied`.
        retry_s: How long to wait at least before trying again, None when it did not say.
        temporary: Whether trying again may help. Of a `publish` refused with 503 it is unknown whether it
            was published.

    Source: protocols/codes.json, "errors"; protocols/codes/passing.json for which are temporary.
    """

    def __init__(self, code: int, error: str, message: str = "", *, retry_s: float | None = None) -> None:
        """Remember what the gateway said; `message` is for people."""
        super().__init__(
            f"{code} {error}" + (f": {message}" if message else ""),
            temporary=is_passing_error(code, has_retry=retry_s is not None),
        )
        self.code = code
        self.error = error
        self.retry_s = retry_s


class CommandTimeout(BackendError):
    """No answer in time: whether the command was carried out is unknown."""

    def __init__(self) -> None:
        super().__init__("no answer in time", temporary=True)


class Disconnected(BackendError):
    """The connection ended, or could not be opened.

    What a command that waited for its answer raises: whether it was carried out is unknown.

    Attributes:
        ending: How it ended.
    """

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"disconnected: {ending}", temporary=ending.may_return)
        self.ending = ending


class ClosedError(BackendError):
    """The client has ended and does not come back.

    Attributes:
        ending: Why.
    """

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"the client is closed: {ending}", temporary=False)
        self.ending = ending


class NotConnected(BackendError):
    """The client was never started, or was let go, so that what was waited for would not come."""

    def __init__(self) -> None:
        super().__init__("the client is not started: call connect() or start(), or enter it", temporary=True)


class TokenError(BackendError):
    """The token provider failed, hung, or gave something that is no token."""

    def __init__(self, detail: str, *, temporary: bool = True) -> None:
        """Remember what failed.

        Args:
            detail: For people; never the token.
            temporary: Whether asking again may help.
        """
        super().__init__(detail, temporary=temporary)


class UnauthorizedError(TokenError):
    """A token provider raises this to say that there will be no token: the user has logged out, for example.

    The client ends with it and does not ask again. A provider of a channel token ends that subscription.
    """

    def __init__(self, detail: str = "the token provider has no token any more") -> None:
        """Create the error with a reason for people."""
        super().__init__(detail, temporary=False)


class BadMessage(BackendError):
    """The gateway said something that is no message of wsgate.v1."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, temporary=True)
