"""Select the dialect of a connection by the subprotocols that its handshake offers.

Source: RFC 6455 section 4.2.2; protocols/client/v1/spec.md, "Opening".
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from wsgate.dialects.dialect import Dialect
from wsgate.dialects.wsgate_v1 import JsonDialect, MsgpackDialect

__all__ = ["BEARER_PREFIX", "DIALECTS", "Selection", "select"]

BEARER_PREFIX: Final = "wsgate.bearer."
"""The prefix of an offered subprotocol that carries a token, because a browser cannot set headers."""

DIALECTS: Final[tuple[Dialect, ...]] = (JsonDialect(variant=0), MsgpackDialect(variant=1))
"""All dialects; the index of a dialect is its variant."""

_BY_SUBPROTOCOL: Final = {dialect.subprotocol: dialect for dialect in DIALECTS}


class Selection(NamedTuple):
    """The result of `select`: the dialect, the subprotocol to confirm, and the token."""

    dialect: Dialect
    subprotocol: str | None  # sent back in the response; None: the client offered none
    token: str | None  # must never be sent back


def select(offered: Iterable[str]) -> Selection | None:
    """Select the first offered dialect that is known, and take the token out of the offers.

    Args:
        offered: The subprotocols that the client offers, in its order.

    Returns:
        The selection: JSON without a subprotocol when the client offers none at all. None when it offers none
            that
        is known: a browser would close a connection whose response confirms no offered subprotocol.
    """
    found: Dialect | None = None
    token: str | None = None
    is_offering = False
    for name in offered:
        is_offering = True
        if name.startswith(BEARER_PREFIX):
            token = token or name[len(BEARER_PREFIX) :]
        elif found is None:
            found = _BY_SUBPROTOCOL.get(name)
    if not is_offering:
        return Selection(DIALECTS[0], None, None)
    return None if found is None else Selection(found, found.subprotocol, token)
