"""The gateway's clients: who they are, what they are told, and the contender that holds them.

Every held connection is a user of its own with a token of its own in the Authorization header; it has its
inbox and one channel shared with all others, named in the URL. What the gateway tells it is counted, so that
whoever was not welcomed, or not subscribed, is missed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from loadtest.engine import EngineProcess
from loadtest.harness.gateway import SECRET, GatewayProcess
from loadtest.scenarios.stage import FEW, MANY, Contender, Sizes, open_connections

__all__ = ["BEARER", "COUNTED", "OK", "SUBBED", "WELCOME", "GatewayContender", "await_told", "make_tokens"]

WELCOME: Final = '{"op":"welcome"'
SUBBED: Final = '{"op":"subbed"'
OK: Final = '{"op":"ok"'
_ERROR: Final = '{"op":"err"'
_BYE: Final = '{"op":"bye"'
COUNTED: Final = (WELCOME, SUBBED, OK, _ERROR, _BYE)
BEARER: Final = (("Authorization", "Bearer {token}"),)
_TOLD_S: Final = 30.0
_TOKEN_TTL_S: Final = 3_600


def make_tokens(users: Sequence[str], serial: str) -> tuple[str, ...]:
    """Return an HS256 token for each user; another serial makes other tokens of the same users."""
    now_s = int(time.time())
    return tuple(
        jwt.encode(
            {"sub": user, "iat": now_s, "exp": now_s + _TOKEN_TTL_S, "jti": f"{serial}-{number}"},
            SECRET,
            algorithm="HS256",
        )
        for number, user in enumerate(users)
    )


def await_told(engine: EngineProcess, **told: int) -> None:
    """Wait until an engine's connections were told this often since its counters were reset.

    Args:
        engine: Counts COUNTED.
        told: `welcome`, `subbed`, `ok`: how often.

    Raises:
        RuntimeError: It was less within 30 s, or more, or an error or a bye came.
    """
    wanted = {_ERROR: 0, _BYE: 0} | {f'{{"op":"{op}"': count for op, count in told.items()}
    until_s = time.monotonic() + _TOLD_S
    while True:
        counted = engine.stats()["counted"]
        found = {text: counted[text] for text in wanted}
        if found == wanted:
            return
        if time.monotonic() > until_s or found[_ERROR] or found[_BYE] or _is_more(found, wanted):
            raise RuntimeError(f"the gateway's clients were told {found}, not {wanted}")
        time.sleep(0.01)


def _is_more(found: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    return any(found[text] > wanted[text] for text in wanted)


@dataclass(slots=True, kw_only=True)
class GatewayContender(Contender):
    """The gateway and the clients it holds.

    Attributes:
        users: Of the held connections.
        batches: How many batches of tokens were made; each has other tokens.
        shown: Tokens shown to the gateway for the first time; every one that was made is.
        shown_again: Times that one was shown once more.
    """

    users: Sequence[str] = ()
    batches: int = 0
    shown: int = 0
    shown_again: int = 0

    @property
    def gateway(self) -> GatewayProcess:
        """The server."""
        assert isinstance(self.server, GatewayProcess)
        return self.server

    def tokens(self, users: Sequence[str]) -> tuple[str, ...]:
        """Return tokens the gateway has never seen, to be shown to it."""
        self.batches += 1
        self.shown += len(users)
        return make_tokens(users, str(self.batches))

    def open(self, count: int) -> None:
        """Open authenticated connections with their inbox and MANY, and wait until each was told."""
        self.users = [f"user-{number}" for number in range(count)]
        fields: dict[str, Any] = {"headers": BEARER, "tokens": self.tokens(self.users)}
        self.engine.reset_stats()
        open_connections(self.engine, self.server, count, path=f"/ws?ch={MANY}", **fields)
        await_told(self.engine, welcome=count, subbed=2 * count)

    def subscribe(self, sizes: Sizes) -> None:
        """Make `sizes.few` of them subscribers of FEW: all have MANY from the start."""
        self.engine.reset_stats()
        self.engine.send(f'{{"op":"sub","ch":"{FEW}"}}', count=sizes.few)
        await_told(self.engine, subbed=sizes.few)

    def faults(self) -> list[str]:
        """Return what the gateway itself says went wrong, and held connections that ended."""
        found = self.gateway.faults()
        gone = self.engine.stats()["open"] - len(self.users)
        return [*found, f"{-gone} held connections ended"] if gone else found
