"""The exception tree: one root, and below it by whose fault.

Owns every exception type that leaves a public function of wsgate. Knows nothing else of the
package, so that every room may import it. Wire text never comes from `str(exc)`: what a peer is
told comes from `wsgate.reasons`.
"""

__all__ = ["BackendError", "InternalError", "PeerError", "SettingsError", "WsgateError"]


class WsgateError(Exception):
    """Root of everything wsgate raises on purpose."""


class InternalError(WsgateError):
    """Our own fault: an invariant did not hold, or the operating system refused what we need."""


class SettingsError(WsgateError):
    """A setting is missing, ill-typed or out of range; the message names it and its range."""


class PeerError(WsgateError):
    """The peer's fault. Carries the one reason under which it is counted."""

    def __init__(self, reason: int, detail: str = "") -> None:
        """Remember the reason.

        Args:
            reason: A `wsgate.reasons.Reason`.
            detail: For logs only, never sent; must not contain the peer's bytes.
        """
        super().__init__(detail)
        self.reason = reason


class BackendError(WsgateError):
    """Somebody we depend on failed: the bus, a gateway asked as a client."""

    def __init__(self, detail: str, *, temporary: bool) -> None:
        """Remember whether trying again may help.

        Args:
            detail: For people.
            temporary: Whether the same call may succeed later.
        """
        super().__init__(detail)
        self.temporary = temporary
