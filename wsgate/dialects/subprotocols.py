"""Which dialect a connection speaks, by the subprotocols it offers.

Source: RFC 6455 section 4.2.2; protocols/client/v1/spec.md, "Opening".
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from wsgate.dialects.dialect import Dialect
from wsgate.dialects.wsgate_v1 import JsonDialect, MsgpackDialect

__all__ = ["BEARER_PREFIX", "DIALECTS", "Selection", "select"]

BEARER_PREFIX: Final = "wsgate.bearer."
"""Before a token that rides beside the subprotocol, because a browser can set no header."""

DIALECTS: Final[tuple[Dialect, ...]] = (JsonDialect(variant=0), MsgpackDialect(variant=1))
"""All of them; a dialect's place is its variant."""

_BY_SUBPROTOCOL: Final = {dialect.subprotocol: dialect for dialect in DIALECTS}


class Selection(NamedTuple):
    """What a handshake settles on."""

    dialect: Dialect
    subprotocol: str | None  # to be echoed; None: none was offered
    token: str | None  # never to be echoed


def select(offered: Iterable[str]) -> Selection | None:
    """The first dialect offered that is known, and the token that rode along.

    Returns:
        JSON without a subprotocol when none is offered at all; None when only unknown ones are, because
        a browser would fail the connection without a word.
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
