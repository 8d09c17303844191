"""The exceptions of wsgate: one root class, and below it one class for each party that can be at fault.

Every exception type that a public function of wsgate raises is defined here. This module imports nothing of
the package, so every package may import it. Text for a peer never comes from `str(exc)`. It is
fixed: from `wsgate.reasons`, from the phrases of `wsgate.handshake` and, in development mode, from
`wsgate.auth.faults`.
"""

__all__ = ["BackendError", "InternalError", "PeerError", "SettingsError", "WsgateError"]


class WsgateError(Exception):
    """The root of all exceptions that wsgate raises on purpose."""


class InternalError(WsgateError):
    """A fault of wsgate: an invariant did not hold, or the operating system refused a resource."""


class SettingsError(WsgateError):
    """A setting is missing, of a wrong type or out of range; the message names the setting and its range."""


class PeerError(WsgateError):
    """A fault of the peer, with the one reason under which it is counted."""

    def __init__(self, reason: int, detail: str = "") -> None:
        """Store the reason and a detail for logs.

        Args:
            reason: A `wsgate.reasons.Reason`.
            detail: For logs only, never sent; must not contain the peer's bytes.
        """
        super().__init__(detail)
        self.reason = reason


class BackendError(WsgateError):
    """A fault of a service that the caller depends on: the bus, or the gateway that a client uses."""

    def __init__(self, detail: str, *, temporary: bool) -> None:
        """Store a message for people, and whether trying again can help.

        Args:
            detail: A description for people.
            temporary: Whether the same call can succeed later.
        """
        super().__init__(detail)
        self.temporary = temporary
