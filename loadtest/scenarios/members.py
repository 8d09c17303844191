"""The gateway as a contender: its users, their tokens, and a check of the messages that they receive.

Every open connection belongs to a different user, with its own token in the Authorization header. It has its
inbox, and one channel in the URL that all share. The engine counts the gateway's messages, so that a missing
welcome or subscription is detected.
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
    """Return an HS256 token for each user; another serial makes different tokens for the same users."""
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
    """Wait until an engine has received exactly so many messages of each kind since its counters were reset.

    Args:
        engine: Counts the texts in COUNTED.
        told: The expected numbers of `welcome`, `subbed` and `ok`.

    Raises:
        RuntimeError: There were fewer within 30 s, or more, or an error or a bye arrived.
    """
    wanted = {_ERROR: 0, _BYE: 0} | {f'{{"op":"{op}"': count for op, count in told.items()}
    until_s = time.monotonic() + _TOLD_S
    while True:
        counted = engine.stats()["counted"]
        found = {text: counted[text] for text in wanted}
        if found == wanted:
            return
        if time.monotonic() > until_s or found[_ERROR] or found[_BYE] or _is_more(found, wanted):
            raise RuntimeError(f"the gateway's clients received {found}, not {wanted}")
        time.sleep(0.01)


def _is_more(found: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    return any(found[text] > wanted[text] for text in wanted)


@dataclass(slots=True, kw_only=True)
class GatewayContender(Contender):
    """The gateway with the clients that stay connected to it.

    Attributes:
        users: The users of these connections.
        batches: How many batches of tokens were made; the tokens of each are different.
        shown: How many tokens the gateway has received for the first time: all that were made.
        shown_again: How often it has received a token again.
    """

    users: Sequence[str] = ()
    batches: int = 0
    shown: int = 0
    shown_again: int = 0

    @property
    def gateway(self) -> GatewayProcess:
        """The gateway process that is measured."""
        assert isinstance(self.server, GatewayProcess)
        return self.server

    def tokens(self, users: Sequence[str]) -> tuple[str, ...]:
        """Make tokens that the gateway has not seen, one for each user, and count them as shown."""
        self.batches += 1
        self.shown += len(users)
        return make_tokens(users, str(self.batches))

    def open(self, count: int) -> None:
        """Open authenticated connections with their inbox and MANY, and wait for their messages."""
        self.users = [f"user-{number}" for number in range(count)]
        fields: dict[str, Any] = {"headers": BEARER, "tokens": self.tokens(self.users)}
        self.engine.reset_stats()
        open_connections(self.engine, self.server, count, path=f"/ws?ch={MANY}", **fields)
        await_told(self.engine, welcome=count, subbed=2 * count)

    def subscribe(self, sizes: Sizes) -> None:
        """Subscribe `sizes.few` of the connections to FEW; all of them have MANY already."""
        self.engine.reset_stats()
        self.engine.send(f'{{"op":"sub","ch":"{FEW}"}}', count=sizes.few)
        await_told(self.engine, subbed=sizes.few)

    def faults(self) -> list[str]:
        """Return a sentence for each fault that the gateway reports, and for connections that have ended."""
        found = self.gateway.faults()
        gone = self.engine.stats()["open"] - len(self.users)
        return [*found, f"{-gone} held connections ended"] if gone else found
